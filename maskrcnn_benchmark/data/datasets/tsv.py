"""Detection data in tab-separated files: Objects365 and its kind.

A YAML file names the parts, relative to itself: ``img`` (key ... base64 of a picture), ``label`` (key, JSON list of
``{"class", "rect"}``), ``hw`` (key, size), ``linelist`` (the rows that count, with repeats), ``labelmap`` (name ->
label, from 1) and ``imageid2idx`` (picture id -> row of ``img``). Rows of ``img``, ``label`` and ``hw`` correspond.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskrcnn_benchmark.data.datasets.tsv_file import TsvFile
from maskrcnn_benchmark.data.datasets.tsv_index import read_parts, tsv_index
from maskrcnn_benchmark.data.pictures import PictureError, Size, read_picture
from maskrcnn_benchmark.data.sample import Sample
from maskrcnn_benchmark.structures import ImageMeta, Target
from maskrcnn_benchmark.structures.boxes import clip


class TsvDataset:
    """Pictures with boxes of named classes; a picture without boxes stays, with absent classes alone in its prompt.

    Args:
        path: The YAML.
        name: What the data set is called.
        clipped: Leave out the boxes that have no extent inside the picture.

    Raises:
        DataError: a file is missing or broken.
    """

    def __init__(self, path: Path, name: str = "", clipped: bool = True):
        self.name, self.annotations, self.clipped = name or Path(path).stem, Path(path), clipped
        parts = read_parts(self.annotations)
        self._index = tsv_index(self.annotations)
        self._images = TsvFile(parts.img, self._index["offsets"])
        self._keyed = parts.imageid2idx is None  # the rows of both files have the same keys
        self.notes: list[str] = list(self._index.value("notes"))
        self.names: dict[int, str] = dict(self._index.value("names"))

    def __len__(self) -> int:
        return len(self._index["lines"])

    def __getitem__(self, index: int) -> Sample:
        """One picture, its boxes as (x1, y1, x2, y2) with the last pixel inside.

        Raises:
            PictureError: it is damaged, or is not the one that the annotations are for.
        """
        row = self._row(index)
        picture, note = self._picture(row, index)
        shape = (picture.height, picture.width)
        key = self._index.text("keys", row)
        image_id = int(key) if key.isdecimal() else key
        meta = ImageMeta(image_id, shape, shape, f"{self._images.path}:{row + 1}", self.name)
        mine = slice(*self._index["first"][row : row + 2].tolist())
        boxes = clip(torch.from_numpy(self._index["boxes"][mine].copy()), shape, plus_one=True)
        target = Target(boxes, torch.from_numpy(self._index["labels"][mine].copy()), meta)
        solid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        return Sample(picture, meta, target[solid] if self.clipped else target, note)

    def file(self, index: int) -> Path:
        return self._images.path

    def size(self, index: int) -> Size | None:
        """(h, w) that the annotations give; None when they do not."""
        height, width = self._index["sizes"][self._row(index)].tolist()
        return (height, width) if height and width else None

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int32 h, w; 0 where the annotations do not give them."""
        return self._index["sizes"][self._index["lines"]]

    def _row(self, index: int) -> int:
        return int(self._index["lines"][index])

    def _picture(self, row: int, index: int) -> tuple[Image.Image, str]:
        columns = self._images.row(int(self._index["image_row"][row]))
        key = self._index.text("keys", row)
        about = f":{row + 1} (key {key!r})"
        if self._keyed and columns[0] != key:
            raise PictureError(self._images.path, f"is a picture with the key {columns[0]!r}", about)
        try:
            data = base64.b64decode(columns[-1], validate=True)
            return read_picture(self._images.path, self.size(index), data)
        except binascii.Error as error:
            raise PictureError(self._images.path, f"not base64 ({error})", about) from None
        except PictureError as error:
            raise PictureError(self._images.path, error.reason, about) from None
