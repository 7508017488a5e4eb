"""PASCAL VOC average precision, by the rules of two lineages that differ in a pixel here and a digit there."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from maskrcnn_benchmark.data.datasets.voc import VocDataset, VocObjects
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.evaluation.collector import Collector
from maskrcnn_benchmark.evaluation.columns import Columns, Floats, Ints
from maskrcnn_benchmark.evaluation.report import Content, table, write_files
from maskrcnn_benchmark.structures import Detections
from maskrcnn_benchmark.structures.boxes import iou

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
HIT, MISS, IGNORED = 1, 0, -1


@dataclass(frozen=True)
class Rule:
    """How detections are compared with objects and put in order.

    Attributes:
        read: Boxes (N, 4) and scores (N,) as they count.
        objects: Boxes (M, 4) of :class:`VocObjects` likewise.
        hits: Whether an overlap reaches a threshold.
        order: (N,) scores of a class, pictures in order -> (N,) who takes an object first.
        curve: That order, scores and pictures of all detections -> the order along the curve of precision and recall.
    """

    read: Callable[[Columns], tuple[Array, Array]]
    objects: Callable[[Array], Array]
    hits: Callable[[Array, float], Array]
    order: Callable[[Array], Ints]
    curve: Callable[[Ints, Array, Array], Ints]


@dataclass(frozen=True)
class Protocol:
    """How a VOC number comes about.

    Attributes:
        rule: Of :data:`LINEAGE` or :data:`DEVKIT`.
        eleven_points: Precision at recall 0, 0.1, ..., 1, as of 2007; else the area under the curve.
        thresholds: IoU from which on an object counts as found.
        skip_empty: Leave out pictures without detections, with the objects in them.
    """

    rule: Rule
    eleven_points: bool
    thresholds: tuple[float, ...] = (0.5,)
    skip_empty: bool = False


def _last_pixel_twice(boxes: Array) -> Array:
    """One more at the right and below, before an IoU that counts the last pixel anyway: as maskrcnn-benchmark does."""
    return boxes + np.array([0, 0, 1, 1], boxes.dtype)


def _rounded(values: Array, digits: int) -> Array:
    """Through text, as the devkit's result files have them."""
    return np.array([float(f"{value:.{digits}f}") for value in values.ravel().tolist()]).reshape(values.shape)


def _written(columns: Columns) -> tuple[Array, Array]:
    """As detectron2 writes them: 1-based left and top edge, right and bottom edge as they are."""
    return _rounded(columns.boxes + np.array([1, 1, 0, 0], columns.boxes.dtype), 1), _rounded(columns.scores, 3)


def _later_first(scores: Array) -> Ints:
    return np.argsort(scores, kind="stable")[::-1]


def _sorted_again(order: Ints, scores: Array, pictures: Array) -> Ints:
    """Picture by picture, then by score: of equal scores the later picture, but the first within it."""
    by_picture = order[np.argsort(pictures[order], kind="stable")]
    return by_picture[_later_first(scores[by_picture])]


LINEAGE = Rule(
    read=lambda columns: (_last_pixel_twice(columns.boxes), columns.scores),
    objects=_last_pixel_twice,
    hits=np.greater_equal,
    order=_later_first,
    curve=_sorted_again,
)
"""maskrcnn-benchmark (FIBER, GLIP, DAP); it sorts upwards and turns that round: of equal scores the later one leads."""

DEVKIT = Rule(
    read=_written,
    objects=lambda boxes: boxes.astype(np.float64) + 1,
    hits=np.greater,
    order=lambda scores: np.argsort(-scores),  # not stable: scores of three digits have ties, and it must be this sort
    curve=lambda order, scores, pictures: order,
)
"""detectron2, after the devkit: boxes and scores with the digits of its result files."""

_COCO_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
PROTOCOLS = {
    "lineage": Protocol(LINEAGE, eleven_points=True),
    "lineage_area": Protocol(LINEAGE, eleven_points=False),
    "lineage_skip_empty": Protocol(LINEAGE, eleven_points=True, skip_empty=True),
    "lineage_area_skip_empty": Protocol(LINEAGE, eleven_points=False, skip_empty=True),
    "07": Protocol(DEVKIT, eleven_points=True, thresholds=_COCO_THRESHOLDS),
    "12": Protocol(DEVKIT, eleven_points=False, thresholds=_COCO_THRESHOLDS),
}
"""The lineage's own tool is "lineage_skip_empty", whose numbers are too high where pictures have no detection."""


