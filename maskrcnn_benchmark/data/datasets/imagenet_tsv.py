"""ImageNet-22k as DAP has it: tab-separated files ``trainval_0_64.tsv`` to ``trainval_63_64.tsv``.

A split ``X`` has ``X.tsv`` (key, anything, base64 of the picture), ``X.lineidx`` (offsets of its lines), ``X.hw.tsv``
(key, height and width), and either ``X.<boxes>.pth`` or ``X.label.tsv`` (see :mod:`.imagenet_labels`). Beside them,
``labelmap.txt`` has the name of a class in each line; the first one has the label 1.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from maskrcnn_benchmark.data.check import refuse
from maskrcnn_benchmark.data.datasets.class_pictures import ClassPictures, PictureBoxes, load_boxes
from maskrcnn_benchmark.data.datasets.imagenet_labels import parse_objects, read_labelmap
from maskrcnn_benchmark.data.datasets.tsv_file import TsvFile, open_tsv
from maskrcnn_benchmark.data.index import Arrays, cached, first_rows, pack
from maskrcnn_benchmark.data.pictures import PictureError, Size, read_picture
from maskrcnn_benchmark.data.sample import Sample
from maskrcnn_benchmark.errors import DataError

logger = logging.getLogger(__name__)

VERSION = 1  # raise when the arrays change
SPLIT = re.compile(r"(.+)_(\d+)_(\d+)\.tsv")


class BrokenLine(PictureError):
    """A line of a picture file that is not what it should be; no other picture takes its place."""


class ImageNetTsv(ClassPictures):
    """The pictures of one split, in the order of its lines.

    A picture that cannot be decoded is replaced by that of the next line that can, for good, as in the original; the
    note of the sample says so.

    Args:
        path: ``X.tsv``.
        name: What the data set is called.
        boxes: ``cam1nms8xyxy`` for ``X.cam1nms8xyxy.pth``; "": those of ``X.label.tsv``.
        class_base: What the numbers of classes in a label file begin with, 0 or 1; None: they must be names.

    Raises:
        DataError: a file is missing or broken; names file and line.
    """

    def __init__(self, path: Path, name: str = "", boxes: str = "", class_base: int | None = None):
        self.path = path
        names = read_labelmap(path.with_name("labelmap.txt"))
        parts = {"hw": path.with_suffix(".hw.tsv")} | ({} if boxes else {"label": path.with_suffix(".label.tsv")})
        for part in (path, *parts.values()):
            if not part.is_file():
                raise DataError(f"{part}: no such file; a split of ImageNet-22k needs it")
        sources = [path, path.with_name("labelmap.txt"), *parts.values()]
        kind = "tsv22k" if class_base is None else f"tsv22k-{class_base}"
        index = cached(kind, sources, VERSION, lambda: _build(path, parts.get("label"), names, class_base))
        if boxes:
            found = load_boxes(path.with_suffix(f".{boxes}.pth"), len(index["labels"]), path)
            if found.labels is None:
                raise DataError(f"{found.file}: its boxes have no labels; make it anew")
        else:
            found = PictureBoxes(parts["label"], index["first"], index["boxes"], index["box_labels"])
        super().__init__(name or path.stem, found.file, index, dict(enumerate(names, 1)), found)
        self._tsv = TsvFile(path, index["offsets"])
        self._instead: dict[int, tuple[int, str]] = {}  # row of a picture that cannot be decoded -> another, and why

    def label(self, index: int) -> int:
        """Of the picture's first box, from 1."""
        assert self._boxes is not None
        assert self._boxes.labels is not None
        return int(self._boxes.labels[self._boxes.first[self._rows[index]]])

    def _labels(self) -> list[tuple[np.ndarray, np.ndarray, Path]]:
        assert self._boxes is not None
        assert self._boxes.labels is not None
        return [(self._boxes.labels, self._boxes.first, self._boxes.file)]

    def _file(self, row: int) -> Path:
        return self.path

    def _place(self, row: int) -> str:
        return f"{self.path}:{row + 1}"

    def _sample(self, row: int, instead: str = "") -> Sample:
        if row in self._instead:
            other, reason = self._instead[row]
            return super()._sample(other, f"{reason}: {self._place(other)} is used instead")
        try:
            return super()._sample(row)
        except BrokenLine:
            raise
        except PictureError as error:
            first = error
        rows = self._rows.tolist()
        place = rows.index(row)
        for other in (*rows[place + 1 :], *rows[:place]):
            try:
                sample = super()._sample(other, f"{first}: {self._place(other)} is used instead")
            except BrokenLine:
                raise
            except PictureError:
                continue
            self._instead[row] = (other, str(first))
            return sample
        raise first

    def _open(self, row: int) -> tuple[Image.Image, str]:
        columns, key = self._tsv.row(row), self._index.text("keys", row)
        about = f":{row + 1} (key {key!r})"
        if len(columns) < 3:
            raise BrokenLine(self.path, f"{len(columns)} columns, not key, anything, picture; it is cut short", about)
        if columns[0] != key:
            raise BrokenLine(self.path, f"is a picture with the key {columns[0]!r}", about)
        try:
            data = base64.b64decode(columns[-1], validate=True)
        except binascii.Error as error:
            raise BrokenLine(self.path, f"the picture is not base64 ({error}); it is cut short", about) from None
        height, width = self._index["sizes"][row].tolist()
        try:
            return read_picture(self.path, (height, width), data)
        except PictureError as error:
            raise PictureError(self.path, error.reason, about) from None


