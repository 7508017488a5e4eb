"""A folder of pictures for each class, or a JSON that tells the class of each picture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskrcnn_benchmark.data.check import Row, as_lists, read_json, refuse
from maskrcnn_benchmark.data.datasets.class_pictures import ClassPictures, PictureBoxes, load_boxes
from maskrcnn_benchmark.data.datasets.json_index import coco_index
from maskrcnn_benchmark.data.forms.model import SUFFIXES
from maskrcnn_benchmark.data.index import Arrays, Index, cached, first_rows, pack, pack_value
from maskrcnn_benchmark.data.pictures import read_picture
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.structures.boxes import xywh_to_xyxy

VERSION = 1  # raise when the arrays of a JSON change


class ImageFolder(ClassPictures):
    """Pictures by class.

    Args:
        images: Folder of the pictures.
        annotations: The same folder: below it each class has one of its own, whose name it has; labels count from 1 in
            the order of the names, pictures come by class and name. Or a JSON as DECOLA has for ImageNet: ``images``
            with ``pos_category_ids``, and ``categories``, whose ascending ids give the labels.
        name: What the data set is called.
        boxes: ``.npz`` or ``.pth`` with boxes of the pictures in their order, or COCO JSON with boxes by file name;
            None: one around each picture.

    Raises:
        DataError: nothing is there, or a file is broken; or the boxes are of other pictures or classes.
    """

    def __init__(self, images: Path, annotations: Path, name: str = "", boxes: Path | None = None):
        self.folder = Path(images)
        listed = Path(annotations)
        if not listed.exists():
            raise DataError(f"{listed}: not there; give a folder with a folder of pictures for each class, or a JSON")
        if listed.is_dir():
            index = Index(_walk(listed))
        else:
            index = cached("classes", [listed], VERSION, lambda: _from_json(listed))
        names = dict(enumerate(index.value("names"), 1))
        found = None
        if boxes is not None and boxes.suffix == ".json":
            found = _coco_boxes(boxes, index.texts("keys"), {text: label for label, text in names.items()})
        elif boxes is not None:
            found = load_boxes(boxes, len(index["labels"]), listed)
        super().__init__(name or self.folder.name, listed, index, names, found)
        if listed.is_file():
            self.notes += index.value("notes")

    def _file(self, row: int) -> Path:
        return self.folder / self._index.text("keys", row)

    def _open(self, row: int) -> tuple[Image.Image, str]:
        height, width = self._index["sizes"][row].tolist()
        return read_picture(self._file(row), (height, width) if height and width else None)


def _walk(root: Path) -> Arrays:
    """Classes and files in the order of their names; any depth below a class."""
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{root}: has no folders; there must be one of pictures for each class, with its name")
    keys: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names, 1):
        found = [
            os.path.relpath(os.path.join(folder, file), root)
            for folder, _, files in sorted(os.walk(root / name, followlinks=True))
            for file in sorted(files)
            if os.path.splitext(file)[1].lower() in SUFFIXES
        ]
        if not found:
            raise DataError(f"{root / name}: has no pictures ({', '.join(SUFFIXES)}); take the folder away, or fill it")
        keys += found
        labels += [label] * len(found)
    arrays: Arrays = {
        "labels": np.array(labels, dtype=np.int64),
        "sizes": np.zeros((len(keys), 2), dtype=np.int32),
    }
    return arrays | pack("keys", [key.replace(os.sep, "/") for key in keys]) | pack_value("names", names)


def _from_json(path: Path) -> Arrays:
    data = as_lists({"annotations": [], **_object(read_json(path), path)}, path)
    categories = sorted(data["categories"], key=lambda row: row.get("id", 0))
    refuse(path, _problems(data["images"], categories))
    label_of = {row["id"]: label for label, row in enumerate(categories, 1)}
    images = sorted(data["images"], key=lambda row: row["id"])
    several = sum(len(row["pos_category_ids"]) > 1 for row in images)
    notes = [f"{several} of {len(images)} pictures have several classes: the first one counts"] if several else []
    arrays: Arrays = {
        "labels": np.array([label_of[row["pos_category_ids"][0]] for row in images], dtype=np.int64),
        "sizes": np.array([(row.get("height", 0), row.get("width", 0)) for row in images], np.int32).reshape(-1, 2),
    }
    arrays |= pack("keys", [row["file_name"] for row in images])
    return arrays | pack_value("names", [row["name"] for row in categories]) | pack_value("notes", notes)


def _object(data: object, path: Path) -> dict[str, object]:
    if not isinstance(data, dict):
        raise DataError(f"{path}: holds {type(data).__name__}, not images with pos_category_ids and categories")
    return data


def _problems(images: list[Row], categories: list[Row]) -> Iterator[str]:
    ids = {row.get("id") for row in categories}
    if len(ids) < len(categories) or not all(type(number) is int for number in ids):
        yield "categories: each needs a whole number of its own as id"
        return
    for place, row in enumerate(categories):
        if not isinstance(row.get("name"), str):
            yield f"categories[{place}] (id {row.get('id')!r}): no name"
    for place, row in enumerate(images):
        where, classes = f"images[{place}] (id {row.get('id')!r})", row.get("pos_category_ids")
        if type(row.get("id")) is not int or not isinstance(row.get("file_name"), str):
            yield f"{where}: needs a whole number as id, and a file_name"
        elif not isinstance(classes, list) or not classes:
            yield f"{where}: no pos_category_ids, the classes that it shows"
        elif unknown := [number for number in classes if number not in ids]:
            yield f"{where}: pos_category_ids has {unknown[0]!r}, which is not in categories"


def _coco_boxes(path: Path, keys: list[str], label_of: dict[str, int]) -> PictureBoxes:
    """Boxes of a COCO file, in the order of the pictures."""
    index = coco_index(path)
    row_of = {index.text("files", row): row for row in range(len(index["first"]) - 1)}
    missing = [key for key in keys if key not in row_of]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(keys)} pictures are not in it, such as {missing[0]}: it is of other "
            "pictures; make it anew"
        )
    names = [row["name"] for row in index.value("categories")]
    unknown = [name for name in names if name not in label_of]
    if unknown:
        raise DataError(f"{path}: category {unknown[0]!r} is none of the {len(label_of)} classes of the pictures")
    labels = np.array([label_of[name] for name in names], dtype=np.int64)
    first, counts = index["first"], np.diff(index["first"])
    rows = [row_of[key] for key in keys]
    order = np.concatenate([np.arange(first[row], first[row + 1]) for row in rows])
    boxes = xywh_to_xyxy(torch.from_numpy(index["boxes"][order]), plus_one=True).numpy()
    return PictureBoxes(path, first_rows(counts[rows]), boxes, labels[index["category"][order]])
