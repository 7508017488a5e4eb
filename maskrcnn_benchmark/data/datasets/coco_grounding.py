"""Detection data in COCO's format, for training with class names as the prompt: COCO, LVIS, ODinW and the like."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from maskrcnn_benchmark.data import fewshot
from maskrcnn_benchmark.data.datasets.categories import Row, overridden, visible
from maskrcnn_benchmark.data.datasets.indexed import IndexedPictures
from maskrcnn_benchmark.data.datasets.json_index import coco_index
from maskrcnn_benchmark.structures import ImageMeta, Target

logger = logging.getLogger(__name__)


class CocoGrounding(IndexedPictures):
    """Pictures with boxes of named classes. Labels count from 1, as in :class:`CocoDataset`.

    Args:
        images: Folder of the pictures.
        annotations: COCO or LVIS JSON.
        name: What the data set is called.
        override_categories: Category rows that replace those of the file, with the same ids.
        shots: Pictures wanted of each class; 0: all.
        seed: Which ones; 0: those with the lowest ids.
        clipped: Cut boxes at the border of the picture.

    Raises:
        DataError: the file is missing or broken, or has nothing to train on.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        name: str = "",
        override_categories: Sequence[Row] | None = None,
        shots: int = 0,
        seed: int = 0,
        clipped: bool = True,
    ):
        super().__init__(name or Path(annotations).stem, images, annotations, coco_index(Path(annotations)))
        self.clipped = clipped
        every = self._index.value("categories")
        in_use = set(np.unique(self._index["category"]).tolist())
        rows = visible(every, in_use, self.annotations, self.notes)
        if override_categories is not None:
            rows = overridden(rows, override_categories, every, self.annotations)
        self.names: dict[int, str] = {label: row["name"] for label, row in enumerate(rows, 1)}
        label_of = {row["id"]: label for label, row in enumerate(rows, 1)}
        self._label_of = np.array([label_of.get(row["id"], 0) for row in every], dtype=np.int64)
        if shots:
            self._pick(shots, seed)

    def _pick(self, shots: int, seed: int) -> None:
        """Keep a few pictures of each class; crowds and boxes of any size count for the choice, as in the original."""
        category = self._index["category"]
        classes = [set(category[self.boxes_of(row)].tolist()) for row in self._rows.tolist()]
        chosen = fewshot.pick(classes, shots, seed)
        self._rows = self._rows[chosen]
        counts = dict.fromkeys(self.names, 0)
        for index in chosen:
            for label in self._label_of[list(classes[index])].tolist():
                counts[label] += 1
        few = [f"{self.names[label]} {count}" for label, count in counts.items() if count < shots]
        logger.info(
            "%s: %d shots: %d of %d pictures, %d to %d of each class%s",
            self.name,
            shots,
            len(chosen),
            len(classes),
            min(counts.values()),
            max(counts.values()),
            f"; there are no more of {', '.join(few)}" if few else "",
        )

    def _target(self, row: int, meta: ImageMeta) -> Target:
        mine = self.boxes_of(row)
        boxes, keep = self._visible_boxes(mine, meta.orig_size, self.clipped)
        labels = torch.from_numpy(self._label_of[self._index["category"][mine]])
        return Target(boxes, labels[keep], meta)