def voc_ap(columns: Columns, truth: Sequence[VocObjects], classes: int, protocol: Protocol) -> Floats:
    """Average precision of every class at every threshold.

    Args:
        columns: Detections by picture 1, 2, ..., each picture's best first; labels from 1.
        truth: Objects of picture 1, 2, ...
        classes: How many there are.
        protocol: One of :data:`PROTOCOLS`.

    Returns:
        (classes, thresholds) 0..1; NaN for a class without objects that count.
    """
    rule = protocol.rule
    boxes, scores = rule.read(columns)
    orders = []  # of each class
    turn = np.zeros(len(columns), np.int64)
    for label in range(1, classes + 1):
        mine = np.flatnonzero(columns.labels == label)
        orders.append(mine[rule.order(scores[mine])])
        turn[orders[-1]] = np.arange(len(mine))
    outcomes, wanted = _outcomes(columns, boxes, turn, truth, protocol)
    precision = np.full((classes, len(protocol.thresholds)), np.nan)
    for index in np.flatnonzero(np.bincount(wanted, minlength=classes + 1)[1:]):
        of_class = outcomes[rule.curve(orders[index], scores, columns.picture)]
        objects = int((wanted == index + 1).sum())
        precision[index] = [average_precision(column, objects, protocol.eleven_points) for column in of_class.T]
    return precision


def _outcomes(
    columns: Columns, boxes: Array, turn: Ints, truth: Sequence[VocObjects], protocol: Protocol
) -> tuple[Array, Ints]:
    """(N, thresholds) HIT, MISS or IGNORED of each detection, and the labels of the objects that there are to find."""
    first = np.searchsorted(columns.picture, np.arange(1, len(truth) + 2))
    outcomes = np.full((len(columns), len(protocol.thresholds)), MISS, np.int8)
    wanted = [np.zeros(0, np.int64)]
    for number, objects in enumerate(truth):
        mine = np.arange(first[number], first[number + 1])
        if protocol.skip_empty and not len(mine):
            continue
        wanted.append(objects.labels[~objects.difficult])
        if len(mine) and len(objects.labels):
            mine = mine[np.argsort(turn[mine], kind="stable")]
            outcomes[mine] = _of_picture(boxes[mine], columns.labels[mine], objects, protocol)
    return outcomes, np.concatenate(wanted)


def _of_picture(boxes: Array, labels: Array, objects: VocObjects, protocol: Protocol) -> Array:
    """(N, thresholds) of one picture, each class's best first.

    A detection stands for the object of its class that it covers best, even where a better one has it already.
    """
    overlaps = iou(torch.from_numpy(boxes), torch.from_numpy(protocol.rule.objects(objects.boxes)), plus_one=True)
    same_class = np.where(labels[:, None] == objects.labels, overlaps.numpy(), -1)
    best, top = same_class.argmax(axis=1), same_class.max(axis=1)
    outcomes = np.full((len(boxes), len(protocol.thresholds)), MISS, np.int8)
    for index, threshold in enumerate(protocol.thresholds):
        hit = np.flatnonzero(protocol.rule.hits(top, threshold))
        outcomes[hit[np.unique(best[hit], return_index=True)[1]], index] = HIT
        outcomes[hit[objects.difficult[best[hit]]], index] = IGNORED
    return outcomes