class ImageNetSplits:
    """All splits in a folder as one data set.

    Args:
        folder: Has the files.
        name: What the data set is called.
        boxes: See :class:`ImageNetTsv`.
        class_base: See :class:`ImageNetTsv`.
        order_seed: A fixed random order: the splits in one, and the pictures inside each; None: as they are.

    Raises:
        DataError: see :class:`ImageNetTsv`; also when there is no split.
    """

    def __init__(
        self,
        folder: Path,
        name: str = "",
        boxes: str = "",
        class_base: int | None = None,
        order_seed: int | None = None,
    ):
        self.annotations, self.name = Path(folder), name or Path(folder).name
        files, self.notes = _splits(self.annotations)
        self.parts = [ImageNetTsv(file, self.name, boxes, class_base) for file in files]
        self.names = self.parts[0].names
        self.notes += [note for part in self.parts for note in part.notes]
        sizes = [len(part) for part in self.parts]
        if order_seed is None:
            self._orders: list[np.ndarray] | None = None
        else:
            rng = np.random.RandomState(order_seed)  # its stream does not change between versions
            turn = rng.permutation(len(self.parts))
            self.parts = [self.parts[part] for part in turn.tolist()]
            sizes = [len(part) for part in self.parts]
            self._orders = [rng.permutation(size) for size in sizes]
        self._first: list[int] = first_rows(sizes).tolist()

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, index: int) -> Sample:
        """One picture.

        Raises:
            PictureError: its line is broken, or no picture of its split can be decoded.
        """
        part, place = self._locate(index)
        return part[place]

    def file(self, index: int) -> Path:
        return self._locate(index)[0].path

    def key(self, index: int) -> str:
        part, place = self._locate(index)
        return part.key(place)

    def label(self, index: int) -> int:
        """Of the picture, from 1."""
        part, place = self._locate(index)
        return part.label(place)

    def size(self, index: int) -> Size | None:
        """(h, w) that the annotations give."""
        part, place = self._locate(index)
        return part.size(place)

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int32 h, w."""
        every = [part.sizes for part in self.parts]
        if self._orders is not None:
            every = [sizes[order] for sizes, order in zip(every, self._orders, strict=True)]
        return np.concatenate(every)

    def refuse_labels(self, classes: int) -> None:
        """See :meth:`ClassPictures.refuse_labels`."""
        for part in self.parts:
            part.refuse_labels(classes)

    def _locate(self, index: int) -> tuple[ImageNetTsv, int]:
        number = bisect_right(self._first, index) - 1
        place = index - self._first[number]
        return self.parts[number], place if self._orders is None else int(self._orders[number][place])


def _splits(folder: Path) -> tuple[list[Path], list[str]]:
    """The files of the splits by number, and what is missing."""
    found: dict[tuple[str, int], dict[int, Path]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := SPLIT.fullmatch(path.name):
            found.setdefault((match[1], int(match[3])), {})[int(match[2])] = path
    if not found:
        raise DataError(f"{folder}: has no splits; they are called like trainval_0_64.tsv")
    if len(found) > 1:
        kinds = ", ".join(f"{stem}_*_{count}.tsv" for stem, count in sorted(found))
        raise DataError(f"{folder}: has splits of several kinds, {kinds}: keep one of them in the folder")
    (stem, count), files = found.popitem()
    missing = [str(number) for number in range(count) if number not in files]
    note = f"{len(missing)} of {count} splits {stem}_*_{count}.tsv are not there: {', '.join(missing)}"
    return [files[number] for number in sorted(files)], [note] if missing else []


def _build(path: Path, label_file: Path | None, names: list[str], class_base: int | None) -> Arrays:
    offsets = open_tsv(path).offsets
    _refuse_cut(path, len(offsets))
    keys, sizes = _read_sizes(path.with_suffix(".hw.tsv"), path, len(offsets))
    arrays: Arrays = {"offsets": offsets, "sizes": sizes, "labels": np.zeros(len(keys), dtype=np.int64)}
    arrays |= pack("keys", keys)
    return arrays if label_file is None else arrays | _read_objects(label_file, path, keys, names, class_base)


def _refuse_cut(path: Path, lines: int) -> None:
    with open(path, "rb") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            raise DataError(f"{path}:{lines}: the last line has no end: the file is cut short; copy it again")


def _lines(path: Path, pictures: Path, count: int) -> list[list[str]]:
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a text file that can be read ({error})") from None
    if len(rows) != count:
        raise DataError(f"{path}: has {len(rows)} lines, but {pictures.name} has {count}: one of them is cut short")
    return rows


def _read_sizes(path: Path, pictures: Path, count: int) -> tuple[list[str], np.ndarray]:
    rows = _lines(path, pictures, count)
    found = [" ".join(row[1:]).split() for row in rows]
    refuse(
        path,
        (
            f"line {number}: {' '.join(size)!r} is not height and width"
            for number, size in enumerate(found, 1)
            if len(size) != 2 or not all(side.isascii() and side.isdecimal() and int(side) for side in size)
        ),
    )
    return [row[0].strip() for row in rows], np.array(found).astype(np.int32).reshape(-1, 2)


def _read_objects(
    path: Path, pictures: Path, keys: list[str], names: list[str], class_base: int | None
) -> dict[str, np.ndarray]:
    rows = _lines(path, pictures, len(keys))
    many = Counter(names)
    label_of = {name: label if many[name] == 1 else 0 for label, name in enumerate(names, 1)}
    objects: list[list[tuple[int, list[float]]]] = []

    def problems() -> Iterator[str]:
        for number, (row, key) in enumerate(zip(rows, keys, strict=True), 1):
            try:
                if row[0].strip() != key:
                    raise ValueError(f"is of {row[0]!r}, but the picture is {key!r}")
                objects.append(parse_objects(row, label_of, class_base))
            except ValueError as error:
                yield f"line {number}: {error}"

    refuse(path, problems())
    return {
        "first": first_rows([len(row) for row in objects]),
        "boxes": np.array([box for row in objects for _, box in row], dtype=np.float32).reshape(-1, 4),
        "box_labels": np.array([label for row in objects for label, _ in row], dtype=np.int64),
    }
