"""Stored predictions of whole runs through our evaluator: the reference's numbers and its bbox.csv to the letter."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_benchmark.evaluation.coco import CocoEvaluator
from maskrcnn_benchmark.evaluation.engine import ENGINES
from maskrcnn_benchmark.structures import Detections, ImageMeta
from tests.conftest import golden_cases, load_case, shared_path

TOLERANCE = 1e-9


@pytest.mark.parametrize("path", golden_cases("e2e", "odinw_*", "bccd_*", "coco_*"))
def test_metrics_of_stored_predictions(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, _ = load_case(path)
    script = shared_path("golden", "e2e", "make_subset.py")
    monkeypatch.setattr(sys, "argv", [script.name, str(path), str(shared_path("data", "DATASET")), str(tmp_path)])
    runpy.run_path(str(script))
    for engine in ENGINES:
        real = evaluator(case, tmp_path / "annotations.json", engine)
        check(real, case["metrics"], case["per_category AP, AP50 (json category id)"])
        pseudo = evaluator(case, tmp_path / "annotations_pseudo.json", engine)
        check(pseudo, case["pseudo_gt_metrics"], case["pseudo_gt_per_category AP, AP50"])
        real.write(tmp_path / engine)
        rows = json.loads((tmp_path / engine / "bbox.json").read_text())
        for row, stored in zip(sorted(rows, key=place), sorted(case["predictions"], key=place), strict=True):
            assert place(row) == place(stored)
            assert row["bbox"] == pytest.approx(stored["bbox"])
        if engine != "faster":  # its last digit differs
            assert (tmp_path / engine / "bbox.csv").read_text() == case["bbox_csv"]


def evaluator(case: dict[str, Any], annotations: Path, engine: str) -> CocoEvaluator:
    labels = {int(label): category for label, category in case["contiguous_to_json_category_id"].items()}
    label_of = {category: label for label, category in labels.items()}
    filled = CocoEvaluator(annotations, labels, engine=engine)
    for image in case["images"]:
        rows = [row for row in case["predictions"] if row["image_id"] == image["image_id"]]
        boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64)  # as exact as they are stored
        size = tuple(image["original_wh"][::-1])
        found = Detections(
            torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - 1], dim=1),
            torch.tensor([row["score"] for row in rows], dtype=torch.float64),
            torch.tensor([label_of[row["category_id"]] for row in rows]),
            ImageMeta(image["image_id"], size, size),
        )
        filled.update([found])
    return filled


def place(row: dict[str, Any]) -> tuple[float, ...]:
    return row["image_id"], row["category_id"], row["score"], *row["bbox"][:2]


def check(filled: CocoEvaluator, metrics: dict[str, float], per_category: dict[str, list[float]]) -> None:
    names = {re.sub(r"(?<=[sml])@100|@", "", name): value for name, value in filled.summary().items()}  # ARs, AR100
    assert {name: names[name] for name in metrics} == pytest.approx(metrics, abs=TOLERANCE)
    by_class = {str(row["id"]): [row["AP"], row["AP50"]] for row in filled.per_category()}
    for category, numbers in per_category.items():
        assert by_class[category] == pytest.approx(numbers, abs=TOLERANCE), category
