"""Pictures to train a detector with a list of classes on: with boxes, or with no more than names of what is in them.

The files are those of LVIS and, in the same form, of ImageNet-LVIS and of pseudo-annotations, as Detic and DECOLA have
them (https://github.com/facebookresearch/Detic, https://github.com/janghyuncho/DECOLA).
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from maskrcnn_benchmark.data.check import (
    CocoAnnotations,
    as_lists,
    check_annotations,
    describe_ids,
    read_json,
    refuse,
)
from maskrcnn_benchmark.data.datasets.lvis import LvisDataset
from maskrcnn_benchmark.data.datasets.tar import TarPictures
from maskrcnn_benchmark.data.index import first_rows
from maskrcnn_benchmark.data.pictures import PictureError, read_picture
from maskrcnn_benchmark.data.sample import Sample
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.structures.polygons import Polygon

logger = logging.getLogger(__name__)

LABELS = "pos_category_ids"
COCO_NAME = 16  # last characters of COCO_train2014_000000000009.jpg that are left of it in later editions
CORNERS = 3  # that an outline needs

Row = dict[str, Any]


@dataclass(frozen=True)
class LabelOptions:
    """What is taken of a file.

    Attributes:
        image_labels: Names of what is in a picture, ``pos_category_ids``; boxes are left out.
        outlines: Polygons of the objects too.
        keep_empty: Pictures without objects too.
        min_score: Boxes that have a score need at least this one.
        by_address: The address of a picture says where it lies, as in LVIS, and its file name only where it has none.
    """

    image_labels: bool = False
    outlines: bool = False
    keep_empty: bool = True
    min_score: float = 0.0
    by_address: bool = True


class LabelledPictures(LvisDataset):
    """Every picture of a file, by ascending id. Labels count from 1 in the order of the category ids.

    Args:
        images: Folder of the pictures.
        annotations: JSON.
        name: What the data set is called.
        options: What is taken of it.
        tars: Where the pictures are, when they are in tar files; the rows then have a ``tar_index``.

    Raises:
        DataError: the file is missing or broken, or has nothing to train on.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        name: str = "",
        options: LabelOptions = LabelOptions(),
        tars: TarPictures | None = None,
    ):
        self.annotations, self.options, self.tars = Path(annotations), options, tars
        self._outlines: dict[int, Any] = {}
        super().__init__(Path(images), self.annotations, name, plus_one=False)
        self.names = {label: name for label, (_, name) in enumerate(self.categories, 1)}
        self.notes: list[str] = []  # the log has them

    @property
    def label_to_category(self) -> dict[int, int]:
        """Label -> category id of the file: ids in ascending order."""
        return {label: category for label, (category, _) in enumerate(self.categories, 1)}

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int h, w; 0 where the annotations do not tell."""
        return self._images.sizes

    @property
    def told(self) -> bool:
        """Whether the categories of the file say in how many pictures they are."""
        return self._told is not None

    @property
    def pictures_of_classes(self) -> list[int]:
        """In how many pictures each class is: what the categories say (``image_count``), or else those of the file."""
        if self._told is not None:
            return self._told
        found = [np.unique(self.classes_of(index)) for index in range(len(self))]
        return np.bincount(np.concatenate([*found, [0]]).astype(np.int64), minlength=len(self.names) + 1)[1:].tolist()

    def classes_of(self, index: int) -> np.ndarray:
        """(K,) labels of a picture: of its boxes, or the names it has."""
        if self.options.image_labels:
            return self._image_labels(index)
        return np.asarray(self._labels[self._first[index] : self._first[index + 1]])

    def __getitem__(self, index: int) -> Sample:
        """One picture; with ``image_labels`` the target has these and no boxes.

        Raises:
            PictureError: it is missing or damaged.
        """
        sample = super().__getitem__(index)
        assert sample.target is not None
        target = sample.target
        if self.options.image_labels:
            none = torch.zeros(0, dtype=torch.int64)
            target = replace(target[none], image_labels=torch.from_numpy(self._image_labels(index)))
        elif self._outlines:
            mine = self._ids[self._first[index] : self._first[index + 1]].tolist()
            target = replace(target, polygons=tuple(_outline(self._outlines.get(number)) for number in mine))
        return replace(sample, target=target)

    def _picture(self, index: int) -> tuple[Image.Image, str]:
        if self.tars is None:
            return super()._picture(index)
        try:
            data = self.tars.read(int(self._tar_index[index]))
        except (OSError, zlib.error) as error:
            raise PictureError(self.file(index), f"damaged ({error})") from None
        return read_picture(self.file(index), self.size(index), data)

    def _image_labels(self, index: int) -> np.ndarray:
        return np.unique(self._positive[self._positive_first[index] : self._positive_first[index + 1]])

    def _read(self, annotations: Path) -> CocoAnnotations:
        data = as_lists(read_json(annotations), annotations)
        if self.options.by_address:
            name_pictures(data["images"], annotations, None if self.tars is None else len(self.tars))
        if all(type(row.get("id")) is int for row in data["categories"]):
            data["categories"].sort(key=lambda row: row["id"])
        rows = data["annotations"] = self._confident(data["annotations"])
        found = check_annotations(data, annotations)
        if self.options.outlines:
            numbered = found.ids.tolist() == [row.get("id") for row in rows]  # else they were given new numbers
            self._outlines = {
                row["id"] if numbered else place: row["segmentation"]
                for place, row in enumerate(rows, 1)
                if isinstance(row.get("segmentation"), list)
            }
        counts = [row.get("image_count") for row in found.categories]
        known = [count for count in counts if type(count) is int and count >= 0]
        self._told = known if len(known) == len(counts) else None
        label_of = {row["id"]: label for label, row in enumerate(found.categories, 1)}
        refuse(annotations, unknown_labels(found.images, set(label_of)))
        found = self._some(found)
        positive = [row.get(LABELS) or [] for row in found.images]
        self._positive = np.array([label_of[category] for row in positive for category in row], dtype=np.int64)
        self._positive_first = first_rows([len(row) for row in positive])
        self._tar_index = np.array([row.get("tar_index", 0) for row in found.images], dtype=np.int64)
        return found

    def _confident(self, rows: list[Row]) -> list[Row]:
        """Boxes without those whose score is too low."""
        least = self.options.min_score
        kept = [row for row in rows if not (isinstance(row.get("score"), (int, float)) and row["score"] < least)]
        if left_out := len(rows) - len(kept):
            logger.info(
                "%s: %d of %d boxes have a score below %g: left out", self.annotations, left_out, len(rows), least
            )
        return kept

    def _some(self, found: CocoAnnotations) -> CocoAnnotations:
        """Without the pictures that there is nothing to learn from.

        Raises:
            DataError: none is left.
        """
        keep = np.ones(len(found.images), dtype=bool)
        if self.options.image_labels:
            keep = np.array([bool(row.get(LABELS)) for row in found.images])
        elif not self.options.keep_empty:
            keep = np.bincount(found.picture[~found.crowd], minlength=len(keep)) > 0
        if keep.all():
            return found
        what = f"labels ({LABELS})" if self.options.image_labels else "objects"
        if not keep.any():
            raise DataError(
                f"{self.annotations}: none of its {len(keep)} pictures has {what}: there is nothing to train on"
            )
        logger.info("%s: %d of %d pictures have no %s: left out", self.annotations, (~keep).sum(), len(keep), what)
        mine = keep[found.picture]
        return replace(
            found,
            images=[row for row, kept in zip(found.images, keep, strict=True) if kept],
            ids=found.ids[mine],
            picture=(np.cumsum(keep) - 1)[found.picture[mine]],
            category=found.category[mine],
            boxes=found.boxes[mine],
            crowd=found.crowd[mine],
        )


def name_pictures(rows: list[Row], file: Path, in_tars: int | None) -> None:
    """Give each picture the ``file_name`` that it has below its folder, or, in tar files, its number.

    Args:
        rows: ``images`` of a file; changed.
        file: For messages.
        in_tars: How many pictures the tar files have; None: there are none.

    Raises:
        DataError: there is no number where one is needed, or no folder where there are only numbers.
    """
    for place, row in enumerate(rows):
        number = row.get("tar_index")
        if in_tars is not None:
            if type(number) is not int or not 0 <= number < in_tars:
                raise DataError(
                    f"{file}: images[{place}]: tar_index {number!r} is not one of the {in_tars} pictures in tar files"
                )
            row["file_name"] = f"tar_index {number}"
        elif isinstance(row.get("coco_url"), str):
            row["file_name"] = "/".join(row["coco_url"].split("/")[-2:])
        elif number is not None and "file_name" not in row:
            raise DataError(f"{file}: images[{place}] is in a tar file: the data set must be of kind imagenet_tar")
        elif str(row.get("file_name")).startswith("COCO_"):
            row["file_name"] = row["file_name"][-COCO_NAME:]


def unknown_labels(images: Sequence[Row], known: set[int]) -> Iterator[str]:
    """Image labels that are no category of the file."""
    for place, row in enumerate(images):
        labels = row.get(LABELS)
        about = f"images[{place}] (id {row['id']!r})"
        if labels is not None and not (isinstance(labels, list) and all(type(label) is int for label in labels)):
            yield f"{about}: {LABELS} {labels!r:.60} is not a list of category ids"
        elif wrong := [label for label in labels or () if label not in known]:
            yield f"{about}: {LABELS} has {wrong[0]}, which is not in categories ({describe_ids(known)})"


def _outline(parts: Any) -> tuple[Polygon, ...]:
    """The polygons of an object; parts that are none are left out."""
    arrays = [np.array(part, dtype=np.float64) for part in parts or ()]
    return tuple(part for part in arrays if part.ndim == 1 and len(part) % 2 == 0 and len(part) >= 2 * CORNERS)
