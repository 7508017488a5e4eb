"""COCO box scores of detections as maskrcnn-benchmark writes them, from the detections on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from maskrcnn_benchmark.evaluation.coco import CocoEvaluator
from maskrcnn_benchmark.structures import Detections, ImageMeta
from tests.golden.common import golden_cases, load_case


@pytest.mark.parametrize("path", golden_cases("dap", "eval_coco*"))
def test_eval_coco(path: Path, tmp_path: Path) -> None:
    case, _ = load_case(path)
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(case["ground truth"]), encoding="utf-8")
    categories = sorted(row["id"] for row in case["ground truth"]["categories"])
    evaluator = CocoEvaluator(truth, dict(enumerate(categories, 1)))
    for image in case["ground truth"]["images"]:
        rows = [row for row in case["detections"] if row["image_id"] == image["id"]]
        xywh = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64).reshape(-1, 4)
        boxes = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:] - 1], dim=1)  # the last pixel is inside
        labels = torch.tensor([categories.index(row["category_id"]) + 1 for row in rows], dtype=torch.int64)
        scores = torch.tensor([row["score"] for row in rows], dtype=torch.float64)
        meta = ImageMeta(image["id"], (1, 1), (image["height"], image["width"]))
        evaluator.update([Detections(boxes, scores, labels, meta)])
    names = [re.sub(r"^AR(\d+)$", r"AR@\1", re.sub(r"^(AR[sml])$", r"\1@100", name)) for name in case["stats names"]]
    want = dict(zip(names, case["stats"], strict=True))
    assert evaluator.summary() == pytest.approx(want, abs=1e-9)
