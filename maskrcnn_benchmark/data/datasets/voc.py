"""PASCAL VOC: a folder with Annotations/<id>.xml, ImageSets/Main/<split>.txt and JPEGImages/<id>.jpg."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import numpy.typing as npt
import torch

from maskrcnn_benchmark.data.catalog import Entry
from maskrcnn_benchmark.data.check import MOST_PROBLEMS, AnnotationError
from maskrcnn_benchmark.data.pictures import PictureError, Size, read_picture
from maskrcnn_benchmark.data.sample import Sample
from maskrcnn_benchmark.data.xml_files import parse_xml, read_bytes
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.structures import ImageMeta, Target
from maskrcnn_benchmark.structures.boxes import clip

logger = logging.getLogger(__name__)

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
ENTRY_KEYS = ("split", "classes", "augment", "copies")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
NO_SIZE = (0, 0)


@dataclass(frozen=True)
class VocObjects:
    """N objects of one picture, as they are annotated."""

    boxes: npt.NDArray[np.float32]  # (N, 4) xyxy, pixels from 0, the last pixel inside: one less than in the file
    labels: npt.NDArray[np.int64]  # (N,) from 1, in the order of the classes
    difficult: npt.NDArray[np.bool_]  # (N,)


class VocDataset:
    """The pictures of a split, in the order of its list.

    Args:
        images: Folder with JPEGImages, or with the pictures themselves.
        annotations: Folder with Annotations and ImageSets.
        split: Name of a list in ImageSets/Main, such as "test".
        name: What the data set is called.
        classes: Names that objects may have, in the order of the labels; case does not matter.
        keep_difficult: Objects marked as difficult are targets too: they are in evaluation, and not in training.

    Attributes:
        annotations: The list of the split.
        notes: What was completed or left out, for the log.
        digest: sha256 of the list and of all annotations.

    Raises:
        DataError: a file is missing or broken; names file, object and field, with up to 20 problems in the log.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        split: str,
        name: str = "",
        classes: Sequence[str] = VOC_CLASSES,
        keep_difficult: bool = True,
    ):
        self.name, self.classes = name or f"{Path(annotations).name}_{split}", tuple(classes)
        self.keep_difficult = keep_difficult
        self.folder = Path(images) / "JPEGImages" if (Path(images) / "JPEGImages").is_dir() else Path(images)
        self.annotations = _list_of(Path(annotations), split)
        self._labels = _label_of(self.classes, self.name)
        self.notes: list[str] = []
        self._read(Path(annotations) / "Annotations", self._read_ids())
        for note in self.notes:
            logger.warning("%s: %s", self.annotations, note)

    @classmethod
    def from_entry(cls, entry: Entry, keep_difficult: bool = True) -> VocDataset:
        """The data set of a catalog entry.

        Raises:
            DataError: see the class; also when the entry has no split, or a key that nothing here reads.
        """
        for key in set(entry.options) - set(ENTRY_KEYS):
            raise DataError(
                f"data set {entry.name!r}: nothing reads its key {key!r} when it is of kind 'voc': "
                f"give img_dir, ann_file, and {', '.join(ENTRY_KEYS)}"
            )
        split, classes = entry.options.get("split"), entry.options.get("classes", VOC_CLASSES)
        if not isinstance(split, str) or not split:
            raise DataError(f"data set {entry.name!r}: split is {split!r}: name a list in ImageSets/Main, such as test")
        if isinstance(classes, str) or not all(isinstance(item, str) for item in classes):
            raise DataError(f"data set {entry.name!r}: classes is {classes!r}: give a list of names")
        return cls(entry.images, entry.annotations, split, entry.name, classes, keep_difficult)

    @property
    def label_to_category(self) -> dict[int, int]:
        """Label -> category id, which are the same here."""
        return {label: label for label in range(1, len(self.classes) + 1)}

    @property
    def prompt_categories(self) -> list[tuple[int, str]]:
        """(label, name) of what to look for."""
        return list(enumerate(self.classes, 1))

    @property
    def evaluation_categories(self) -> list[dict[str, Any]]:
        """The classes as COCO's rows."""
        return [{"id": label, "name": name} for label, name in self.prompt_categories]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """One picture; the boxes of its target are cut at the border, those without an extent are left out.

        Raises:
            PictureError: it is missing or damaged.
        """
        file = self.file(index)
        try:
            picture, note = read_picture(file, self.size(index))
        except PictureError as error:
            raise PictureError(file, error.reason, about=f" (image id {self.ids[index]!r})") from None
        meta, found = self.meta(index, (picture.height, picture.width)), self.objects[index]
        boxes = clip(torch.from_numpy(found.boxes), meta.orig_size, plus_one=True)
        keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        if not self.keep_difficult:
            keep &= ~torch.from_numpy(found.difficult)
        return Sample(picture, meta, Target(boxes[keep], torch.from_numpy(found.labels)[keep], meta), note)

    def meta(self, index: int, orig_size: Size) -> ImageMeta:
        """What is known about a picture of (h, w) on disk."""
        file = str(self.file(index))
        return ImageMeta(self.ids[index], size=orig_size, orig_size=orig_size, file=file, dataset=self.name)

    def file(self, index: int) -> Path:
        return self.folder / self._files[index]

    def size(self, index: int) -> Size | None:
        """(h, w) that the annotations give; None when they do not."""
        return None if self._sizes[index] == NO_SIZE else self._sizes[index]

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int h, w; 0 where the annotations do not tell."""
        return np.array(self._sizes, dtype=np.int32).reshape(-1, 2)

    def _read_ids(self) -> list[str]:
        try:
            lines = [line.strip() for line in read_bytes(self.annotations).decode().splitlines()]
        except UnicodeDecodeError:
            raise DataError(f"{self.annotations}: is no text in UTF-8; it should list picture names") from None
        ids = [line for line in lines if line]
        if not ids:
            raise DataError(f"{self.annotations}: lists no picture")
        if twice := [name for name, count in Counter(ids).items() if count > 1]:
            raise DataError(f"{self.annotations}: names {twice[0]!r} more than once; a picture counts once")
        return ids

    def _read(self, folder: Path, ids: Sequence[str]) -> None:
        self.ids, self.objects = ids, list[VocObjects]()
        self._files: list[str] = []
        self._sizes: list[Size] = []
        digest, problems = hashlib.sha256("\n".join(ids).encode()), list[str]()
        for name in ids:
            path = folder / f"{name}.xml"
            try:
                data = read_bytes(path)
                root = parse_xml(data, path)
                self.objects.append(_objects(root, path, self._labels))
                self._sizes.append(_size(root, path))
                self._files.append(name + _ending(root))
                digest.update(data)
            except DataError as error:
                problems.append(str(error).removeprefix(f"{folder}/"))
                if len(problems) == MOST_PROBLEMS:
                    break
        for problem in problems if len(problems) > 1 else []:
            logger.error("%s: %s", folder, problem)
        if problems:
            raise AnnotationError(folder, problems)
        self.digest = digest.hexdigest()
        if unknown := self._sizes.count(NO_SIZE):
            self.notes.append(f"{unknown} of {len(ids)} annotations have no <size>: taken from the pictures")


def _list_of(folder: Path, split: str) -> Path:
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    for needed in (folder / "Annotations", path.parent):
        if not needed.is_dir():
            raise DataError(f"{needed}: no such folder; VOC data have Annotations and ImageSets/Main in one folder")
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt") if "_" not in file.stem)) or "none"
        raise DataError(f"{path}: no such file; the splits there are {known}")
    return path


def _label_of(classes: Sequence[str], name: str) -> dict[str, int]:
    labels = {_plain(text): label for label, text in enumerate(classes, 1)}
    if len(labels) < len(classes) or not classes or "" in labels:
        raise DataError(f"data set {name!r}: classes must be names, each of them once, got {', '.join(classes)!r}")
    return labels


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _objects(root: Element, path: Path, labels: Mapping[str, int]) -> VocObjects:
    boxes, found, difficult = [], [], []
    for number, row in enumerate(root.findall("object"), 1):
        name = (row.findtext("name") or "").strip()
        place = f"{path}: object {number} ({name or 'without a name'})"
        if _plain(name) not in labels:
            raise DataError(f"{place}: name is none of the {len(labels)} classes: {', '.join(labels)}")
        found.append(labels[_plain(name)])
        boxes.append(_box(row, place))
        difficult.append(_flag(row, "difficult", place))
    return VocObjects(
        np.array(boxes, dtype=np.float32).reshape(-1, 4) - np.float32(1),
        np.array(found, dtype=np.int64),
        np.array(difficult, dtype=bool),
    )


def _box(row: Element, place: str) -> list[float]:
    """xmin, ymin, xmax, ymax as in the file, where pixels count from 1."""
    corners = row.find("bndbox")
    if corners is None:
        raise DataError(f"{place}: has no bndbox")
    box = [_number(corners, field, f"{place}: bndbox") for field in CORNERS]
    if box[2] < box[0] or box[3] < box[1]:
        raise DataError(f"{place}: bndbox {box}: xmax is below xmin or ymax below ymin; VOC wants {', '.join(CORNERS)}")
    return box


def _number(row: Element, field: str, place: str) -> float:
    text = row.findtext(field)
    if text is None:
        raise DataError(f"{place}: has no {field}")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{place}: {field} is {text!r}, not a number")
    return value


def _flag(row: Element, field: str, place: str) -> bool:
    """0 where nothing is said: only the devkit's own files have every field."""
    text = (row.findtext(field) or "0").strip() or "0"
    if text not in ("0", "1"):
        raise DataError(f"{place}: {field} is {text!r}, not 0 or 1")
    return text == "1"


def _size(root: Element, path: Path) -> Size:
    """(h, w), or :data:`NO_SIZE`."""
    row = root.find("size")
    if row is None:
        return NO_SIZE
    height, width = (_number(row, field, f"{path}: size") for field in ("height", "width"))
    if height < 1 or width < 1 or height % 1 or width % 1:
        raise DataError(
            f"{path}: size {width:g}x{height:g} is not that of a picture: mend it, or take <size> out to have it read "
            "from the picture"
        )
    return int(height), int(width)


def _ending(root: Element) -> str:
    """Of the picture's file, which is called like its annotation; .jpg unless <filename> has another one."""
    ending = Path((root.findtext("filename") or "").strip()).suffix
    return ending if ending.lower() in PICTURES else ".jpg"
