"""Recall of class-agnostic boxes, as the maskrcnn-benchmark lineage measures it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from maskrcnn_benchmark.evaluation.check import GroundTruth
from maskrcnn_benchmark.structures import Detections
from maskrcnn_benchmark.structures.boxes import iou, xywh_to_xyxy

AREA_RANGES = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}


def proposal_recall(
    truth: GroundTruth, detections: Mapping[int | str, Detections], limits: Sequence[int] = (100, 1000)
) -> dict[str, float]:
    """Mean recall over IoU 0.5:0.05:0.95, by number of boxes and size of the object.

    The pair of the largest IoU is taken first and its two boxes set aside, and so on. Crowds do not count; sizes are
    those of the annotations' ``area``, borders included. Boxes hold their last pixel.

    Args:
        truth: Checked annotations.
        detections: Picture id -> boxes, best first, in pixels of the picture.
        limits: How many boxes of a picture count.

    Returns:
        ``{"AR@100": ..., "ARs@100": ..., "ARm@100": ..., "ARl@100": ...}`` for every limit.
    """
    objects: dict[int, list[tuple[list[float], float]]] = {number: [] for number in truth.number.values()}
    for row in truth.annotations:
        if not row["iscrowd"]:
            objects[row["image_id"]].append((row["bbox"], float(row["area"])))
    recalls = {}
    for limit in limits:
        for letter, (low, high) in AREA_RANGES.items():
            best = []
            for image_id, number in truth.number.items():
                boxes = [box for box, area in objects[number] if low <= area <= high]
                best.append(_best_overlaps(detections[image_id].boxes[:limit], torch.tensor(boxes).reshape(-1, 4)))
            recalls[f"AR{letter}@{limit}"] = _mean_recall(torch.cat(best))
    return recalls


def _best_overlaps(found: Tensor, wanted: Tensor) -> Tensor:
    """(N,) IoU with which each of N objects (x, y, w, h) is covered by K boxes (xyxy), every box used once."""
    covered = torch.zeros(len(wanted))
    overlaps = iou(found, xywh_to_xyxy(wanted, plus_one=True), plus_one=True)
    for turn in range(min(overlaps.shape)):
        best = int(overlaps.argmax())
        row, column = divmod(best, overlaps.shape[1])
        covered[turn] = overlaps[row, column]
        overlaps[row], overlaps[:, column] = -1, -1
    return covered


def _mean_recall(overlaps: Tensor) -> float:
    thresholds = torch.arange(0.5, 0.95 + 1e-5, 0.05)
    if not len(overlaps):
        return 0.0
    return float((overlaps >= thresholds[:, None]).float().mean(dim=1).mean())
