"""LVIS AP and AR by one of three engines, with lvis-api's numbers.

LVIS annotations are federated: for each picture only some classes are known to be there or not to be there, and only
those are scored. The engines match; what comes before that is done here once for all of them, as in lvis-api: results
of classes that nobody has looked for do not count, neither does what has no area, and there are no crowds. Limits on
the number of detections are the evaluator's.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_api

from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.check import GroundTruth, Row, check_ground_truth
from maskrcnn_benchmark.evaluation.columns import Floats, Results
from maskrcnn_benchmark.evaluation.engine import (
    AREAS,
    ENGINES,
    IOU_THRESHOLDS,
    Arrays,
    arrays,
    checked,
    choose_engine,
    mean,
    one_category,
)
from maskrcnn_benchmark.evaluation.lvis_matching import match_all

logger = logging.getLogger(__name__)

FREQUENCIES = ("r", "c", "f")
"""Rare: in 1 to 10 pictures of the training set; common: in 11 to 100; frequent: in more."""


@dataclass(frozen=True)
class LvisScores:
    """What an engine found. -1 stands for "no ground truth to measure on"."""

    stats: dict[str, float]  # AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR@limit, ARs@, ARm@, ARl@; 0..1
    per_category: dict[int, dict[str, float]]  # category id -> AP, AP50, AR@max
    engine: str
    version: str
    notes: tuple[str, ...]


def check_lvis(
    coco: Row, where: str = "annotations", iou_type: str = "bbox", categories: Sequence[Row] | None = None
) -> GroundTruth:
    """Check LVIS annotations; see :func:`~maskrcnn_benchmark.evaluation.check.check_ground_truth`.

    Raises:
        DataError: they are no COCO annotations, or lack what LVIS has in addition.
    """
    truth = check_ground_truth(coco, where, iou_type, categories, crowds=False)
    for index, image in enumerate(coco["images"]):
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = image.get(key)
            if not isinstance(ids, list) or not all(type(category) is int for category in ids):
                raise DataError(
                    f"{where}: images[{index}] (id {image['id']!r}): {key} {ids!r:.40} is no list of category ids: "
                    "LVIS annotations say for each picture which classes were looked for; without it, evaluate as COCO"
                )
    for row in truth.categories:
        if row.get("frequency") not in FREQUENCIES:
            raise DataError(
                f"{where}: category {row['id']} ({row.get('name')!r}): frequency {row.get('frequency')!r} is none of "
                f"{', '.join(FREQUENCIES)}"
            )
    solid = [row for row in truth.annotations if row["area"] > 0]
    if flat := len(truth.annotations) - len(solid):
        truth.notes.append(f"{flat} annotations without area: left out, as lvis-api does")
    return replace(truth, annotations=solid)


def evaluate_lvis(
    truth: GroundTruth,
    results: Sequence[Row] | Results,
    *,
    iou_type: str = "bbox",
    limit: int = 300,
    engine: str = "auto",
) -> LvisScores:
    """Score results.

    Args:
        truth: Of :func:`check_lvis`.
        results: As for :func:`~maskrcnn_benchmark.evaluation.engine.evaluate_coco`; every one of them counts.
        iou_type: "bbox" or "segm".
        limit: How many of a picture were kept, -1 for all: part of the names of recalls.
        engine: "auto", "hotcoco", "faster" or "pycocotools". Objects with the key ``ignore``, which no released file
            has, are left to the last one, as the others do not know it.

    Raises:
        ConfigError: the engine is unknown or not installed.
        DataError: a result is of an unknown picture, or is no shape or no score.
    """
    engine = choose_engine(engine)
    columns, notes = checked(results, truth, iou_type)
    if engine != "pycocotools" and any(row.get("ignore") for row in truth.annotations):
        notes.append(f"some annotations have the key ignore, which {engine} does not know: scored by pycocotools")
        engine = "pycocotools"
    columns = columns[looked_for(columns, truth)]
    areas = _areas(columns, iou_type)
    with contextlib.redirect_stdout(io.StringIO()):  # some print their progress
        precision, recall = _RUN[engine](truth, columns[areas > 0], iou_type, areas[areas > 0])
    ids = [row["id"] for row in truth.categories]
    return LvisScores(
        stats=lvis_stats(precision, recall, [row["frequency"] for row in truth.categories], limit),
        per_category={category: one_category(precision[:, :, k], recall[:, k]) for k, category in enumerate(ids)},
        engine=engine,
        version=version(ENGINES[engine][1]),
        notes=(*truth.notes, *notes),
    )


def looked_for(results: Results, truth: GroundTruth) -> npt.NDArray[np.bool_]:
    """(N,) whether the class of a result is known to be in its picture, or known not to be there."""
    pairs = {(row["image_id"], row["category_id"]) for row in truth.annotations}
    pairs |= {(image["id"], category) for image in truth.images for category in image["neg_category_ids"]}
    known = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    span = 1 + max(row["id"] for row in truth.categories)
    known = known[known[:, 1] < span]
    return np.isin(results.picture * span + results.category, known[:, 0] * span + known[:, 1])


def _areas(results: Results, iou_type: str) -> Floats:
    """(N,) pixels."""
    if iou_type == "bbox":
        return results.boxes[:, 2] * results.boxes[:, 3]
    return np.array([mask_api.area(mask) for mask in results.masks], np.float64)


def lvis_stats(precision: Floats, recall: Floats, frequencies: Sequence[str], limit: int) -> dict[str, float]:
    """lvis-api's thirteen numbers.

    Args:
        precision: (10 IoU thresholds, 101 recalls, K, 4 areas, 1).
        recall: (10, K, 4, 1).
        frequencies: (K,) r, c or f.
        limit: Part of the names of recalls.
    """
    stats = {"AP": mean(precision[..., 0, -1])}
    stats |= {f"AP{int(100 * IOU_THRESHOLDS[t])}": mean(precision[t, ..., 0, -1]) for t in (0, 5)}
    stats |= {f"AP{AREAS[a][0]}": mean(precision[..., a, -1]) for a in (1, 2, 3)}
    for group in FREQUENCIES:
        stats[f"AP{group}"] = mean(precision[:, :, np.array(frequencies) == group, 0, -1])
    stats |= {f"AR{AREAS[a][0] if a else ''}@{limit}": mean(recall[..., a, -1]) for a in range(4)}
    return stats


def _hotcoco(truth: GroundTruth, results: Results, iou_type: str, areas: Floats) -> Arrays:
    from hotcoco import COCO, COCOeval, LVISResults

    coco = COCO(truth.as_coco())
    taken = list(results.rows(iou_type)) if iou_type == "segm" else results.table()
    run = COCOeval(coco, LVISResults(coco, taken, max_dets=-1), iou_type, lvis_style=True)
    run.evaluate()
    run.accumulate()
    return arrays(run.eval or {})


def _faster(truth: GroundTruth, results: Results, iou_type: str, areas: Floats) -> Arrays:
    from faster_coco_eval import COCO, COCOeval_faster

    coco = COCO(truth.as_coco())
    run = COCOeval_faster(coco, coco.loadRes(list(results.rows(iou_type))), iou_type, lvis_style=True)
    run.params.maxDets = [1, 10, max(100, len(results))]
    run.evaluate()
    run.accumulate()
    return arrays(run.eval)


_RUN: dict[str, Callable[[GroundTruth, Results, str, Floats], Arrays]] = {
    "hotcoco": _hotcoco,
    "faster": _faster,
    "pycocotools": match_all,
}
