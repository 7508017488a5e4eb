"""PASCAL VOC average precision against stored numbers of maskrcnn-benchmark and detectron2."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn_benchmark.data.datasets.voc import VOC_CLASSES, VocObjects
from maskrcnn_benchmark.evaluation.collector import Collector
from maskrcnn_benchmark.evaluation.voc import PROTOCOLS, VocEvaluator, voc_ap
from maskrcnn_benchmark.structures import Detections, ImageMeta
from tests.golden.common import golden_cases, load_case

PROTOCOL_OF = {
    "maskrcnn_benchmark_11point_skip_empty_images": "lineage_skip_empty",
    "maskrcnn_benchmark_area_skip_empty_images": "lineage_area_skip_empty",
    "maskrcnn_benchmark_11point_all_images": "lineage",
    "maskrcnn_benchmark_area_all_images": "lineage_area",
    "detectron2_2007": "07",
    "detectron2_2012": "12",
}
LABEL = {name: label for label, name in enumerate(VOC_CLASSES, 1)}


def objects(rows: list[dict[str, Any]]) -> VocObjects:
    return VocObjects(
        np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4) - np.float32(1),
        np.array([LABEL[row["name"]] for row in rows], np.int64),
        np.array([row["difficult"] for row in rows], bool),
    )


def detections(image_id: str, rows: list[dict[str, Any]]) -> Detections:
    """In double precision, as stored: detectron2 rounds boxes to one digit."""
    return Detections(
        torch.tensor([row["bbox"] for row in rows], dtype=torch.float64).reshape(-1, 4),
        torch.tensor([row["score"] for row in rows]),
        torch.tensor([LABEL[row["label"]] for row in rows], dtype=torch.int64),
        ImageMeta(image_id, (1, 1), (1, 1)),
    )


@pytest.mark.parametrize("path", golden_cases("eval", "voc*"))
def test_eval_voc(path: Path) -> None:
    case, _ = load_case(path)
    truth, found = (
        json.loads(gzip.decompress(path.with_name(case["files"][name]).read_bytes())) for name in ("gt", "dt")
    )
    rows = {row["id"]: row["detections"] for row in found}
    for key, want in case["expected"].items():
        evaluator = VocEvaluator({row["id"]: objects(row["objects"]) for row in truth}, VOC_CLASSES, PROTOCOL_OF[key])
        evaluator.update([detections(row["id"], rows.get(row["id"], [])) for row in truth])
        scale = 100 if key.startswith("detectron2") else 1
        got = {name: value * scale for name, value in evaluator.summary().items()}
        per_class = {row["name"]: row["AP50"] * scale for row in evaluator.per_category()}
        measured = {
            name: value for name, value in want.get("ap", want.get("AP50_per_class")).items() if value is not None
        }
        assert {name: per_class[name] for name in measured} == pytest.approx(measured, abs=case["tolerance"] * scale), (
            key
        )
        numbers = {"AP50": want["mAP"]} if "mAP" in want else {name: want[name] for name in ("AP", "AP50", "AP75")}
        assert got == pytest.approx(numbers, abs=case["tolerance"] * scale), key


@pytest.mark.parametrize("path", golden_cases("dap", "eval_voc*"))
def test_dap_eval_voc(path: Path) -> None:
    case, stored = load_case(path)
    pictures = range(len(stored["image_wh"]))
    truth, collector = [], Collector({n: n + 1 for n in pictures}, path.name, {n: n for n in range(1, 100)})
    for number in pictures:
        mine, found = stored["gt_image"] == number, stored["pred_image"] == number
        boxes, labels, difficult = (stored[f"gt_{name}"][mine].numpy() for name in ("boxes", "labels", "difficult"))
        truth.append(VocObjects(boxes, labels, difficult.astype(bool)))
        meta = ImageMeta(number, (1, 1), (1, 1))
        collector.add(Detections(*(stored[f"pred_{name}"][found] for name in ("boxes", "scores", "labels")), meta))
    for key, want in case["results"].items():
        threshold, metric = key.removeprefix("iou").split("_")
        protocol = PROTOCOLS["lineage" if metric == "voc07" else "lineage_area"]
        protocol = replace(protocol, thresholds=(float(threshold),))
        got = voc_ap(collector.columns(), truth, case["classes"], protocol)[:, 0]
        expected = [np.nan if value is None else value for value in want["ap"][1:]]
        assert got.tolist() == pytest.approx(expected, abs=1e-6, nan_ok=True), key
        assert np.nanmean(got) == pytest.approx(want["map"], abs=1e-6), key
