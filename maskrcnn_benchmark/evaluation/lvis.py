"""LVIS box and mask AP of a detector: fixed AP, and the standard one."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.evaluation.check import GroundTruth, Row, read_coco, with_shapes
from maskrcnn_benchmark.evaluation.coco import digest
from maskrcnn_benchmark.evaluation.collector import SHOWN, Collector
from maskrcnn_benchmark.evaluation.columns import Results, json_list
from maskrcnn_benchmark.evaluation.engine import choose_engine
from maskrcnn_benchmark.evaluation.lvis_engine import LvisScores, check_lvis, evaluate_lvis
from maskrcnn_benchmark.evaluation.report import Content, lvis_csv, table, write_files
from maskrcnn_benchmark.structures import Detections

logger = logging.getLogger(__name__)

PROTOCOLS: dict[str, dict[str, int]] = {
    "fixed": {"per_class": 10_000, "per_image": -1, "per_image_class": -1},
    "standard": {"per_class": -1, "per_image": 300, "per_image_class": -1},
}
"""Best detections that count: of a class in the whole set (Dave et al., Evaluating Large-Vocabulary Object Detectors:
The Devil is in the Details, 2021, as MDETR, GLIP and FIBER report), or of a picture (lvis-api). -1: all of them."""


class LvisEvaluator:
    """Collects the detections of every picture of a set, then scores them once.

    Args:
        annotations: LVIS annotation file, or what it holds.
        label_to_category: Label of the detections -> category id; default: labels are category ids. Detections with
            other labels are left out, counted.
        protocol: "fixed" or "standard", see :data:`PROTOCOLS`; the following three change its limits.
        per_class: Best detections of a class in the whole set; of equal scores, the earlier picture counts. -1: all.
        per_image: Best detections of a picture (DECOLA's ``TEST.DETECTIONS_PER_IMAGE``). -1: all.
        per_image_class: Best detections of a class in a picture, taken before those of the picture (DECOLA's
            ``TEST.DETECTIONS_PER_CLASS_IMAGE``). -1: all.
        categories: Category rows that count; default: all of the file. Others take their part in ``per_image``.
        engine: See :func:`~maskrcnn_benchmark.evaluation.engine.choose_engine`.
        iou_types: "bbox", "segm" or both; the first one gives the main numbers. Of both, masks are left out where no
            object has one.

    Raises:
        DataError: the annotations are wrong, or a label leads to no category.
        ConfigError: the protocol or engine is unknown, or the engine is not installed.
    """

    main = "AP"

    def __init__(
        self,
        annotations: Row | str | Path,
        label_to_category: Mapping[int, int] | None = None,
        *,
        protocol: str = "fixed",
        per_class: int | None = None,
        per_image: int | None = None,
        per_image_class: int | None = None,
        categories: Sequence[Row] | None = None,
        engine: str = "auto",
        iou_types: Sequence[str] = ("bbox",),
    ):
        if protocol not in PROTOCOLS:
            raise ConfigError(f"no LVIS protocol {protocol!r}. Choices: {', '.join(PROTOCOLS)}")
        given = {"per_class": per_class, "per_image": per_image, "per_image_class": per_image_class}
        own = {name: value for name, value in given.items() if value is not None}
        self.protocol, self.limits = protocol, PROTOCOLS[protocol] | own
        self.engine = choose_engine(engine)
        coco, self.where = read_coco(annotations)
        self.truth: dict[str, GroundTruth] = {
            kind: check_lvis(coco, self.where, kind, categories) for kind in with_shapes(coco, self.where, iou_types)
        }
        self.names = {row["id"]: str(row.get("name", row["id"])) for row in self._main.categories}
        known = {row["id"] for row in coco["categories"]}
        labels = label_to_category or {category: category for category in sorted(known)}
        if lost := sorted(set(labels.values()) - known):
            raise DataError(f"{self.where}: labels lead to category ids {lost[:SHOWN]}, which are not in categories")
        self.digest = digest(annotations)
        limit = self.limits["per_class"]
        self.found = Collector(self._main.number, self.where, labels, limit if limit >= 0 else None)
        self._scores: dict[str, LvisScores] | None = None

    @property
    def _main(self) -> GroundTruth:
        return next(iter(self.truth.values()))

    def update(self, detections: Sequence[Detections]) -> None:
        """Add the detections of some pictures, in any order; boxes in pixels of the picture on disk.

        What was found in a picture with several prompts is one entry (see ``Detections.cat``).

        Raises:
            DataError: a picture is not in the set, or has been added before.
        """
        for found in detections:
            self.found.add(self._limited(found))
        self._scores = None

    def _limited(self, found: Detections) -> Detections:
        """The best of a picture; detections come by score."""
        each, all_of_them = self.limits["per_image_class"], self.limits["per_image"]
        if each >= 0:
            labels = found.labels.numpy()
            order = np.argsort(labels, kind="stable")
            rank = np.empty(len(labels), np.int64)
            rank[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
            found = found[torch.from_numpy(rank < each)]
        return found[:all_of_them] if 0 <= all_of_them < len(found) else found

    @property
    def _limit(self) -> int:
        """Best of a picture, as it is part of names."""
        return max(-1, self.limits["per_image"])

    def _results(self) -> Results:
        """What counts."""
        results = self.found.results(plus_one=False)
        return results[np.isin(results.category, list(self.names))]

    def rows(self, iou_type: str = "bbox") -> Iterator[dict[str, Any]]:
        """What counts in COCO's results format, by ascending picture id and then by score, made one at a time.

        Raises:
            DataError: a picture of the set has not been scored.
        """
        return self._results().rows(iou_type, self._main.image_ids)

    def scores(self) -> dict[str, LvisScores]:
        """iou type -> everything the engine found.

        Raises:
            DataError: a picture of the set has not been scored.
        """
        if self._scores is None:
            results, limit = self._results(), self._limit
            self._scores = {
                kind: evaluate_lvis(truth, results, iou_type=kind, limit=limit, engine=self.engine)
                for kind, truth in self.truth.items()
            }
        return self._scores

    def summary(self) -> dict[str, float]:
        """AP, AP50, AP75, APs, APm, APl, APr, APc, APf and AR@limit, ARs@, ARm@, ARl@, 0..1 (-1: no ground truth).

        The limit is the one on detections of a picture, -1 for none; numbers of a second iou type are "segm/AP" and so
        on.
        """
        numbers: dict[str, float] = {}
        for index, (kind, scores) in enumerate(self.scores().items()):
            numbers |= {name if index == 0 else f"{kind}/{name}": value for name, value in scores.stats.items()}
        return numbers

    def per_category(self, iou_type: str | None = None) -> list[dict[str, Any]]:
        """Per class: id, name, frequency (r, c or f), objects, AP, AP50, AR@max."""
        kind = iou_type or next(iter(self.truth))
        objects = Counter(row["category_id"] for row in self.truth[kind].annotations if not row.get("ignore"))
        about = {row["id"]: row["frequency"] for row in self._main.categories}
        return [
            {"id": c, "name": self.names[c], "frequency": about[c], "objects": objects[c], **numbers}
            for c, numbers in self.scores()[kind].per_category.items()
        ]

    def table(self) -> str:
        """The numbers for people: all of the set, then by class, for the classes that are there."""
        parts = []
        for kind, scores in self.scores().items():
            parts.append(table([kind, *scores.stats], [[self.protocol, *scores.stats.values()]]))
            rows = [
                [c["name"], c["frequency"], c["objects"], c["AP"], c["AP50"], c["AR@max"]]
                for c in self.per_category(kind)
                if c["objects"]
            ]
            parts.append(table(["class", "frequency", "objects", "AP", "AP50", "AR"], rows))
        return "\n".join(parts)

    def write(self, folder: str | Path, card: Mapping[str, object] | None = None) -> None:
        """Write the result files, all or none, and log the table.

        ========================= ==================================================================================
        bbox.json, segm.json      COCO results that counted, floats unrounded
        bbox.csv, segm.csv        the numbers with three decimals, in FIBER's text
        results.json              all numbers, counts, the engine, digests, and what ``card`` adds
        ========================= ==================================================================================

        Raises:
            DataError: a picture of the set has not been scored.
        """
        files: dict[str, Content] = {}
        for kind, scores in self.scores().items():
            files[f"{kind}.json"] = json_list(self.rows(kind))
            files[f"{kind}.csv"] = lvis_csv(scores.stats, self._limit).encode()
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
            "per_category": {kind: self.per_category(kind) for kind in scores},
            "counts": {
                "pictures": self.found.pictures,
                "objects": len(self._main.annotations),
                "categories": len(self.names),
                "detections": len(self._results()),
                "detections_with_unknown_labels": self.found.unknown_labels,
            },
            "engine": {"name": main.engine, "version": main.version},
            "protocol": {"name": f"lvis_{self.protocol}", **self.limits},
            "notes": list(main.notes),
            "annotations": {"file": self.where, "sha256": self.digest},
        }
