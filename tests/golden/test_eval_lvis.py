"""LVIS numbers of the reference tools: lvis-api, FIBER's fixed AP and its bbox.csv, DECOLA's limits."""

from __future__ import annotations

import gzip
import json
import re
import runpy
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools import mask as mask_api

from maskrcnn_benchmark.evaluation.check import check_results
from maskrcnn_benchmark.evaluation.columns import Columns
from maskrcnn_benchmark.evaluation.engine import ENGINES
from maskrcnn_benchmark.evaluation.lvis import LvisEvaluator
from maskrcnn_benchmark.evaluation.lvis_engine import check_lvis, evaluate_lvis, looked_for, lvis_stats
from maskrcnn_benchmark.evaluation.lvis_matching import match_all
from maskrcnn_benchmark.structures import Detections, ImageMeta
from tests.conftest import golden_cases, load_case, shared_path

TOLERANCE = 1e-9

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def sides_as_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes are handed over as x, y, w, h: corners and back would move overlaps that are exactly at a threshold."""
    monkeypatch.setattr(Columns, "xywh", lambda self, plus_one: self.boxes)


def read(path: Path, case: Mapping[str, Any], name: str) -> Any:
    with gzip.open(path.with_name(case["files"][name])) as file:
        return json.load(file)


def filled(truth: Row, rows: list[Row], engine: str, **options: Any) -> LvisEvaluator:
    """An evaluator that has seen all pictures, the last one first."""
    evaluator = LvisEvaluator(truth, engine=engine, **options)
    of_image: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        of_image[row["image_id"]].append(row)
    for image in sorted(truth["images"], key=lambda image: -image["id"]):
        mine = of_image[image["id"]]
        boxes = torch.tensor([row["bbox"] for row in mine], dtype=torch.float64).reshape(-1, 4)
        scores = torch.tensor([row["score"] for row in mine], dtype=torch.float64)
        labels = torch.tensor([row["category_id"] for row in mine], dtype=torch.int64)
        size = image["height"], image["width"]
        evaluator.update([Detections(boxes, scores, labels, ImageMeta(image["id"], size, size))])
    return evaluator


def same(got: Mapping[str, float], want: Mapping[str, float], what: str) -> None:
    assert {name: got[name] for name in want} == pytest.approx(want, abs=TOLERANCE), what


def in_percent(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: 100 * value for name, value in numbers.items()}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("path", golden_cases("eval", "lvis_*"))
def test_lvis(path: Path, engine: str, tmp_path: Path) -> None:
    case, _ = load_case(path)
    truth, rows = read(path, case, "gt"), read(path, case, "dt")
    for name, want in case["expected"].items():
        pattern, check = next((p, c) for p, c in CHECKS.items() if re.fullmatch(p, name))
        found = re.fullmatch(pattern, name)
        assert found is not None
        check(truth, rows, engine, want, f"{name} with {engine}", *found.groups(), folder=tmp_path)


def check_standard(truth: Row, rows: list[Row], engine: str, want: Row, what: str, **_: Any) -> None:
    same(filled(truth, rows, engine, protocol="standard").summary(), want, what)


def check_classes(truth: Row, rows: list[Row], engine: str, want: Row, what: str, **_: Any) -> None:
    classes = filled(truth, rows, engine, protocol="standard").per_category()
    same({str(row["id"]): row["AP"] for row in classes}, want, what)


def check_fixed(truth: Row, rows: list[Row], engine: str, want: Row, what: str, limit: str, **_: Any) -> None:
    same(filled(truth, rows, engine, per_class=int(limit)).summary(), want, what)


def check_csv(truth: Row, rows: list[Row], engine: str, want: str, what: str, folder: Path) -> None:
    filled(truth, rows, engine).write(folder)
    assert (folder / "bbox.csv").read_text() == want, what
    assert len(json.loads((folder / "bbox.json").read_text())) == len(rows)


def check_decola(
    truth: Row, rows: list[Row], engine: str, want: Row, what: str, group: str, limit: str, each: str | None, **_: Any
) -> None:
    categories = [row for row in truth["categories"] if group == "all" or row["frequency"] == group[0]]
    if not categories:
        assert set(want.values()) == {-100}
        return
    options = {"per_image": int(limit), "per_image_class": int(each or -1), "categories": categories}
    same(in_percent(filled(truth, rows, engine, protocol="standard", **options).summary()), want, what)


def check_masks(truth: Row, rows: list[Row], engine: str, want: Row, what: str, **_: Any) -> None:
    """Boxes as masks. Here lvis-api takes w * h as the area of a mask, which an evaluator would never."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    masked = [row | {"segmentation": rectangle(*row["bbox"], *sizes[row["image_id"]])} for row in best(rows, 300)]
    checked = check_lvis(truth, iou_type="segm")
    found = evaluate_lvis(checked, masked, iou_type="segm", engine=engine)
    same(found.stats, {name: want[name] for name in want if name[2:3] not in ("s", "m", "l")}, what)
    if engine == "pycocotools":
        results, _ = check_results(masked, checked, "segm")
        results = results[looked_for(results, checked)]
        areas = results.boxes[:, 2] * results.boxes[:, 3]
        curves = match_all(checked, results[areas > 0], "segm", areas[areas > 0])
        same(lvis_stats(*curves, [row["frequency"] for row in checked.categories], 300), want, what)


