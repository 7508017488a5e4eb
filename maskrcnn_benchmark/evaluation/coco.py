"""COCO box and mask AP of a detector, with the result files that FIBER writes."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_api

from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.check import GroundTruth, Row, check_ground_truth, read_coco
from maskrcnn_benchmark.evaluation.engine import CocoScores, choose_engine, evaluate_coco
from maskrcnn_benchmark.evaluation.report import coco_csv, table, write_files
from maskrcnn_benchmark.structures import Detections

logger = logging.getLogger(__name__)

SHOWN = 5


class CocoEvaluator:
    """Collects the detections of every picture of a set, then scores them once.

    Args:
        annotations: COCO annotation file, or what it holds.
        label_to_category: Label of the detections -> category id; detections with other labels are left out, counted.
        categories: Category rows (``{"id", "name"}``) that count; default: all of the file.
        engine: See :func:`~maskrcnn_benchmark.evaluation.engine.choose_engine`.
        plus_one: Boxes hold their last pixel (w = x2 - x1 + 1), as the maskrcnn-benchmark lineage has it on COCO data.
        iou_types: "bbox", "segm" or both; the first one gives the main numbers.
        use_cats: False pools all categories.

    Raises:
        DataError: the annotations are wrong, or a label leads to no category.
        ConfigError: the engine is unknown or not installed.
    """

    def __init__(
        self,
        annotations: Row | str | Path,
        label_to_category: Mapping[int, int],
        *,
        categories: Sequence[Row] | None = None,
        engine: str = "auto",
        plus_one: bool = True,
        iou_types: Sequence[str] = ("bbox",),
        use_cats: bool = True,
    ):
        coco, self.where = read_coco(annotations)
        self.truth: dict[str, GroundTruth] = {
            kind: check_ground_truth(coco, self.where, kind, categories) for kind in iou_types
        }
        self.engine, self.plus_one, self.use_cats = choose_engine(engine), plus_one, use_cats
        self.label_to_category = dict(label_to_category)
        self._labels = torch.tensor(list(label_to_category), dtype=torch.int64)
        self.names = {row["id"]: str(row.get("name", row["id"])) for row in self._main.categories}
        if lost := sorted(set(self.label_to_category.values()) - set(self.names)):
            raise DataError(f"{self.where}: labels lead to category ids {lost[:SHOWN]}, which are not in categories")
        self.digest = _digest(annotations)
        self.unknown_labels = 0
        self._detections: dict[int | str, Detections] = {}
        self._scores: dict[str, CocoScores] | None = None

    @property
    def _main(self) -> GroundTruth:
        return next(iter(self.truth.values()))

    def update(self, detections: Sequence[Detections]) -> None:
        """Add the detections of some pictures, in any order; boxes in pixels of the picture on disk.

        Raises:
            DataError: a picture is not in the set, or has been added before.
        """
        for found in detections:
            image_id = found.meta.image_id
            if image_id not in self._main.number:
                raise DataError(f"picture {image_id!r} ({found.meta.file}) was scored but is not in {self.where}")
            if image_id in self._detections:
                raise DataError(f"picture {image_id!r} ({found.meta.file}) was scored twice; each may count once")
            known = torch.isin(found.labels, self._labels)
            self.unknown_labels += int((~known).sum())
            self._detections[image_id] = found if bool(known.all()) else found[known]
        self._scores = None

    def _in_order(self) -> list[Detections]:
        """One per picture of the set, in the order of the data set (ascending ids)."""
        missing = [image_id for image_id in self._main.image_ids if image_id not in self._detections]
        if missing:
            names = ", ".join(map(repr, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
            raise DataError(
                f"{len(self._detections)} pictures scored, but {self.where} has {len(self._main.number)}: no result is "
                f"reported for a part of a set (without detections: picture {names}); mend or remove those pictures"
            )
        return [self._detections[image_id] for image_id in self._main.image_ids]

    def results(self, iou_type: str = "bbox") -> list[dict[str, Any]]:
        """Rows in COCO's results format, by ascending picture id and then by score.

        Raises:
            DataError: a picture of the set has not been scored.
        """
        rows: list[dict[str, Any]] = []
        for found in self._in_order():
            boxes = found.to_coco(self.label_to_category, self.plus_one)
            rows += boxes if iou_type == "bbox" else _mask_rows(boxes, found)
        return rows

    def scores(self) -> dict[str, CocoScores]:
        """iou type -> everything the engine found.

        Raises:
            DataError: a picture of the set has not been scored.
        """
        if self._scores is None:
            self._scores = {
                kind: evaluate_coco(
                    truth, self.results(kind), iou_type=kind, use_cats=self.use_cats, engine=self.engine
                )
                for kind, truth in self.truth.items()
            }
        return self._scores

    def summary(self) -> dict[str, float]:
        """The twelve COCO numbers, 0..1 (-1: no ground truth); of a second iou type as "segm/AP" and so on."""
        numbers: dict[str, float] = {}
        for index, (kind, scores) in enumerate(self.scores().items()):
            numbers |= {name if index == 0 else f"{kind}/{name}": value for name, value in scores.stats.items()}
        return numbers

    def per_category(self, iou_type: str | None = None) -> list[dict[str, Any]]:
        """Per class: id, name, objects that count, AP, AP50, AR@max."""
        scores = self.scores()[iou_type or next(iter(self.truth))]
        objects = Counter(row["category_id"] for row in self._main.annotations if not row["iscrowd"])
        return [
            {"id": category, "name": self.names[category], "objects": objects[category], **numbers}
            for category, numbers in scores.per_category.items()
        ]

    def table(self) -> str:
        """The numbers for people: all of the set, then by class."""
        parts = []
        for kind, scores in self.scores().items():
            parts.append(table([kind, *scores.stats], [["all", *scores.stats.values()]]))
            rows = [[c["name"], c["objects"], c["AP"], c["AP50"], c["AR@max"]] for c in self.per_category(kind)]
            parts += [table(["class", "objects", "AP", "AP50", "AR"], rows)] if rows else []
        return "\n".join(parts)

    def write(self, folder: str | Path, card: Mapping[str, object] | None = None) -> None:
        """Write the result files, all or none, and log the table.

        ========================= ==================================================================================
        bbox.json, segm.json      COCO results, floats unrounded (as FIBER)
        bbox.csv                  AP per class, in FIBER's text
        coco_results.json         the six AP numbers by iou type; FIBER pickles an object of its own class instead
        predictions.pth           list in data set order of plain dicts of tensors (``torch.load`` needs no code of ours
                                  to read it; FIBER's holds BoxList objects, which only FIBER can unpickle)
        results.json              all numbers, counts, the engine, digests, and what ``card`` adds
        ========================= ==================================================================================

        Raises:
            DataError: a picture of the set has not been scored.
        """
        scores = self.scores()
        files = {f"{kind}.json": json.dumps(self.results(kind)).encode() for kind in scores}
        if "bbox" in scores and self.use_cats:
            files["bbox.csv"] = coco_csv(scores["bbox"].precision, list(self.names.values())).encode()
        six = {kind: dict(list(found.stats.items())[:6]) for kind, found in scores.items()}
        files["coco_results.json"] = json.dumps(six, indent=2).encode()
        files["predictions.pth"] = self._predictions()
        files["results.json"] = json.dumps(self.card() | dict(card or {}), indent=2, ensure_ascii=False).encode()
        write_files(Path(folder), files)
        logger.info("%s\n%s", self.where, self.table())

    def card(self) -> dict[str, Any]:
        """Numbers, and what they were measured on and with."""
        scores = self.scores()
        main = next(iter(scores.values()))
        return {
            "metrics": self.summary(),
            "per_category": {kind: self.per_category(kind) for kind in scores},
            "counts": {
                "pictures": len(self._detections),
                "objects": len(self._main.annotations),
                "categories": len(self.names),
                "detections": sum(map(len, self._detections.values())),
                "detections_with_unknown_labels": self.unknown_labels,
            },
            "engine": {"name": main.engine, "version": main.version},
            "plus_one": self.plus_one,
            "notes": list(main.notes),
            "annotations": {"file": self.where, "sha256": self.digest},
        }

    def _predictions(self) -> bytes:
        buffer = io.BytesIO()
        torch.save([_plain(found) for found in self._in_order()], buffer)
        return buffer.getvalue()


def _plain(found: Detections) -> dict[str, Any]:
    height, width = found.meta.orig_size
    row = {"image_id": found.meta.image_id, "height": height, "width": width}
    masks = {} if found.masks is None else {"masks": found.masks}
    tensors = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels, **masks}
    return row | {key: value.clone() for key, value in tensors.items()}


def _mask_rows(boxes: Sequence[Row], found: Detections) -> list[dict[str, Any]]:
    if found.masks is None:
        raise ValueError(f"picture {found.meta.image_id!r} has no masks to evaluate")
    rows = []
    for box, mask in zip(boxes, found.masks.numpy(), strict=True):
        shape = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
        shape["counts"] = shape["counts"].decode()
        rows.append({key: box[key] for key in ("image_id", "category_id", "score")} | {"segmentation": shape})
    return rows


def _digest(annotations: Row | str | Path) -> str | None:
    """sha256 of the annotation file; None when there is none."""
    return None if isinstance(annotations, Mapping) else hashlib.sha256(Path(annotations).read_bytes()).hexdigest()
