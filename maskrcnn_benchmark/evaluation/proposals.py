"""Recall of class-agnostic boxes, as the maskrcnn-benchmark lineage measures it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.check import GroundTruth, ImageId, Row, check_ground_truth, read_coco
from maskrcnn_benchmark.evaluation.coco import digest
from maskrcnn_benchmark.evaluation.collector import SHOWN
from maskrcnn_benchmark.evaluation.report import table, write_files
from maskrcnn_benchmark.structures import Detections
from maskrcnn_benchmark.structures.boxes import iou, xywh_to_xyxy

logger = logging.getLogger(__name__)

AREA_RANGES = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}
LIMITS = (100, 1000)


class ProposalEvaluator:
    """Mean recall over IoU 0.5:0.05:0.95, by number of boxes and size of the object.

    The pair of the largest IoU is taken first and its two boxes set aside, and so on. Crowds do not count; sizes are
    those of the annotations' ``area``, borders included. Boxes hold their last pixel. What they are called does not
    matter. Of each picture only the overlaps of its objects are kept.

    Args:
        annotations: COCO annotation file, or what it holds.
        limits: How many of a picture's best boxes count.

    Raises:
        DataError: the annotations are wrong.
    """

    def __init__(self, annotations: Row | str | Path, limits: Sequence[int] = LIMITS):
        coco, self.where = read_coco(annotations)
        self.digest, self.limits, self.main = digest(annotations), tuple(limits), f"AR@{limits[-1]}"
        truth = check_ground_truth(coco, self.where)
        self.notes = truth.notes
        self._waiting = _objects(truth)
        self._overlaps: dict[str, list[Tensor]] = {name: [] for name in _names(self.limits)}
        self._counts = {"pictures": len(self._waiting), "objects": sum(len(b) for b, _ in self._waiting.values())}
        self._detections = 0
        self._known = frozenset(self._waiting)

    def update(self, detections: Sequence[Detections]) -> None:
        """Add the boxes of some pictures, in any order, in pixels of the picture on disk.

        Raises:
            DataError: a picture is not in the set, or has been added before.
        """
        for found in detections:
            image_id = found.meta.image_id
            if image_id not in self._known:
                raise DataError(f"picture {image_id!r} ({found.meta.file}) was scored but is not in {self.where}")
            if image_id not in self._waiting:
                raise DataError(f"picture {image_id!r} ({found.meta.file}) was scored twice; each may count once")
            for name, overlaps in _overlaps(found.boxes, *self._waiting.pop(image_id), self.limits).items():
                self._overlaps[name].append(overlaps)
            self._detections += len(found)

    def summary(self) -> dict[str, float]:
        """``{"AR@100": ..., "ARs@100": ..., "ARm@100": ..., "ARl@100": ...}`` for every limit; -1: no such objects.

        Raises:
            DataError: a picture of the set has not been added.
        """
        if self._waiting:
            names = ", ".join(map(repr, list(self._waiting)[:SHOWN])) + ", ..." * (len(self._waiting) > SHOWN)
            raise DataError(
                f"{len(self._known) - len(self._waiting)} pictures scored, but {self.where} has {len(self._known)}: no "
                f"result is reported for a part of a set (without boxes: picture {names}); mend or remove those"
            )
        return {name: _mean_recall(torch.cat(overlaps)) for name, overlaps in self._overlaps.items()}

    def table(self) -> str:
        """The numbers for people: a row for each number of boxes."""
        numbers = self.summary()
        rows = [[limit, *(numbers[f"AR{letter}@{limit}"] for letter in AREA_RANGES)] for limit in self.limits]
        return table(["boxes", *(f"AR{letter}" for letter in AREA_RANGES)], rows)

    def write(self, folder: str | Path, card: Mapping[str, object] | None = None) -> None:
        """Write ``box_proposals.json`` (the numbers) and ``results.json``, both or none, and log the table.

        Raises:
            DataError: a picture of the set has not been added.
        """
        documents = {
            "box_proposals.json": {"box_proposal": self.summary()},
            "results.json": self.card() | dict(card or {}),
        }
        files = {
            name: json.dumps(content, indent=2, ensure_ascii=False).encode() for name, content in documents.items()
        }
        write_files(Path(folder), files)
        logger.info("%s\n%s", self.where, self.table())

    def card(self) -> dict[str, Any]:
        """Numbers, and what they were measured on and with."""
        return {
            "metrics": self.summary(),
            "main": self.main,
            "counts": {**self._counts, "detections": self._detections},
            "protocol": {"name": "proposals", "limits": list(self.limits)},
            "notes": list(self.notes),
            "annotations": {"file": self.where, "sha256": self.digest},
        }


def proposal_recall(
    truth: GroundTruth, detections: Mapping[int | str, Detections], limits: Sequence[int] = LIMITS
) -> dict[str, float]:
    """The numbers of :class:`ProposalEvaluator`, from checked annotations and the detections of each picture id."""
    parts: dict[str, list[Tensor]] = {name: [] for name in _names(limits)}
    for image_id, (boxes, areas) in _objects(truth).items():
        for name, overlaps in _overlaps(detections[image_id].boxes, boxes, areas, limits).items():
            parts[name].append(overlaps)
    return {name: _mean_recall(torch.cat(overlaps)) for name, overlaps in parts.items()}


def _names(limits: Sequence[int]) -> list[str]:
    return [f"AR{letter}@{limit}" for limit in limits for letter in AREA_RANGES]


def _objects(truth: GroundTruth) -> dict[ImageId, tuple[Tensor, Tensor]]:
    """Picture id -> boxes (N, 4) xyxy with the last pixel inside, and areas (N,)."""
    rows: dict[int, list[Row]] = {number: [] for number in truth.number.values()}
    for row in truth.annotations:
        if not row["iscrowd"]:
            rows[row["image_id"]].append(row)
    return {
        image_id: (
            xywh_to_xyxy(torch.tensor([row["bbox"] for row in rows[number]]).reshape(-1, 4), plus_one=True),
            torch.tensor([float(row["area"]) for row in rows[number]], dtype=torch.float64),
        )
        for image_id, number in truth.number.items()
    }


def _overlaps(found: Tensor, boxes: Tensor, areas: Tensor, limits: Sequence[int]) -> dict[str, Tensor]:
    """For every number of boxes and size of object, the IoU with which each object of a picture is covered."""
    overlaps = {}
    for limit in limits:
        for letter, (low, high) in AREA_RANGES.items():
            fits = (low <= areas) & (areas <= high)
            overlaps[f"AR{letter}@{limit}"] = _best_overlaps(found[:limit], boxes[fits])
    return overlaps


def _best_overlaps(found: Tensor, wanted: Tensor) -> Tensor:
    """(N,) IoU with which each of N objects is covered by K boxes, every box used once."""
    covered = torch.zeros(len(wanted))
    overlaps = iou(found, wanted, plus_one=True)
    for turn in range(min(overlaps.shape)):
        best = int(overlaps.argmax())
        row, column = divmod(best, overlaps.shape[1])
        covered[turn] = overlaps[row, column]
        overlaps[row], overlaps[:, column] = -1, -1
    return covered


def _mean_recall(overlaps: Tensor) -> float:
    thresholds = torch.arange(0.5, 0.95 + 1e-5, 0.05)
    if not len(overlaps):
        return -1.0
    return float((overlaps >= thresholds[:, None]).float().mean(dim=1).mean())
