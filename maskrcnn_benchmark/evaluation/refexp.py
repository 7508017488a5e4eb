"""Referring expressions (RefCOCO, RefCOCO+, RefCOCOg): is the box that an expression is about among the best ones?"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn_benchmark import __version__
from maskrcnn_benchmark.data.check import problems_of, refuse
from maskrcnn_benchmark.data.datasets.json_index import mdetr_lists
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.columns import json_list
from maskrcnn_benchmark.evaluation.report import Content, table, write_files
from maskrcnn_benchmark.structures import Detections
from maskrcnn_benchmark.structures.boxes import giou, iou

logger = logging.getLogger(__name__)

MEASURES = {"GIoU": ("", giou), "IoU": ("_IoU", iou)}
"""What a box has to share with the right one -> ending of the numbers' names, function."""
LIMITS = (1, 5, 10)
STANDARD = ("refcoco", "refcoco+", "refcocog")
"""The names that are in FIBER's file, also those that nothing was measured for."""
NEVER = np.iinfo(np.int32).max
ENOUGH = 0.5
SHOWN = 10


class RefExpEvaluator:
    """Takes the boxes found for each expression, and keeps at which rank the first one hit.

    "P@k" is the share of expressions for which one of the best k boxes has a *generalised* IoU of at least 0.5 with the
    right one, as MDETR and FIBER measure it. GIoU is at most IoU, so this is stricter than what most papers do, which
    is "P@k_IoU". Pixels have no extent (no + 1). Of equal scores, the box with the larger x1 comes first, then y1, x2,
    y2.

    Args:
        annotations: MDETR JSON with exactly one annotation for each of its ``images``, which are expressions.

    Raises:
        DataError: the file is missing or wrong.
    """

    main = "P@1"

    def __init__(self, annotations: str | Path):
        self.where = str(annotations)
        data = _read(Path(annotations))
        self._digest = hashlib.sha256(Path(annotations).read_bytes()).hexdigest()
        self.number: dict[int | str, int] = {row["id"]: index for index, row in enumerate(data["images"])}
        self._names = np.array([row["dataset_name"] for row in data["images"]])
        boxes: list[list[float]] = [[] for _ in self.number]
        for row in data["annotations"]:
            x, y, width, height = row["bbox"]
            boxes[self.number[row["image_id"]]] = [x, y, x + width, y + height]
        self._boxes = torch.tensor(boxes, dtype=torch.float32)
        self._ranks = {name: np.full(len(boxes), NEVER, np.int32) for name in MEASURES}
        self._found: list[np.ndarray | None] = [None] * len(boxes)

    def update(self, detections: Sequence[Detections]) -> None:
        """Add what was found for some expressions; what label it has does not matter. No box at all is a miss.

        Raises:
            DataError: an expression is not in the file, or has been added before.
        """
        for found in detections:
            entry, number = found.meta.image_id, self.number.get(found.meta.image_id)
            if number is None:
                raise DataError(f"expression {entry!r} ({found.meta.file}) was scored but is not in {self.where}")
            if self._found[number] is not None:
                raise DataError(f"expression {entry!r} ({found.meta.file}) was scored twice; each may count once")
            rows = torch.cat((found.scores[:, None], found.boxes), dim=1).numpy()
            self._found[number] = rows = rows[np.lexsort(rows.T[::-1])[::-1]]
            self._hit(number, torch.from_numpy(rows[:, 1:].copy()))

    def _hit(self, number: int, boxes: Tensor) -> None:
        for name, (_, measure) in MEASURES.items():
            hits = (measure(boxes, self._boxes[number : number + 1])[:, 0] >= ENOUGH).nonzero()
            if len(hits):
                self._ranks[name][number] = int(hits[0])

    def summary(self) -> dict[str, float]:
        """P@1, P@5 and P@10 with GIoU, then with IoU ("P@1_IoU"), of all expressions; then the same by their
        ``dataset_name`` ("refcoco/P@1"), 0..1.

        Raises:
            DataError: an expression of the file has not been added.
        """
        missing = [entry for entry, number in self.number.items() if self._found[number] is None]
        if missing:
            shown = ", ".join(map(repr, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
            raise DataError(
                f"missing predictions for {len(missing)} of the {len(self.number)} expressions of {self.where}: {shown}"
            )
        numbers = self._precisions()
        for name in self.counts:
            numbers |= {f"{name}/{key}": value for key, value in self._precisions(name).items()}
        return numbers

    @property
    def counts(self) -> dict[str, int]:
        """``dataset_name`` -> how many expressions have it."""
        return dict(sorted(Counter(self._names.tolist()).items()))

    def _precisions(self, dataset: str | None = None) -> dict[str, float]:
        mine = np.full(len(self._names), True) if dataset is None else self._names == dataset
        return {
            f"P@{limit}{ending}": float((self._ranks[name][mine] < limit).mean())
            for name, (ending, _) in MEASURES.items()
            for limit in LIMITS
        }

    def table(self) -> str:
        """Percentages, a row for each ``dataset_name``."""
        self.summary()
        rows: list[list[object]] = []
        for name, count in self.counts.items():
            rows.append([name, count, *(f"{100 * value:.2f}" for value in self._precisions(name).values())])
        header = [f"P@{limit} ({name})" for name in MEASURES for limit in LIMITS]
        return table(["expressions of", "number", *header], rows)

    def csv(self) -> str:
        """FIBER's ``Recall_results.csv``: P@k by GIoU under its name there; 0.0 for a name without expressions."""
        lines = ["metric, avg \n"]
        for name in (*STANDARD, *(other for other in self.counts if other not in STANDARD)):
            values = self._precisions(name) if name in self.counts else {}
            lines += [f"{name}: Recall@{limit} = {values.get(f'P@{limit}', 0.0)} \n" for limit in LIMITS]
        return "".join(lines)

    def predictions(self) -> Iterator[dict[str, Any]]:
        """``{image_id, scores, boxes}`` of each expression in the order of the file, the best box first."""
        for entry, number in self.number.items():
            rows = self._found[number]
            if rows is not None:
                yield {"image_id": entry, "scores": rows[:, 0].tolist(), "boxes": rows[:, 1:].tolist()}

    def write(self, folder: str | Path, card: Mapping[str, object] | None = None) -> None:
        """Write the result files, all or none, and log the table.

        ========================= ==================================================================================
        Recall_results.csv        P@k by dataset_name in FIBER's text
        predictions.json          see :meth:`predictions`
        results.json              all numbers, counts, the digest of the annotations, and what ``card`` adds
        ========================= ==================================================================================

        Raises:
            DataError: an expression of the file has not been added.
        """
        results = self.card() | dict(card or {})
        files: dict[str, Content] = {
            "Recall_results.csv": self.csv().encode(),
            "predictions.json": json_list(self.predictions()),
            "results.json": json.dumps(results, indent=2, ensure_ascii=False).encode(),
        }
        write_files(Path(folder), files)
        logger.info("%s\n%s", self.where, self.table())

    def card(self) -> dict[str, Any]:
        """Numbers, and what they were measured on and with."""
        metrics = self.summary()
        found = [len(rows) for rows in self._found if rows is not None]
        return {
            "metrics": metrics,
            "counts": {
                "expressions": len(found),
                "expressions_by_name": self.counts,
                "expressions_without_boxes": found.count(0),
                "detections": sum(found),
            },
            "main": self.main,
            "protocol": {
                "name": "giou",
                "measured": {f"P@k{ending}": f"{name} >= {ENOUGH}" for name, (ending, _) in MEASURES.items()},
            },
            "engine": {"name": "refexp", "version": __version__},
            "notes": [],
            "annotations": {"file": self.where, "sha256": self._digest},
        }


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists of the file, checked, by ascending id."""
    data = mdetr_lists(path)
    refuse(path, problems_of(data["images"], data["annotations"], None))
    refuse(path, _problems(data["images"], data["annotations"]))
    return data | {"images": sorted(data["images"], key=lambda row: row["id"])}


def _problems(images: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What a file of referring expressions must not be."""
    counts = Counter(row["image_id"] for row in annotations)
    for index, row in enumerate(images):
        place = f"images[{index}] (id {row['id']!r})"
        if counts[row["id"]] != 1:
            yield f"{place}: {counts[row['id']]} annotations; a referring expression has exactly one"
        if not isinstance(row.get("dataset_name"), str) or not row["dataset_name"]:
            yield f'{place}: no dataset_name, such as "refcoco": the name that its result counts for'
