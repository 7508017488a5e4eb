"""Detection data in COCO's format: instances with boxes, and what comes near it (Roboflow exports, ids from 0)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from maskrcnn_benchmark.data.catalog import Entry
from maskrcnn_benchmark.data.check import CocoAnnotations, read_annotations
from maskrcnn_benchmark.data.datasets.categories import Row, overridden, visible
from maskrcnn_benchmark.data.datasets.picture_rows import PictureRows
from maskrcnn_benchmark.data.pictures import PictureError, Size, read_picture
from maskrcnn_benchmark.data.sample import Sample
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.structures import ImageMeta, Target
from maskrcnn_benchmark.structures.boxes import xywh_to_xyxy

logger = logging.getLogger(__name__)


class CocoDataset:
    """Every picture of a COCO file, by ascending id, with its boxes.

    Labels count from 1 in the order of the categories. A category 0 that no box has is the name that Roboflow gives to
    the whole project, not a class: it is left out, and labels do not shift.

    Args:
        images: Folder of the pictures.
        annotations: COCO JSON.
        name: What the data set is called.
        override_categories: Category rows that replace those of the file, with the same ids: their order gives the
            labels and their names the prompt.
        plus_one: Target boxes hold their last pixel (x2 = x + w - 1), as in the maskrcnn-benchmark lineage.

    Raises:
        DataError: the file is missing or broken, or the other categories do not fit it.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        name: str = "",
        override_categories: Sequence[Row] | None = None,
        plus_one: bool = True,
    ):
        self.folder, self.name = Path(images), name or Path(annotations).stem
        data = self._read(Path(annotations))
        self.notes = list(data.notes)
        rows = self._rows = visible(data.categories, data.in_use, data.file, self.notes)
        if override_categories is not None:
            rows = overridden(rows, override_categories, data.categories, data.file)
        self.categories: list[tuple[int, str]] = [(row["id"], row["name"]) for row in rows]
        self._images = PictureRows(data.images)
        self._index_boxes(data, plus_one)
        for note in self.notes:
            logger.warning("%s: %s", data.file, note)

    def _read(self, annotations: Path) -> CocoAnnotations:
        return read_annotations(annotations)

    @classmethod
    def from_entry(cls, entry: Entry, override_categories: Sequence[Row] | None = None) -> CocoDataset:
        """The data set of a catalog entry.

        Raises:
            DataError: see the class; also when the entry has a key that nothing here reads.
        """
        scored = {"hierarchy"} if entry.evaluator == "openimages" else set()
        read = {"augment", "copies", *scored}  # by trainings, which may be on the same set, and by scoring
        for key in sorted(set(entry.options) - read):
            raise DataError(
                f"data set {entry.name!r}: nothing reads its key {key!r}: give img_dir, ann_file, and where needed "
                "kind, evaluator, augment or copies; hierarchy goes with the evaluator openimages"
            )
        return cls(entry.images, entry.annotations, entry.name, override_categories)

    @property
    def label_to_category(self) -> dict[int, int]:
        """Label -> category id of the file."""
        return {label: category for label, (category, _) in enumerate(self.categories, 1)}

    @property
    def prompt_categories(self) -> list[tuple[int, str]]:
        """(label, name) of what to look for."""
        return [(label, name) for label, (_, name) in enumerate(self.categories, 1)]

    @property
    def evaluation_categories(self) -> list[dict[str, Any]]:
        """Rows of the file, under its own names, for the categories that count."""
        return [dict(row) for row in self._rows]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        """One picture.

        Raises:
            PictureError: it is missing or damaged.
        """
        image_id, file = self._images.image_id(index), self.file(index)
        try:
            picture, note = self._picture(index)
        except PictureError as error:
            raise PictureError(file, error.reason, about=f" (image id {image_id!r})") from None
        meta = self.meta(index, (picture.height, picture.width))
        mine = slice(self._first[index], self._first[index + 1])
        target = Target(torch.from_numpy(self._boxes[mine].copy()), torch.from_numpy(self._labels[mine].copy()), meta)
        return Sample(picture, meta, target, note)

    def _picture(self, index: int) -> tuple[Image.Image, str]:
        """The picture, and what is odd about it."""
        return read_picture(self.file(index), self.size(index))

    def meta(self, index: int, orig_size: Size) -> ImageMeta:
        """What is known about a picture of (h, w) on disk."""
        image_id, file = self._images.image_id(index), str(self.file(index))
        return ImageMeta(image_id, size=orig_size, orig_size=orig_size, file=file, dataset=self.name)

    def classes_of(self, index: int) -> np.ndarray:
        """(K,) labels of the objects of a picture."""
        return np.asarray(self._labels[self._first[index] : self._first[index + 1]])

    def file(self, index: int) -> Path:
        return self.folder / self._images.name(index)

    def size(self, index: int) -> Size | None:
        """(h, w) that the annotations give; None when they do not."""
        return self._images.size(index)

    def _index_boxes(self, data: CocoAnnotations, plus_one: bool) -> None:
        """Boxes of all pictures in one array: those of picture i are rows ``_first[i]`` to ``_first[i + 1]``."""
        label_of = {category: label for label, category in self.label_to_category.items()}
        of_category = np.array([label_of.get(row["id"], 0) for row in data.categories], dtype=np.int64)
        labels = of_category[data.category]
        boxes = xywh_to_xyxy(torch.from_numpy(data.boxes.astype(np.float32)), plus_one)
        sizes = np.where(self._images.sizes > 0, self._images.sizes, 2**30).astype(np.float32)
        border = torch.from_numpy(sizes[data.picture]) - int(plus_one)
        boxes = torch.minimum(boxes, border.flip(1).repeat(1, 2))
        solid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).numpy()
        thin = int((~solid & ~data.crowd).sum())
        if thin:
            self.notes.append(
                f"{thin} box{'es' * (thin > 1)} of at most one pixel in width or height: left out of the targets"
            )
        keep = np.flatnonzero(solid & ~data.crowd)
        order = keep[np.argsort(data.picture[keep], kind="stable")]
        self._boxes, self._labels, self._ids = boxes.numpy()[order], labels[order], data.ids[order]
        self._first = np.searchsorted(data.picture[order], np.arange(len(data.images) + 1))
