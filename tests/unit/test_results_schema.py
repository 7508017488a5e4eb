"""results.json has one form for all evaluators: that of docs/evaluation/README.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_benchmark.data.datasets.voc import VocDataset
from maskrcnn_benchmark.evaluation.coco import CocoEvaluator
from maskrcnn_benchmark.evaluation.coco_variants import CocoAgnosticEvaluator, CocoZeroShotEvaluator
from maskrcnn_benchmark.evaluation.interface import Evaluator
from maskrcnn_benchmark.evaluation.lvis import LvisEvaluator
from maskrcnn_benchmark.evaluation.proposals import ProposalEvaluator
from maskrcnn_benchmark.evaluation.voc import VocEvaluator
from maskrcnn_benchmark.structures import Detections, ImageMeta
from tests.unit.voc_files import voc_object, write_voc

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluation" / "README.md"
ALWAYS = {"metrics", "main", "protocol", "counts", "annotations", "notes"}


def documented() -> set[str]:
    section = PAGE.read_text(encoding="utf-8").split("### results.json")[1].split("\n## ")[0]
    return {name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}


def coco_file(folder: Path) -> Path:
    path = folder / "truth.json"
    names = {1: "person", 2: "dog"}
    rows: dict[str, list[dict[str, Any]]] = {
        "images": [{"id": 1, "width": 40, "height": 30, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        "categories": [{"id": id_, "name": name, "frequency": "f"} for id_, name in names.items()],
        "annotations": [
            {"id": id_, "image_id": 1, "category_id": id_, "bbox": [id_, 2, 9, 9], "area": 81, "iscrowd": 0}
            for id_ in names
        ],
    }
    path.write_text(json.dumps(rows))
    return path


def make(name: str, folder: Path) -> tuple[Evaluator, int | str]:
    """An evaluator, and the id of its only picture."""
    if name == "voc":
        root = write_voc(folder / "voc", {"a": [voc_object("dog", 1, 1, 9, 9)]})
        return VocEvaluator.of(VocDataset(root, root, "test")), "a"
    file, labels = coco_file(folder), {1: 1, 2: 2}
    made: dict[str, Evaluator] = {
        "coco": CocoEvaluator(file, labels),
        "coco_agnostic": CocoAgnosticEvaluator(file, labels),
        "coco_zeroshot": CocoZeroShotEvaluator(file, labels),
        "lvis": LvisEvaluator(file),
        "proposals": ProposalEvaluator(file),
    }
    return made[name], 1


@pytest.mark.parametrize("name", ["coco", "coco_agnostic", "coco_zeroshot", "lvis", "proposals", "voc"])
def test_every_key_is_documented(name: str, tmp_path: Path) -> None:
    evaluator, picture = make(name, tmp_path)
    evaluator.update([Detections.empty(ImageMeta(picture, (30, 40), (30, 40)))])
    evaluator.write(tmp_path / "out", {"dataset": "mine"})
    card = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(card) >= ALWAYS
    assert set(card) <= documented()
    assert card["protocol"]["name"].startswith(name)
    assert card["metrics"] == evaluator.summary()
    assert card["main"] == evaluator.main
    assert evaluator.main in card["metrics"]
    assert card["counts"]["pictures"] == 1
    assert len(card["annotations"]["sha256"]) == 64