def average_precision(outcomes: Array, wanted: int, eleven_points: bool) -> float:
    """Of one class.

    Args:
        outcomes: (N,) HIT, MISS or IGNORED of its detections, best first.
        wanted: How many objects there are to find.
        eleven_points: See :class:`Protocol`.
    """
    hits, misses = np.cumsum(outcomes == HIT), np.cumsum(outcomes == MISS)
    recall, precision = hits / wanted, hits / np.maximum(hits + misses, 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this recall or a higher one
    if eleven_points:
        place = np.searchsorted(recall, np.arange(0.0, 1.1, 0.1))
        return float(np.append(envelope, 0.0)[place].sum() / 11)
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


class VocEvaluator:
    """Collects the detections of every picture, then scores them once.

    Boxes have their last pixel inside, as in all of maskrcnn-benchmark, for the protocols that are called after that
    lineage; "07" and "12" take right and bottom edges as detectron2 does.

    Args:
        truth: Picture id -> objects, in the order of the data set.
        names: Class names by label, from 1.
        protocol: One of :data:`PROTOCOLS`.
        where: What the annotations are called in messages.
        digest: sha256 of the annotations, for the record.

    Raises:
        ConfigError: there is no such protocol.
        DataError: nothing to evaluate on.
    """

    main = "AP50"

    def __init__(
        self,
        truth: Mapping[int | str, VocObjects],
        names: Sequence[str],
        protocol: str = "lineage",
        where: str = "annotations",
        digest: str | None = None,
    ):
        if protocol not in PROTOCOLS:
            raise ConfigError(f"no VOC protocol {protocol!r}. Choices: {', '.join(PROTOCOLS)}")
        if not truth:
            raise DataError(f"{where}: there is no picture to evaluate on")
        self.truth, self.names, self.protocol = list(truth.values()), list(names), protocol
        self.where, self.digest = where, digest
        labels = {label: label for label in range(1, len(names) + 1)}
        self._found = Collector({image_id: number for number, image_id in enumerate(truth, 1)}, where, labels)
        self._scores: Floats | None = None

    @classmethod
    def of(cls, dataset: VocDataset, protocol: str = "lineage") -> VocEvaluator:
        """The evaluator of a data set.

        Raises:
            ConfigError: there is no such protocol.
        """
        truth: dict[int | str, VocObjects] = dict(zip(dataset.ids, dataset.objects, strict=True))
        return cls(truth, dataset.classes, protocol, str(dataset.annotations), dataset.digest)

    def update(self, detections: Sequence[Detections]) -> None:
        """Add the detections of some pictures; boxes in pixels of the picture on disk.

        Raises:
            DataError: a picture is not in the set, or has been added before.
        """
        for found in detections:
            self._found.add(found)
        self._scores = None

    def scores(self) -> Floats:
        """(classes, thresholds) 0..1; NaN for a class without objects that count.

        Raises:
            DataError: a picture of the set has not been scored.
        """
        if self._scores is None:
            columns = self._found.columns()
            self._scores = voc_ap(columns, self.truth, len(self.names), PROTOCOLS[self.protocol])
        return self._scores

    def summary(self) -> dict[str, float]:
        """AP50, and AP (over IoU 0.5:0.95) and AP75 with the protocols "07" and "12": means over classes, 0..1.

        Raises:
            DataError: a picture of the set has not been scored.
        """
        scores = self.scores()
        return self._named(scores[~np.isnan(scores).any(axis=1)])

    def per_category(self) -> list[dict[str, Any]]:
        """Per class: id, name, objects that count, difficult ones, and the numbers of :meth:`summary`."""
        labels = np.concatenate([objects.labels for objects in self.truth])
        difficult = np.concatenate([objects.difficult for objects in self.truth])
        counts = [
            np.bincount(labels[which], minlength=len(self.names) + 1).tolist() for which in (~difficult, difficult)
        ]
        return [
            {"id": label, "name": name, "objects": counts[0][label], "difficult": counts[1][label]}
            | self._named(row[None][~np.isnan(row).any(keepdims=True)])
            for label, (name, row) in enumerate(zip(self.names, self.scores(), strict=True), 1)
        ]

    def _named(self, scores: Floats) -> dict[str, float]:
        """Means of the classes in (K, thresholds)."""
        thresholds = PROTOCOLS[self.protocol].thresholds
        means = scores.mean(axis=0) if len(scores) else np.full(len(thresholds), -1.0)
        numbers = {f"AP{round(100 * t)}": float(value) for t, value in zip(thresholds, means, strict=True)}
        if len(thresholds) == 1:
            return numbers
        return {"AP": float(means.mean()), "AP50": numbers["AP50"], "AP75": numbers["AP75"]}

    def table(self) -> str:
        """The numbers for people: all of the set, then by class."""
        summary = self.summary()
        rows = [
            [row["name"], row["objects"], row["difficult"], *(row[n] for n in summary)] for row in self.per_category()
        ]
        return "\n".join(
            [
                table([f"VOC {self.protocol}", *summary], [["all", *summary.values()]]),
                table(["class", "objects", "difficult", *summary], rows),
            ]
        )

    def result_txt(self) -> str:
        """maskrcnn-benchmark's ``result.txt``, at IoU 0.5: the mean, then a line for each class ("nan": no objects)."""
        lines = [f"mAP: {self.summary()['AP50']:.4f}"]
        lines += [f"{name:<16}: {score:.4f}" for name, score in zip(self.names, self.scores()[:, 0], strict=True)]
        return "\n".join(lines) + "\n"

    def write(self, folder: str | Path, card: Mapping[str, object] | None = None) -> None:
        """Write ``result.txt``, ``predictions.pth`` (plain dicts of tensors) and ``results.json``, all or none.

        Raises:
            DataError: a picture of the set has not been scored.
        """
        document = json.dumps(self.card() | dict(card or {}), indent=2, ensure_ascii=False)
        files: dict[str, Content] = {
            "result.txt": self.result_txt().encode(),
            "predictions.pth": lambda path: torch.save(self._found.predictions(), path),
            "results.json": document.encode(),
        }
        write_files(Path(folder), files)
        logger.info("%s\n%s", self.where, self.table())

    def card(self) -> dict[str, Any]:
        """Numbers, and what they were measured on and with."""
        rows = self.per_category()
        return {
            "metrics": self.summary(),
            "main": self.main,
            "per_category": {"bbox": rows},
            "counts": {
                "pictures": self._found.pictures,
                "objects": sum(row["objects"] for row in rows),
                "difficult": sum(row["difficult"] for row in rows),
                "categories": len(self.names),
                "detections": len(self._found.columns()),
                "detections_with_unknown_labels": self._found.unknown_labels,
            },
            "protocol": {"name": f"voc_{self.protocol}"},
            "notes": [],
            "annotations": {"file": self.where, "sha256": self.digest},
        }
