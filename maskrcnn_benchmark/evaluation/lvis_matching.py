"""LVIS matching in plain numpy, over pycocotools' overlaps: slow, and the reference for the other engines.

The protocol is that of lvis-api (https://github.com/lvis-dataset/lvis-api), Gupta et al., LVIS, CVPR 2019.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from maskrcnn_benchmark.evaluation.check import GroundTruth
from maskrcnn_benchmark.evaluation.columns import Floats, Ints, Results
from maskrcnn_benchmark.evaluation.engine import IOU_THRESHOLDS, Arrays

RECALLS = np.linspace(0, 1, 101)
LOW, HIGH = np.array([[0, 1e10], [0, 32.0**2], [32.0**2, 96.0**2], [96.0**2, 1e10]]).T  # inclusive

Row = dict[str, Any]
Bools = np.ndarray


@dataclass(frozen=True)
class _Matched:
    """D detections of one class in one picture, best first; 4 areas, 10 thresholds."""

    scores: Floats  # (D,)
    hit: Bools  # (4, 10, D)
    ignored: Bools  # (4, 10, D)
    objects: Ints  # (4,) how many are to be found


def match_all(truth: GroundTruth, results: Results, iou_type: str, areas: Floats) -> Arrays:
    """Precision (10, 101, K, 4, 1) and recall (10, K, 4, 1) of K classes; -1 where there is nothing to find.

    Args:
        truth: Of LVIS, checked, with K categories.
        results: Of classes that are known to be, or known not to be, in their picture.
        iou_type: "bbox" or "segm".
        areas: (N,) of the results, in pixels.
    """
    objects: dict[int, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))  # class -> picture -> rows
    found: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))  # class -> picture -> indices
    for row in truth.annotations:
        objects[row["category_id"]][row["image_id"]].append(row)
    best = np.argsort(-results.scores, kind="stable").tolist()
    for index, category, picture in zip(
        best, results.category[best].tolist(), results.picture[best].tolist(), strict=True
    ):
        found[category][picture].append(index)
    shape = (len(IOU_THRESHOLDS), len(RECALLS), len(truth.categories), len(LOW), 1)
    precision, recall = np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0)
    images = {image["id"]: image for image in truth.images}
    for k, category in enumerate(row["id"] for row in truth.categories):
        matched = []
        for picture in sorted(objects[category].keys() | found[category].keys()):
            image, rows, chosen = images[picture], objects[category][picture], found[category][picture]
            part, open_ended = results[np.array(chosen, np.int64)], category in image["not_exhaustive_category_ids"]
            matched.append(
                _match(
                    part, areas[np.array(chosen, np.int64)], rows, _overlaps(part, rows, image, iou_type), open_ended
                )
            )
        for a in range(len(LOW)):
            curves = _curves(matched, a)
            if curves is not None:
                precision[:, :, k, a, 0], recall[:, k, a, 0] = curves
    return precision, recall


def _overlaps(results: Results, objects: Sequence[Row], image: Row, iou_type: str) -> Floats:
    """(D, G) IoU."""
    if not len(results) or not objects:
        return np.zeros((len(results), len(objects)))
    shapes: tuple[Any, Any]
    if iou_type == "bbox":
        shapes = results.boxes, np.array([row["bbox"] for row in objects], np.float64)
    else:
        size = image["height"], image["width"]
        wanted = [row["segmentation"] for row in objects]
        shapes = [_encoded(mask, *size) for mask in results.masks], [_encoded(mask, *size) for mask in wanted]
    return np.asarray(mask_api.iou(*shapes, [0] * len(objects)))


def _encoded(shape: Any, height: int, width: int) -> Any:
    """Run lengths of polygons or run lengths."""
    if isinstance(shape, list):
        return mask_api.merge(mask_api.frPyObjects(shape, height, width))
    return mask_api.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape


def _match(results: Results, areas: Floats, objects: Sequence[Row], overlaps: Floats, open_ended: bool) -> _Matched:
    """Give each detection in turn the object that it covers best, objects that count before those that do not.

    Of equal overlaps, the later object is taken.
    """
    area = np.array([row["area"] for row in objects], np.float64)
    void = np.array([bool(row.get("ignore")) for row in objects], bool) | _outside(area)  # (4, G)
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    free = np.ones((len(LOW), len(thresholds), len(objects)), bool)
    hit = np.zeros((len(LOW), len(thresholds), len(results)), bool)
    ignored = np.zeros_like(hit)
    for d in range(len(results) if objects else 0):
        reach = free & (overlaps[d] >= thresholds)
        counting = reach & ~void[:, None]
        reach = np.where(counting.any(axis=2, keepdims=True), counting, reach)
        best = len(objects) - 1 - np.where(reach, overlaps[d], -1)[..., ::-1].argmax(axis=2)  # (4, 10)
        hit[..., d] = reach.any(axis=2)
        ignored[..., d] = hit[..., d] & np.take_along_axis(void, best, axis=1)
        free &= ~(hit[..., d, None] & (np.arange(len(objects)) == best[..., None]))
    ignored |= ~hit & (_outside(areas) | open_ended)[:, None]
    return _Matched(results.scores, hit, ignored, (~void).sum(axis=1))


def _outside(areas: Floats) -> Bools:
    """(4, N) bool: not of the size of the area range."""
    return (areas < LOW[:, None]) | (areas > HIGH[:, None])


def _curves(matched: Sequence[_Matched], a: int) -> tuple[Floats, Floats] | None:
    """Precision (10, 101) and recall (10,) of one class and area; None when there is nothing to find."""
    count = sum(int(part.objects[a]) for part in matched)
    if not count:
        return None
    order = np.argsort(-np.concatenate([part.scores for part in matched]), kind="stable")
    hit = np.concatenate([part.hit[a] for part in matched], axis=1)[:, order]
    counts = ~np.concatenate([part.ignored[a] for part in matched], axis=1)[:, order]
    true, false = (np.cumsum(part & counts, axis=1, dtype=np.float64) for part in (hit, ~hit))
    if not len(order):
        return np.zeros((len(true), len(RECALLS))), np.zeros(len(true))
    recall, exact = true / count, true / (true + false + np.spacing(1))
    exact = np.maximum.accumulate(exact[:, ::-1], axis=1)[:, ::-1]
    exact = np.pad(exact, ((0, 0), (0, 1)))  # beyond the last recall
    points = [np.searchsorted(row, RECALLS, side="left") for row in recall]
    return np.take_along_axis(exact, np.array(points), axis=1), recall[:, -1]
