"""COCO box and mask AP of a detector, with the result files that FIBER writes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.check import GroundTruth, Row, check_ground_truth, read_coco, with_shapes
from maskrcnn_benchmark.evaluation.collector import SHOWN, Collector
from maskrcnn_benchmark.evaluation.columns import json_list
from maskrcnn_benchmark.evaluation.engine import CocoScores, choose_engine, evaluate_coco
from maskrcnn_benchmark.evaluation.report import Content, coco_csv, table, write_files
from maskrcnn_benchmark.structures import Detections

logger = logging.getLogger(__name__)


class CocoEvaluator:
    """Collects the detections of every picture of a set, then scores them once.

    Args:
        annotations: COCO annotation file, or what it holds.
        label_to_category: Label of the detections -> category id; detections with other labels are left out, counted.
        categories: Category rows (``{"id", "name"}``) that count; default: all of the file.
        engine: See :func:`~maskrcnn_benchmark.evaluation.engine.choose_engine`.
        plus_one: Boxes hold their last pixel (w = x2 - x1 + 1), as the maskrcnn-benchmark lineage has it on COCO data.
        iou_types: "bbox", "segm" or both; the first one gives the main numbers. Of both, masks are left out where no
            object has one.
        use_cats: False pools all categories.

    Raises:
        DataError: the annotations are wrong, or a label leads to no category.
        ConfigError: the engine is unknown or not installed.
    """

    main = "AP"

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
        coco, self.where = self._read(annotations)
        self.truth: dict[str, GroundTruth] = {
            kind: check_ground_truth(coco, self.where, kind, categories)
            for kind in with_shapes(coco, self.where, iou_types)
        }
        self.engine, self.plus_one, self.use_cats = choose_engine(engine), plus_one, use_cats
        self.names = {row["id"]: str(row.get("name", row["id"])) for row in self._main.categories}
        if lost := sorted(set(label_to_category.values()) - set(self.names)):
            raise DataError(f"{self.where}: labels lead to category ids {lost[:SHOWN]}, which are not in categories")
        self.digest = digest(annotations)
        self.found = Collector(self._main.number, self.where, label_to_category)
        self._scores: dict[str, CocoScores] | None = None

    def _read(self, annotations: Row | str | Path) -> tuple[Row, str]:
        """(COCO dict, what to call it in messages)."""
        return read_coco(annotations)

    @property
    def _main(self) -> GroundTruth:
        return next(iter(self.truth.values()))

    def update(self, detections: Sequence[Detections]) -> None:
        """Add the detections of some pictures, in any order; boxes in pixels of the picture on disk.

        Raises:
            DataError: a picture is not in the set, or has been added before.
        """
        for found in detections:
            self.found.add(found)
        self._scores = None

    def rows(self, iou_type: str = "bbox") -> Iterator[dict[str, Any]]:
        """Rows in COCO's results format, by ascending picture id and then by score, made one at a time.

        Raises:
            DataError: a picture of the set has not been scored.
        """
        return self.found.results(self.plus_one).rows(iou_type, self._main.image_ids)

    def results(self, iou_type: str = "bbox") -> list[dict[str, Any]]:
        """The same in one list."""
        return list(self.rows(iou_type))

    def scores(self) -> dict[str, CocoScores]:
        """iou type -> everything the engine found.

        Raises:
            DataError: a picture of the set has not been scored.
        """
        if self._scores is None:
            self._scores = {
                kind: evaluate_coco(
                    truth, self.found.results(self.plus_one), iou_type=kind, use_cats=self.use_cats, engine=self.engine
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
        files: dict[str, Content] = {f"{kind}.json": json_list(self.rows(kind)) for kind in scores}
        if "bbox" in scores and self.use_cats:
            files["bbox.csv"] = coco_csv(scores["bbox"].precision, list(self.names.values())).encode()
        six = {kind: dict(list(found.stats.items())[:6]) for kind, found in scores.items()}
        files["coco_results.json"] = json.dumps(six, indent=2).encode()
        files["predictions.pth"] = lambda path: torch.save(self.found.predictions(), path)
        files["results.json"] = json.dumps(self.card() | dict(card or {}), indent=2, ensure_ascii=False).encode()
        write_files(Path(folder), files)
        logger.info("%s\n%s", self.where, self.table())

    def card(self) -> dict[str, Any]:
        """Numbers, and what they were measured on and with."""
        scores = self.scores()
        main = next(iter(scores.values()))
        return {
            "metrics": self.summary(),
            "main": self.main,
            "protocol": {"name": "coco"},
            "per_category": {kind: self.per_category(kind) for kind in scores},
            "counts": {
                "pictures": self.found.pictures,
                "objects": len(self._main.annotations),
                "categories": len(self.names),
                "detections": len(self.found.columns()),
                "detections_with_unknown_labels": self.found.unknown_labels,
            },
            "engine": {"name": main.engine, "version": main.version},
            "plus_one": self.plus_one,
            "notes": list(main.notes),
            "annotations": {"file": self.where, "sha256": self.digest},
        }


def digest(annotations: Row | str | Path) -> str | None:
    """sha256 of the annotation file; None when there is none."""
    return None if isinstance(annotations, Mapping) else hashlib.sha256(Path(annotations).read_bytes()).hexdigest()
