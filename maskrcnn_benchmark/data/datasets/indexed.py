"""Pictures and boxes of an annotation index, for training."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskrcnn_benchmark.data.index import Index
from maskrcnn_benchmark.data.pictures import PictureError, Size, read_picture
from maskrcnn_benchmark.data.sample import Sample
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.structures import ImageMeta, Target
from maskrcnn_benchmark.structures.boxes import clip, xywh_to_xyxy

logger = logging.getLogger(__name__)


class IndexedPictures:
    """The pictures of a JSON file that some box is large enough in, by ascending id.

    Args:
        name: What the data set is called.
        images: Folder of the pictures.
        annotations: The file, for messages.
        index: What it holds.
        every: Also the pictures that there is nothing to train on in.

    Attributes:
        notes: What was mended or left out, for the log.
    """

    def __init__(self, name: str, images: Path, annotations: Path, index: Index, every: bool = False):
        self.name, self.folder, self.annotations, self._index = name, Path(images), Path(annotations), index
        self.notes: list[str] = list(index.value("notes"))
        solid = index["solid"]
        self._rows = np.arange(len(solid)) if every else np.flatnonzero(solid)
        if not len(self._rows):
            raise DataError(f"{annotations}: none of the {len(solid)} pictures has a box to train on")
        if len(self._rows) < len(solid):
            number = len(solid) - len(self._rows)
            self.notes.append(
                f"{number} of {len(solid)} pictures have no box of more than one pixel: left out of training"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """One picture, its boxes as (x1, y1, x2, y2) with the last pixel inside.

        Raises:
            PictureError: it is missing or damaged.
        """
        file = self.file(index)
        try:
            picture, note = read_picture(file, self.size(index))
        except PictureError as error:
            raise PictureError(file, error.reason, about=f" (image id {self.image_id(index)!r})") from None
        meta = self.meta(index, (picture.height, picture.width))
        return Sample(picture, meta, self._target(int(self._rows[index]), meta), note)

    def meta(self, index: int, orig_size: Size) -> ImageMeta:
        """What is known about a picture of (h, w) on disk."""
        extra = self._extra(int(self._rows[index]))
        return ImageMeta(self.image_id(index), orig_size, orig_size, str(self.file(index)), self.name, extra)

    def file(self, index: int) -> Path:
        return self.folder / self._index.text("files", int(self._rows[index]))

    def size(self, index: int) -> Size | None:
        """(h, w) that the annotations give; None when they do not."""
        height, width = self._index["sizes"][self._rows[index]].tolist()
        return (height, width) if height and width else None

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int32 h, w; 0 where the annotations do not give them."""
        return self._index["sizes"][self._rows]

    def image_id(self, index: int) -> int | str:
        row = int(self._rows[index])
        return self._index.text("ids", row) if "ids.first" in self._index else int(self._index["ids"][row])

    def boxes_of(self, row: int) -> slice:
        """Where the boxes of a picture of the file are in the arrays of the index."""
        first = self._index["first"]
        return slice(int(first[row]), int(first[row + 1]))

    def _target(self, row: int, meta: ImageMeta) -> Target:
        raise NotImplementedError

    def _extra(self, row: int) -> dict[str, object]:
        return {}

    def _visible_boxes(self, mine: slice, size: Size, clipped: bool = True) -> tuple[Tensor, Tensor]:
        """Boxes (K, 4) that are no crowds, in pixels of a picture of ``size``, and (M,) bool: which of ``mine``.

        Unless ``clipped`` is False, they are cut at the border, and those without an extent are left out.
        """
        boxes = xywh_to_xyxy(torch.from_numpy(self._index["boxes"][mine].copy()), plus_one=True)
        keep = ~torch.from_numpy(self._index["crowd"][mine].copy())
        if clipped:
            boxes = clip(boxes, size, plus_one=True)
            keep &= (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        return boxes[keep], keep
