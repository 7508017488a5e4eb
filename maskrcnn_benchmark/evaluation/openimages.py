"""AP at an IoU of 0.5 by the rules of the OpenImages challenge 2019, with its expanded hierarchy.

Kuznetsova et al., The Open Images Dataset V4, IJCV 2020; in the form in which Detic and DECOLA have the annotations:
LVIS's, with ``pos_category_ids`` and ``neg_category_ids`` for each picture and ``iscrowd`` for a box around a group.
A box of a class is also one of the classes above it: the annotations say so ("expanded"), and with a hierarchy
detections do too.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.check import GroundTruth, Row, check_ground_truth, read_coco
from maskrcnn_benchmark.evaluation.coco import digest
from maskrcnn_benchmark.evaluation.collector import Collector
from maskrcnn_benchmark.evaluation.columns import Floats, Ints, Results, json_list
from maskrcnn_benchmark.evaluation.report import Content, table, write_files
from maskrcnn_benchmark.structures import Detections

logger = logging.getLogger(__name__)

IOU = 0.5
LABELS = ("pos_category_ids", "neg_category_ids")


class OpenImagesEvaluator:
    """Collects the detections of every picture of a set, then scores them once.

    Only classes that have been looked for in a picture count there. A detection belongs to the object that it covers
    best, if no better one does; one that belongs to none, and half of which lies in a group, is neither right nor
    wrong, but each group found is one right answer.

    Args:
        annotations: Annotation file, or what it holds.
        label_to_category: Label of the detections -> category id; default: labels are category ids.
        per_image: Best detections of a picture that count.
        hierarchy: The challenge's file of classes below classes; None: detections are of their own class only.

    Raises:
        DataError: the annotations or the hierarchy are wrong.
    """

    main = "AP50"

    def __init__(
        self,
        annotations: Row | str | Path,
        label_to_category: Mapping[int, int] | None = None,
        *,
        per_image: int = 300,
        hierarchy: Row | str | Path | None = None,
    ):
        coco, self.where = read_coco(annotations)
        self.truth: GroundTruth = check_ground_truth(coco, self.where)
        self._looked_for = {image["id"]: _labels(image, self.where) for image in self.truth.images}
        for row in self.truth.annotations:
            if row["category_id"] not in self._looked_for[row["image_id"]]:
                raise DataError(
                    f"{self.where}: annotation {row['id']} is of category {row['category_id']}, which is not in "
                    f"{' or '.join(LABELS)} of its picture: correct the picture's lists"
                )
        self.names = {row["id"]: str(row.get("name", row["id"])) for row in self.truth.categories}
        self.per_image, self.digest = per_image, digest(annotations)
        self.above = {} if hierarchy is None else _above(hierarchy, self.truth.categories)
        labels = label_to_category or {category: category for category in self.names}
        self.found = Collector(self.truth.number, self.where, labels)
        self._scores: dict[int, float] | None = None

    def update(self, detections: Sequence[Detections]) -> None:
        """Add the detections of some pictures, in any order; boxes in pixels of the picture on disk.

        Raises:
            DataError: a picture is not in the set, or has been added before.
        """
        for found in detections:
            self.found.add(found[: self.per_image])
        self._scores = None

    def per_category(self) -> dict[int, float]:
        """Category id -> AP50, of the classes that have objects.

        Raises:
            DataError: a picture of the set has not been scored.
        """
        if self._scores is None:
            results = self._expanded(self.found.results(plus_one=False))
            objects: dict[int, list[Row]] = {}
            for row in self.truth.annotations:
                objects.setdefault(row["category_id"], []).append(row)
            self._scores = {
                category: self._one_class(results[results.category == category], objects[category])
                for category in self.names
                if category in objects
            }
        return self._scores

    def _expanded(self, results: Results) -> Results:
        """With a copy of each detection for each class above its own, of classes that were looked for."""
        pairs = [
            (row, category)
            for row, own in enumerate(results.category.tolist())
            for category in (own, *self.above.get(own, ()))
            if category in self._looked_for[int(results.picture[row])]
        ]
        rows = np.array([row for row, _ in pairs], np.int64)
        chosen = results[rows]
        categories = np.array([category for _, category in pairs], np.int64)
        return Results(chosen.picture, categories, chosen.boxes, chosen.scores, chosen.masks)

    def _one_class(self, results: Results, objects: Sequence[Row]) -> float:
        of_picture: dict[int, list[Row]] = {}
        for row in objects:
            of_picture.setdefault(row["image_id"], []).append(row)
        scores, right = [], []
        for picture in np.unique(results.picture).tolist():
            mine = results[results.picture == picture]
            best = mine[np.argsort(-mine.scores, kind="stable")]
            for score, hit in zip(*_judged(best, of_picture.get(picture, [])), strict=True):
                scores.append(score)
                right.append(hit)
        return average_precision(np.array(scores), np.array(right, bool), len(objects))

    def summary(self) -> dict[str, float]:
        """AP50: the mean over the classes that have objects, 0..1; -1: there are none."""
        scores = self.per_category()
        return {"AP50": sum(scores.values()) / len(scores) if scores else -1.0}

    def table(self) -> str:
        """The numbers for people: all of the set, then by class."""
        objects = Counter(row["category_id"] for row in self.truth.annotations)
        rows = [[self.names[category], objects[category], score] for category, score in self.per_category().items()]
        whole = table(["OpenImages", "AP50"], [["expanded", self.summary()["AP50"]]])
        return "\n".join([whole, table(["class", "objects", "AP50"], rows)])

    def write(self, folder: str | Path, card: Mapping[str, object] | None = None) -> None:
        """Write bbox.json (COCO results) and results.json, both or none, and log the table.

        Raises:
            DataError: a picture of the set has not been scored.
        """
        results = self.found.results(plus_one=False)
        files: dict[str, Content] = {
            "bbox.json": json_list(results.rows("bbox", self.truth.image_ids)),
            "results.json": json.dumps(self.card() | dict(card or {}), indent=2, ensure_ascii=False).encode(),
        }
        write_files(Path(folder), files)
        logger.info("%s\n%s", self.where, self.table())

    def card(self) -> dict[str, Any]:
        """Numbers, and what they were measured on and with."""
        rows = [{"id": c, "name": self.names[c], "AP50": score} for c, score in self.per_category().items()]
        return {
            "metrics": self.summary(),
            "main": self.main,
            "per_category": {"bbox": rows},
            "counts": {
                "pictures": self.found.pictures,
                "objects": len(self.truth.annotations),
                "categories": len(self.names),
                "detections": len(self.found.columns()),
                "detections_with_unknown_labels": self.found.unknown_labels,
            },
            "protocol": {"name": "openimages", "per_image": self.per_image, "detections_expanded": bool(self.above)},
            "notes": list(self.truth.notes),
            "annotations": {"file": self.where, "sha256": self.digest},
        }


def _judged(results: Results, objects: Sequence[Row]) -> tuple[list[float], list[bool]]:
    """Scores, and whether they are right answers, of detections of one class in one picture, best first."""
    groups = np.array([bool(row["iscrowd"]) for row in objects], bool)
    overlap = np.zeros((len(results), len(objects)))
    if objects:
        boxes = np.array([row["bbox"] for row in objects], np.float64)
        overlap = np.asarray(mask_api.iou(results.boxes, boxes, groups.astype(np.uint8)))  # of a group: the part in it
    right, group = _matched(overlap[:, ~groups]), _best(overlap[:, groups])
    inside = ~right & (group >= 0)
    of_groups = [float(results.scores[inside & (group == number)][0]) for number in np.unique(group[inside])]
    alone = results.scores[~inside].tolist()
    return [*alone, *of_groups], [*right[~inside].tolist(), *[True] * len(of_groups)]


def _best(overlap: Floats) -> Ints:
    """(D, G) -> (D,) the object that each detection covers best, -1: it covers none well enough."""
    if not overlap.shape[1]:
        return np.full(len(overlap), -1)
    return np.where(overlap.max(axis=1) >= IOU, overlap.argmax(axis=1), -1)


def _matched(overlap: Floats) -> np.ndarray:
    """(D,) bool: the first to cover its object."""
    best = _best(overlap)
    first = np.zeros(len(best), bool)
    first[np.unique(best, return_index=True)[1]] = True
    return first & (best >= 0)


def average_precision(scores: Floats, right: np.ndarray, objects: int) -> float:
    """The area below the curve of precision, made non-increasing, over recall."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    if not len(hits):
        return 0.0
    recall = np.concatenate([[0.0], hits / objects])
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * precision).sum())


def _labels(image: Row, where: str) -> set[int]:
    """Classes that were looked for in a picture."""
    for key in LABELS:
        if not isinstance(image.get(key), list):
            raise DataError(
                f"{where}: image {image['id']}: {key} {image.get(key)!r:.40} is no list of category ids: the form of "
                "OpenImages says for each picture which classes are there and which are not; without, evaluate as COCO"
            )
    return {*image[LABELS[0]], *image[LABELS[1]]}


def _above(source: Row | str | Path, categories: Iterable[Row]) -> dict[int, tuple[int, ...]]:
    """Category id -> those above it, by the tree of the challenge; its root is no class."""
    tree, where = read_coco(source)
    ids = {row.get("freebase_id"): row["id"] for row in categories}
    above: dict[int, set[int]] = {}

    def walk(node: Row, path: tuple[int, ...]) -> None:
        for child in node.get("Subcategory", ()):
            if child.get("LabelName") not in ids:
                raise DataError(f"{where}: {child.get('LabelName')!r} is the freebase_id of no category")
            own = ids[child["LabelName"]]
            above.setdefault(own, set()).update(path)
            walk(child, (*path, own))

    walk(tree, ())
    return {category: tuple(sorted(others - {category})) for category, others in above.items()}
