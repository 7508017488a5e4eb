"""Evaluation protocols against stored numbers: COCO boxes and masks, FIBER's path from network output to results.

Cases of protocols that are not in yet are listed in ``test_known_cases.NOT_IN_YET``.
"""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_benchmark.evaluation.check import check_ground_truth
from maskrcnn_benchmark.evaluation.coco import CocoEvaluator
from maskrcnn_benchmark.evaluation.engine import ENGINES, evaluate_coco
from maskrcnn_benchmark.evaluation.proposals import proposal_recall
from maskrcnn_benchmark.evaluation.report import coco_csv
from maskrcnn_benchmark.structures import Detections, ImageMeta
from tests.conftest import golden_cases, load_case

TOLERANCE = 1e-9  # far below that of the cases


def read(path: Path, case: Mapping[str, Any], name: str) -> Any:
    with gzip.open(path.with_name(case["files"][name])) as file:
        return json.load(file)


def same(got: Mapping[str, float], want: Mapping[str, float], what: str) -> None:
    assert {name: got[name] for name in want} == pytest.approx(want, abs=TOLERANCE), what


@pytest.mark.parametrize("path", golden_cases("eval", "coco_*", "edge_cases*"))
def test_eval(path: Path) -> None:
    case, _ = load_case(path)
    checks = {
        "coco_bbox": check_ap,
        "coco_segm": check_ap,
        "fiber_coco_pipeline": check_pipeline,
        "coco_mdetr_flow": check_mdetr,
        "edge_cases": check_edge_cases,
    }
    checks[case["kind"]](path, case)


def check_ap(path: Path, case: dict[str, Any]) -> None:
    iou_type = case["kind"].removeprefix("coco_")
    want = case["expected"]
    truth, results = check_ground_truth(read(path, case, "gt"), path.name, iou_type), read(path, case, "dt")
    for engine in ENGINES:
        found = evaluate_coco(truth, results, iou_type=iou_type, engine=engine)
        same(found.stats, want["stats"], engine)
        for category, numbers in want["per_class"].items():
            same(found.per_category[int(category)], numbers, f"{engine}, category {category}")
        pooled = evaluate_coco(truth, results, iou_type=iou_type, use_cats=False, engine=engine)
        same(pooled.stats, want["stats_useCats0"], engine)
        if "AP_maxDets300" in want:
            more = evaluate_coco(truth, results, iou_type=iou_type, max_dets=(1, 10, 300), engine=engine)
            same(more.stats, {"AP": want["AP_maxDets300"]}, engine)
        if "coco_results_pth" in want:
            same(found.stats, want["coco_results_pth"], engine)
        if "bbox_csv" in want:
            text = coco_csv(found.precision, [row["name"] for row in truth.categories])
            assert numbers_of(text) == pytest.approx(numbers_of(want["bbox_csv"]), abs=TOLERANCE), engine
            assert engine == "faster" or text == want["bbox_csv"]  # its last digit differs


def numbers_of(text: str) -> list[float]:
    """Values of a bbox.csv."""
    cells = [cell.strip() for line in text.splitlines()[1:] for cell in line.split("], ")[-1].split(",")]
    return [float(cell) for cell in cells if cell]


def network_output(row: Mapping[str, Any], image: Mapping[str, Any]) -> Detections:
    """Boxes of the network's picture, brought to the picture on disk as every detector of ours does."""
    size = image["height"], image["width"]
    width, height = row["network_size_wh"]
    scale = torch.tensor([size[1] / width, size[0] / height] * 2)
    return Detections(
        torch.tensor(row["boxes_xyxy"]).reshape(-1, 4) * scale,
        torch.tensor(row["scores"]),
        torch.tensor(row["labels_contiguous"], dtype=torch.int64),
        ImageMeta(image["id"], (height, width), size),
    )


def check_pipeline(path: Path, case: dict[str, Any]) -> None:
    truth, outputs, want = read(path, case, "gt"), read(path, case, "network_output"), case["expected"]
    images = sorted(truth["images"], key=lambda image: image["id"])
    found = [network_output(row, images[row["image_index"]]) for row in outputs]
    labels = dict(enumerate(sorted(c["id"] for c in truth["categories"]), start=1))
    for engine in ENGINES:
        evaluator = CocoEvaluator(truth, labels, engine=engine)
        evaluator.update(found[::-1])  # the order of the pictures does not matter
        same(evaluator.summary(), want["stats"], engine)
    rows = evaluator.results()
    assert len(rows) == want["n_results"]
    for row in want["first_results"]:
        alike = [r for r in rows if (r["image_id"], r["category_id"]) == (row["image_id"], row["category_id"])]
        assert any(r["score"] == row["score"] and r["bbox"] == row["bbox"] for r in alike), row
    index = want["lvis_style_xywh_of_image_index"]
    for plus_one, key in ((True, "coco_style_xywh"), (False, "lvis_style_xywh")):
        boxes = [row["bbox"] for row in found[index].to_coco(plus_one=plus_one)]
        assert sorted(boxes) == sorted(want[key])
    by_id = {detections.meta.image_id: detections for detections in found}
    recall = proposal_recall(check_ground_truth(truth), by_id, limits=(5, 100, 1000))
    assert recall == pytest.approx(want["proposal_AR_with_+1_gt"], abs=1e-6)


def check_mdetr(path: Path, case: dict[str, Any]) -> None:
    truth = read(path, case, "gt")
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    for engine in ENGINES:
        evaluator = CocoEvaluator(truth, {1: 1}, engine=engine, plus_one=False, use_cats=False)
        for row in read(path, case, "predictions"):
            size = sizes[row["image_id"]]
            boxes = torch.tensor(row["boxes"]).reshape(-1, 4)
            labels = torch.tensor(row["labels"], dtype=torch.int64)
            evaluator.update(
                [Detections(boxes, torch.tensor(row["scores"]), labels, ImageMeta(row["image_id"], size, size))]
            )
        same(evaluator.summary(), case["expected"]["stats"], engine)


def check_edge_cases(path: Path, case: dict[str, Any]) -> None:
    for edge in case["cases"]:
        if "coco" not in edge:
            continue
        truth = check_ground_truth(edge["gt"])
        for engine in ENGINES:
            for use_cats, key in ((True, "coco"), (False, "coco_useCats0")):
                found = evaluate_coco(truth, edge["dt"], use_cats=use_cats, engine=engine)
                zero = any(row["id"] == 0 for row in edge["gt"]["annotations"])  # never matched by the reference
                want = reference_without_zero(edge, use_cats) if zero else edge[key]
                same(found.stats, want, f"{edge['name']} ({edge['what']}) with {engine}, {key}")


def reference_without_zero(edge: dict[str, Any], use_cats: bool) -> dict[str, float]:
    """pycocotools' numbers once annotation ids begin at 1."""
    truth = COCO()
    truth.dataset = copy.deepcopy(edge["gt"])
    for row in truth.dataset["annotations"]:
        row["id"] += 1
    truth.createIndex()
    run = COCOeval(truth, truth.loadRes(copy.deepcopy(edge["dt"])), "bbox")
    run.params.useCats = int(use_cats)
    run.evaluate()
    run.accumulate()
    run.summarize()
    return dict(zip(edge["coco"], map(float, run.stats), strict=True))
