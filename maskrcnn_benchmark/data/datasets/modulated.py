"""Captions with boxes, and masks, as MDETR is trained with them (https://github.com/ashkamath/mdetr)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from maskrcnn_benchmark.data.datasets.json_index import masks_index
from maskrcnn_benchmark.data.datasets.mdetr import MdetrDataset
from maskrcnn_benchmark.data.datasets.shapes import decode
from maskrcnn_benchmark.data.pictures import PictureError, Size
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.structures import ImageMeta, Target
from maskrcnn_benchmark.structures.boxes import clip, xywh_to_xyxy


class ModulatedDataset(MdetrDataset):
    """As :class:`MdetrDataset`, by MDETR's rules: pixels have no extent, and captions without boxes stay.

    Boxes are x, y, x + w, y + h, cut at the border; crowds, and boxes that have no area then, are no targets, and
    neither are their words.

    Args:
        images: Folder of the pictures.
        annotations: MDETR JSON.
        name: What the data set is called.
        vg_images: Folder of the pictures whose ``data_source`` is not "coco"; None: they are in ``images``.
        masks: Targets have masks, from ``segmentation``: polygons or run lengths.

    Raises:
        DataError: the file is missing or broken, or has no masks.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        name: str = "",
        vg_images: Path | None = None,
        masks: bool = False,
    ):
        super().__init__(images, annotations, name, vg_images, every=True)
        self._shapes = masks_index(Path(annotations)) if masks else None
        self.notes += self._shapes.value("notes") if self._shapes is not None else []
        usable = ~self._index["crowd"] & (self._index["boxes"][:, 2:] > 0).all(axis=1)
        owners = np.repeat(np.arange(len(self)), np.diff(self._index["first"]))
        if empty := len(self) - len(np.unique(owners[usable])):
            self.notes.append(
                f"{empty} of {len(self)} captions have no box: kept, there is nothing to be found in them"
            )
        named = np.diff(self._index["span_first"]) > 0
        if nameless := int((usable & ~named).sum()):
            self.notes.append(f"{nameless} boxes are named by no words of their caption: kept, no token is theirs")

    def _target(self, row: int, meta: ImageMeta) -> Target:
        mine = self.boxes_of(row)
        boxes = clip(xywh_to_xyxy(torch.from_numpy(self._index["boxes"][mine].copy())), meta.orig_size)
        keep = ~torch.from_numpy(self._index["crowd"][mine].copy()) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        return Target(
            boxes[keep],
            torch.from_numpy(self._index["category"][mine].astype("int64"))[keep],
            meta,
            prompt=self._prompt(row, mine, keep.tolist()),
            masks=self._masks(mine, meta)[keep] if self._shapes is not None else None,
        )

    def _masks(self, mine: slice, meta: ImageMeta) -> torch.Tensor:
        """(M, h, w) bool."""
        assert self._shapes is not None
        size: Size = meta.orig_size
        masks = torch.zeros(mine.stop - mine.start, *size, dtype=torch.bool)
        for mask, number in zip(masks, range(mine.start, mine.stop), strict=True):
            try:
                mask.copy_(torch.from_numpy(decode(json.loads(self._shapes.text("shapes", number)), size)))
            except DataError as error:
                raise PictureError(meta.file, str(error), about=f" (caption {meta.image_id!r})") from None
        return masks
