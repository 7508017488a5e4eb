"""COCO AP and AR by one of three engines, all behind the same checks and with the same numbers.

hotcoco is the default because it is 10 to 50 times faster than the others; pycocotools is the reference.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.evaluation.check import GroundTruth, Row, check_columns, check_results
from maskrcnn_benchmark.evaluation.columns import Floats, Results

logger = logging.getLogger(__name__)

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = ("all", "small", "medium", "large")
MAX_DETS = (1, 10, 100)


@dataclass(frozen=True)
class CocoScores:
    """What an engine found. -1 stands for "no ground truth to measure on"."""

    stats: dict[str, float]  # the twelve numbers, 0..1
    per_category: dict[int, dict[str, float]]  # category id -> AP, AP50, AR@max; empty when categories are pooled
    precision: Floats  # (10 IoU thresholds, 101 recalls, categories, 4 areas, 3 limits)
    recall: Floats  # (10 IoU thresholds, categories, 4 areas, 3 limits)
    engine: str
    version: str
    notes: tuple[str, ...]


def choose_engine(name: str = "auto") -> str:
    """The engine that a name stands for; "auto" is the fastest one installed.

    Raises:
        ConfigError: there is no such engine, or its package is not installed.
    """
    if name == "auto":
        return next(engine for engine, (module, *_) in ENGINES.items() if importlib.util.find_spec(module))
    if name not in ENGINES:
        raise ConfigError(f"TEST.EVAL_ENGINE: no evaluation engine {name!r}. Choices: auto, {', '.join(ENGINES)}")
    module, package, _ = ENGINES[name]
    if not importlib.util.find_spec(module):
        raise ConfigError(
            f"TEST.EVAL_ENGINE {name!r} needs the package {package}: pip install {package}, or use 'auto'"
        )
    return name


def evaluate_coco(
    truth: GroundTruth,
    results: Sequence[Row] | Results,
    *,
    iou_type: str = "bbox",
    use_cats: bool = True,
    max_dets: Sequence[int] = MAX_DETS,
    engine: str = "auto",
) -> CocoScores:
    """Score results.

    Args:
        truth: Of :func:`~maskrcnn_benchmark.evaluation.check.check_ground_truth`.
        results: Columns, or ``{image_id, category_id, bbox [x, y, w, h] | segmentation, score}`` each, in pixels.
        iou_type: "bbox" or "segm".
        use_cats: False pools all categories (class-agnostic AP, as MDETR reports).
        max_dets: Three ascending limits on detections per picture and category.
        engine: "auto", "hotcoco", "faster" or "pycocotools".

    Raises:
        ConfigError: the engine is unknown or not installed.
        DataError: a result is of an unknown picture, or is no shape or no score.
    """
    engine = choose_engine(engine)
    _, package, run = ENGINES[engine]
    columns, notes = checked(results, truth, iou_type)
    with contextlib.redirect_stdout(io.StringIO()):  # two of the three print their progress
        precision, recall = run(truth.as_coco(), columns, iou_type, use_cats, list(max_dets))
    ids = [row["id"] for row in truth.categories] if use_cats else []
    return CocoScores(
        stats=_summary(precision, recall, max_dets),
        per_category={category: one_category(precision[:, :, k], recall[:, k]) for k, category in enumerate(ids)},
        precision=precision,
        recall=recall,
        engine=engine,
        version=version(package),
        notes=(*truth.notes, *notes),
    )


def checked(results: Sequence[Row] | Results, truth: GroundTruth, iou_type: str) -> tuple[Results, list[str]]:
    """Results as columns, and notes, which are logged.

    Raises:
        DataError: a result is of an unknown picture, or is no shape or no score.
    """
    if isinstance(results, Results):
        columns, notes = results, check_columns(results, truth, iou_type)
    else:
        columns, notes = check_results(results, truth, iou_type)
    for note in notes:
        logger.warning(note)
    return columns, notes


def _summary(precision: Floats, recall: Floats, max_dets: Sequence[int]) -> dict[str, float]:
    last = max_dets[-1]
    stats = {"AP": mean(precision[..., 0, -1])}
    stats |= {f"AP{int(100 * IOU_THRESHOLDS[t])}": mean(precision[t, ..., 0, -1]) for t in (0, 5)}
    stats |= {f"AP{AREAS[a][0]}": mean(precision[..., a, -1]) for a in (1, 2, 3)}
    stats |= {f"AR@{limit}": mean(recall[..., 0, m]) for m, limit in enumerate(max_dets)}
    stats |= {f"AR{AREAS[a][0]}@{last}": mean(recall[..., a, -1]) for a in (1, 2, 3)}
    return stats


def one_category(precision: Floats, recall: Floats) -> dict[str, float]:
    return {
        "AP": mean(precision[..., 0, -1]),
        "AP50": mean(precision[0, ..., 0, -1]),
        "AR@max": mean(recall[..., 0, -1]),
    }


def mean(values: Floats) -> float:
    """Of what was measured; -1 if nothing was."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else -1.0


Arrays = tuple[Floats, Floats]


def arrays(found: dict[str, Any]) -> Arrays:
    return np.ascontiguousarray(found["precision"], np.float64), np.ascontiguousarray(found["recall"], np.float64)


def _hotcoco(truth: dict[str, Any], results: Results, iou_type: str, use_cats: bool, max_dets: list[int]) -> Arrays:
    from hotcoco import COCO, COCOeval

    coco = COCO(truth)
    taken = list(results.rows(iou_type)) if iou_type == "segm" else results.table()
    run = COCOeval(coco, coco.load_res(taken), iou_type)
    run.params.use_cats, run.params.max_dets = use_cats, max_dets
    run.evaluate()
    run.accumulate()
    return arrays(run.eval or {})


def _faster(truth: dict[str, Any], results: Results, iou_type: str, use_cats: bool, max_dets: list[int]) -> Arrays:
    from faster_coco_eval import COCO, COCOeval_faster

    coco = COCO(truth)
    run = COCOeval_faster(coco, coco.loadRes(list(results.rows(iou_type))), iou_type)
    run.params.useCats, run.params.maxDets = int(use_cats), max_dets
    run.evaluate()
    run.accumulate()
    return arrays(run.eval)


def _pycocotools(truth: dict[str, Any], results: Results, iou_type: str, use_cats: bool, max_dets: list[int]) -> Arrays:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    run = COCOeval(coco, coco.loadRes(list(results.rows(iou_type))) if len(results) else COCO(), iou_type)
    run.params.useCats, run.params.maxDets = int(use_cats), max_dets
    run.evaluate()
    run.accumulate()
    return arrays(run.eval)


Engine = Callable[[dict[str, Any], Results, str, bool, list[int]], Arrays]
ENGINES: dict[str, tuple[str, str, Engine]] = {  # name -> (module, package, how to run it); the fastest first
    "hotcoco": ("hotcoco", "hotcoco", _hotcoco),
    "faster": ("faster_coco_eval", "faster-coco-eval", _faster),
    "pycocotools": ("pycocotools", "pycocotools", _pycocotools),
}
