"""ImageNet-1k as DAP has it: all pictures one after the other in ``train.binary``, and a list of them.

``train.binary.label`` has a line for each picture: name, label from 0, first byte, bytes, width, height, with tabs
between. ``train.cam3nms8xyxy.npz`` has the boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from maskrcnn_benchmark.data.check import refuse
from maskrcnn_benchmark.data.datasets.class_pictures import ClassPictures, load_boxes
from maskrcnn_benchmark.data.handle import Handle
from maskrcnn_benchmark.data.index import Arrays, cached, pack
from maskrcnn_benchmark.data.memory_copy import in_memory
from maskrcnn_benchmark.data.pictures import PictureError, read_picture
from maskrcnn_benchmark.errors import DataError

VERSION = 1  # raise when the arrays change
COLUMNS = ("name", "label", "first byte", "bytes", "width", "height")


class ImageNetBinary(ClassPictures):
    """The pictures of a split, in the order of its list.

    Args:
        folder: Has ``<split>.binary`` and ``<split>.binary.label``.
        split: "train" or "test".
        name: What the data set is called.
        boxes: File of the boxes in ``folder``; "": one around each picture.
        first_label: Number of the first class in a ``.pth`` file of boxes.
        memory: Read the pictures from a copy in memory (:func:`maskrcnn_benchmark.data.memory_copy.in_memory`).

    Raises:
        DataError: a file is missing or broken, with line; the boxes are of another number of pictures; or there is no
            room for a copy.
    """

    def __init__(
        self,
        folder: Path,
        split: str = "train",
        name: str = "",
        boxes: str = "",
        first_label: int = 0,
        memory: bool = False,
    ):
        self.binary = Path(folder) / f"{split}.binary"
        labels = Path(folder) / f"{split}.binary.label"
        for path in (self.binary, labels):
            if not path.is_file():
                raise DataError(f"{path}: no such file; ImageNet in this form is {self.binary.name} and {labels.name}")
        index = cached("imagenet", [labels, self.binary], VERSION, lambda: _read(labels, self.binary.stat().st_size))
        found = load_boxes(Path(folder) / boxes, len(index["labels"]), labels, first_label) if boxes else None
        names = {label: str(label - 1) for label in range(1, int(index["labels"].max(initial=0)) + 1)}
        super().__init__(name or f"imagenetcls_{split}", labels, index, names, found)
        self._handle = Handle(in_memory(self.binary) if memory else self.binary)

    def _file(self, row: int) -> Path:
        return self.binary

    def _place(self, row: int) -> str:
        return f"{self.annotations}:{row + 1}"

    def _open(self, row: int) -> tuple[Image.Image, str]:
        offset, length = self._index["bytes"][row].tolist()
        data = self._handle.at(offset).read(length)
        height, width = self._index["sizes"][row].tolist()
        try:
            return read_picture(self.binary, (height, width), data)
        except PictureError as error:
            about = f" (bytes {offset} to {offset + length}, line {row + 1} of {self.annotations.name})"
            raise PictureError(self.binary, error.reason, about) from None


def _read(path: Path, size: int) -> Arrays:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a text file that can be read ({error})") from None
    rows = [line.split("\t") for line in lines]
    refuse(path, _problems(rows, size))
    numbers = np.array([[int(value) for value in row[1:]] for row in rows], dtype=np.int64).reshape(-1, 5)
    arrays: Arrays = {
        "labels": numbers[:, 0] + 1,
        "bytes": numbers[:, 1:3].copy(),
        "sizes": numbers[:, [4, 3]].astype(np.int32),
    }
    return arrays | pack("keys", [row[0] for row in rows])


def _problems(rows: list[list[str]], size: int) -> Iterator[str]:
    for number, row in enumerate(rows, 1):
        if len(row) != len(COLUMNS):
            yield f"line {number}: {len(row)} columns, not {len(COLUMNS)} ({', '.join(COLUMNS)}, with tabs between)"
            continue
        bad = next((place for place in range(1, 6) if not (row[place].isascii() and row[place].isdecimal())), None)
        if bad is not None:
            yield f"line {number}: {COLUMNS[bad]} is {row[bad]!r}, not a whole number from 0"
        elif int(row[2]) + int(row[3]) > size:
            yield (
                f"line {number}: its picture ends at byte {int(row[2]) + int(row[3])}, but the binary file has {size}: "
                "it is cut short, or another one"
            )