def best(rows: list[Row], limit: int) -> list[Row]:
    of_image: dict[int, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: -row["score"]):
        of_image[row["image_id"]].append(row)
    return [row for mine in of_image.values() for row in mine[:limit]]


def rectangle(x: float, y: float, w: float, h: float, height: int, width: int) -> dict[str, Any]:
    """Run lengths of a box."""
    return mask_api.merge(mask_api.frPyObjects([[x, y, x, y + h, x + w, y + h, x + w, y]], height, width))


CHECKS: dict[str, Callable[..., None]] = {
    r"standard_lvis_api|fiber_normal_AP_300_per_image": check_standard,
    r"standard_per_class_AP": check_classes,
    r"fixedAP_topk(\d+)": check_fixed,
    r"fixedAP_bbox_csv": check_csv,
    r"decola_(all|rare_only)_(\d+)(?:_perclass(\d+))?": check_decola,
    r"standard_segm_boxes_as_masks": check_masks,
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("path", golden_cases("eval", "edge_cases*"))
def test_lvis_of_few_boxes(path: Path, engine: str) -> None:
    case, _ = load_case(path)
    for edge in case["cases"]:
        annotations = edge["gt"]["annotations"]
        zero = any(row["id"] == 0 for row in annotations)  # never matched by the reference
        for key, limit in (("lvis", 300), ("lvis_no_cap", -1)):
            if key not in edge:
                continue
            options = {"protocol": "standard", "per_image": limit}
            want = edge[key]
            if zero:
                moved = edge["gt"] | {"annotations": [row | {"id": row["id"] + 1} for row in annotations]}
                want = filled(moved, edge["dt"], "pycocotools", **options).summary()
            got = filled(edge["gt"], edge["dt"], engine, **options).summary()
            same(got, want, f"{edge['name']} ({edge['what']}) with {engine}, {key}")


@pytest.mark.parametrize("path", golden_cases("e2e", "lvis_*"))
def test_stored_predictions(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a whole run: FIBER's numbers, and its bbox.csv to the letter."""
    case, _ = load_case(path)
    script = shared_path("golden", "e2e", "make_subset.py")
    monkeypatch.setattr(sys, "argv", [script.name, str(path), str(shared_path("data", "DATASET")), str(tmp_path)])
    runpy.run_path(str(script))
    for engine in ENGINES:
        for file, wanted in (("annotations", "metrics"), ("annotations_pseudo", "pseudo_gt_metrics (FixedAP)")):
            truth = json.loads((tmp_path / f"{file}.json").read_text())
            evaluator = filled(truth, case["predictions"], engine)
            same(evaluator.summary(), case[wanted], f"{wanted} with {engine}")
            if file == "annotations":
                evaluator.write(tmp_path / engine)
                assert (tmp_path / engine / "bbox.csv").read_text() == case["bbox_csv"], engine
