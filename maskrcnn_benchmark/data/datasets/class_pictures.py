"""Pictures that show one class each, with boxes of it from a file or around the whole picture.

The readers of DAP's data (https://github.com/mikuhatsune/dap): ImageNet in one file, ImageNet-22k in tab-separated
files, and any folder of pictures. They serve training on the boxes, and, without boxes, finding them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskrcnn_benchmark.data.box_files import read_boxes
from maskrcnn_benchmark.data.index import Arrays, Index, cached
from maskrcnn_benchmark.data.pictures import Size
from maskrcnn_benchmark.data.sample import Sample
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.structures import ImageMeta, Target
from maskrcnn_benchmark.structures.boxes import rescale

logger = logging.getLogger(__name__)

VERSION = 1  # raise when the arrays of box files change


@dataclass(frozen=True)
class PictureBoxes:
    """Boxes of N pictures; those of picture ``i`` are rows ``first[i]`` to ``first[i + 1]``.

    Attributes:
        file: Where they are from.
        first: (N + 1,) int64.
        boxes: (M, 4) float32 xyxy.
        labels: (M,) int64 from 1; None: those of the pictures.
        sizes: (N, 2) int32 h, w that the boxes are in; None: those of the pictures.
    """

    file: Path
    first: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray | None = None
    sizes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.first) - 1


def load_boxes(path: Path, pictures: int, source: Path, first_label: int = 0) -> PictureBoxes:
    """A ``.npz`` or ``.pth`` file, with labels from 1.

    Args:
        path: The file.
        pictures: How many there are.
        source: What lists them, for the message.
        first_label: Number that the file has for the first class.

    Raises:
        DataError: the file is missing or broken, or of another number of pictures.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of boxes; make it with tools/compute_box_imagenet1k.py or ...22k.py")
    index = cached(f"boxes{first_label}", [path], VERSION, lambda: _flat(path, first_label))
    found = PictureBoxes(path, index["first"], index["boxes"], index.get("labels"), index.get("sizes"))
    if len(found) != pictures:
        raise DataError(
            f"{path}: boxes of {len(found)} pictures, but {source} has {pictures}: they are of another list of "
            "pictures; make them anew"
        )
    return found


def _flat(path: Path, first_label: int) -> Arrays:
    table = read_boxes(path)
    arrays: Arrays = {"first": table.first, "boxes": table.boxes}
    if table.labels is not None:
        below = table.labels < first_label
        if below.any():
            picture = int(np.searchsorted(table.first, int(np.argmax(below)), side="right"))
            raise DataError(f"{path}: picture {picture}: a label is below {first_label}; they count from {first_label}")
        arrays["labels"] = table.labels - first_label + 1
    return arrays if table.sizes is None else arrays | {"sizes": table.sizes}


class ClassPictures:
    """Pictures with a box each or several.

    Args:
        name: What the data set is called.
        annotations: What lists the pictures, for messages.
        index: Column ``keys``, a text for each of N pictures; ``labels`` (N,) int64 from 1, 0 where a picture has none
            of its own; ``sizes`` (N, 2) int32 h, w, 0 where they are not known.
        names: Label to name.
        boxes: None: one around each picture, (0, 0, w, h), as the original has it.

    Attributes:
        notes: What was left out, for the log.
    """

    def __init__(
        self, name: str, annotations: Path, index: Index, names: Mapping[int, str], boxes: PictureBoxes | None = None
    ):
        self.name, self.annotations, self.names = name, annotations, dict(names)
        self._index, self._boxes = index, boxes
        self.notes: list[str] = []
        count = len(index["labels"])
        self._rows = np.arange(count) if boxes is None else np.flatnonzero(np.diff(boxes.first))
        if boxes is not None and len(self._rows) < count:
            self.notes.append(f"{count - len(self._rows)} of {count} pictures have no box in {boxes.file}: left out")
        if not len(self._rows):
            raise DataError(f"{annotations}: lists no picture{' with a box' if count else ''}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """One picture; boxes as they are in their file, unclipped.

        Raises:
            PictureError: it is missing or damaged.
        """
        return self._sample(int(self._rows[index]))

    def picture(self, index: int) -> Image.Image:
        """The picture alone, RGB; never another one in its place.

        Raises:
            PictureError: it is missing or damaged.
        """
        return self._open(int(self._rows[index]))[0]

    def file(self, index: int) -> Path:
        return self._file(int(self._rows[index]))

    def key(self, index: int) -> str:
        """What the picture is called in its data set."""
        return self._index.text("keys", int(self._rows[index]))

    def label(self, index: int) -> int:
        """Of the picture, from 1; 0: not known."""
        return int(self._index["labels"][self._rows[index]])

    def size(self, index: int) -> Size | None:
        """(h, w) that the annotations give; None when they do not."""
        height, width = self._index["sizes"][self._rows[index]].tolist()
        return (height, width) if height and width else None

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int32 h, w; 0 where the annotations do not give them."""
        return self._index["sizes"][self._rows]

    def refuse_labels(self, classes: int) -> None:
        """Look for labels beyond the classes of a network.

        Raises:
            DataError: there are; names the first with file and line.
        """
        for labels, first, file in self._labels():
            beyond = np.flatnonzero(labels > classes)
            if len(beyond):
                row = int(np.searchsorted(first, beyond[0], side="right")) - 1
                raise DataError(
                    f"{file}:{row + 1}: {self._index.text('keys', row)} has label {int(labels[beyond[0]]) - 1} "
                    f"(from 0), but the network has {classes} classes besides the background"
                )

    def _labels(self) -> list[tuple[np.ndarray, np.ndarray, Path]]:
        """Labels in use, where those of each picture begin, and the file that has a line for each picture."""
        own = self._index["labels"]
        found = [(own, np.arange(len(own) + 1), self.annotations)]
        if self._boxes is not None and self._boxes.labels is not None:
            found.append((self._boxes.labels, self._boxes.first, self._boxes.file))
        return found

    def _file(self, row: int) -> Path:
        raise NotImplementedError

    def _open(self, row: int) -> tuple[Image.Image, str]:
        """The picture of a row of the list, and what is odd about it."""
        raise NotImplementedError

    def _place(self, row: int) -> str:
        """Where the picture lies."""
        return str(self._file(row))

    def _sample(self, row: int, instead: str = "") -> Sample:
        picture, note = self._open(row)
        shape = (picture.height, picture.width)
        meta = ImageMeta(self._index.text("keys", row), shape, shape, self._place(row), self.name)
        return Sample(picture, meta, self._target(row, meta), "; ".join(filter(None, (instead, note))))

    def _target(self, row: int, meta: ImageMeta) -> Target:
        height, width = meta.orig_size
        label = int(self._index["labels"][row])
        if self._boxes is None:
            return Target(torch.tensor([[0.0, 0.0, width, height]]), torch.tensor([label]), meta)
        mine = slice(*self._boxes.first[row : row + 2].tolist())
        boxes = torch.from_numpy(self._boxes.boxes[mine].copy())
        if self._boxes.sizes is not None and (told := tuple(self._boxes.sizes[row].tolist())) != meta.orig_size:
            boxes = rescale(boxes, told, meta.orig_size)
        if self._boxes.labels is None:
            return Target(boxes, torch.full((len(boxes),), label), meta)
        return Target(boxes, torch.from_numpy(self._boxes.labels[mine].copy()), meta)
