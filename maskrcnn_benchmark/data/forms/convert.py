"""Data of one form written in another; what the other form cannot hold is counted and told.

Boxes keep their corners: COCO and LabelMe to a millionth of a pixel, YOLO to eight digits of the picture's side (less
than a thousandth of a pixel), and PASCAL VOC, whose corners are whole numbers, to half a pixel.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from maskrcnn_benchmark.data.forms.model import ALL, DataSet, Picture, Thing
from maskrcnn_benchmark.errors import ConfigError, DataError

DIGITS = 6  # after the point, of pixels in JSON
JSON = "annotations.json"
MARKS = ("difficult", "truncated")

Names = Mapping[int, str]  # id() of a picture -> its file name, each once


def convert(data: DataSet, folder: str | Path, to: str, link: bool = False) -> Counter[str]:
    """Write a data set, pictures too, into a new folder.

    ======== ======================================================================================
    coco     ``<split>/annotations.json`` with the pictures beside it
    voc      ``Annotations``, ``JPEGImages``, ``ImageSets/Main/<split>.txt``, and ``classes.txt``
    yolo     ``data.yaml``, ``images/<split>``, ``labels/<split>``
    labelme  ``<split>/<picture>.json`` with the pictures beside them, and ``labels.txt``
    ======== ======================================================================================

    Args:
        data: From :func:`maskrcnn_benchmark.data.forms.read.usable`.
        folder: Must not be there, or be empty.
        to: The form.
        link: Symbolic links in place of copies of the pictures.

    Returns:
        What is not in the result, or there in another way -> how often.

    Raises:
        ConfigError: the folder is in use.
        DataError: a picture is missing or cannot be read, or the data are captions.
    """
    if data.form == "mdetr":
        raise DataError(f"{data.root}: captions with boxes (MDETR) have no classes: no other form can hold them")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already: name a new folder to convert into")
    for picture in data.pictures:
        need_picture(picture)
    lost = Counter(data.lost)
    names = _names(data, lost)
    WRITERS[to](data, folder, names, lost)
    for split, pictures in data.splits.items():
        for picture in pictures:
            _bring(picture.file, folder / PLACES[to].format(split=split) / names[id(picture)], link)
    return +lost


def need_picture(picture: Picture) -> None:
    """That a picture and its size are there.

    Raises:
        DataError: they are not.
    """
    if not picture.file.is_file() or picture.size is None:
        what = "cannot be read" if picture.file.is_file() else "is missing"
        raise DataError(f"{picture.source}: the picture {picture.file} {what}: `mrb data check` lists all of them")


def coco_tree(pictures: Sequence[Picture], classes: Sequence[str], names: Names) -> dict[str, Any]:
    """What a COCO file holds; ids count from 1, categories in the order of the classes."""
    number = {name: index for index, name in enumerate(classes, 1)}
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for index, picture in enumerate(pictures, 1):
        assert picture.size is not None
        height, width = picture.size
        images.append({"id": index, "file_name": names[id(picture)], "width": width, "height": height})
        for thing in picture.things:
            rows.append({"id": len(rows) + 1, "image_id": index, **_coco_row(thing, number[thing.name])})
    categories = [{"id": index, "name": name} for name, index in number.items()]
    return {"images": images, "annotations": rows, "categories": categories}


def _coco_row(thing: Thing, category: int) -> dict[str, Any]:
    x, y = thing.box[:2]
    bbox = [round(value, DIGITS) for value in (x, y, thing.width, thing.height)]
    area = round(thing.width * thing.height, DIGITS) if thing.area is None else thing.area
    row: dict[str, Any] = {"category_id": category, "bbox": bbox, "area": area, "iscrowd": int(thing.crowd)}
    if thing.segmentation is not None:
        row["segmentation"] = thing.segmentation
    return row | {key: 1 for key in MARKS if getattr(thing, key)}


def _write_coco(data: DataSet, folder: Path, names: Names, lost: Counter[str]) -> None:
    for split, pictures in data.splits.items():
        (folder / split).mkdir(parents=True)
        text = json.dumps(coco_tree(pictures, data.classes, names))
        (folder / split / JSON).write_text(text, encoding="utf-8")
    for key in MARKS:
        told = f"marks of {key} objects: kept under a key that COCO's own tools do not read"
        lost[told] += sum(getattr(thing, key) for picture in data.pictures for thing in picture.things)
    _count_new_ids(data, lost)


def _write_voc(data: DataSet, folder: Path, names: Names, lost: Counter[str]) -> None:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    _write_lines(folder / "classes.txt", data.classes)
    for split, pictures in data.splits.items():
        stems = [Path(names[id(picture)]).stem for picture in pictures]
        _write_lines(folder / "ImageSets" / "Main" / f"{split}.txt", stems)
        for picture, stem in zip(pictures, stems, strict=True):
            root = _voc_tree(picture, names[id(picture)], lost)
            ElementTree.indent(root)
            text = ElementTree.tostring(root, encoding="unicode")
            (folder / "Annotations" / f"{stem}.xml").write_text(text + "\n", encoding="utf-8")
    _count_masks(data, lost)


def _voc_tree(picture: Picture, name: str, lost: Counter[str]) -> ElementTree.Element:
    assert picture.size is not None
    height, width = picture.size
    root = ElementTree.Element("annotation")
    _texts(root, {"folder": "JPEGImages", "filename": name})
    _texts(ElementTree.SubElement(root, "size"), {"width": width, "height": height, "depth": 3})
    _texts(root, {"segmented": 0})
    for thing in picture.things:
        if not thing.has_area:
            lost["boxes without area: left out"] += 1
            continue
        if thing.crowd:
            lost["crowd regions: written as difficult objects"] += 1
        row = ElementTree.SubElement(root, "object")
        facts = {"name": thing.name, "pose": "Unspecified", "truncated": int(thing.truncated)}
        _texts(row, {**facts, "difficult": int(thing.difficult or thing.crowd)})
        x1, y1, x2, y2 = (round(value) for value in thing.box)
        if any(abs(new - old) > 1e-9 for new, old in zip((x1, y1, x2, y2), thing.box, strict=True)):
            lost["boxes whose corners were rounded to whole pixels"] += 1
        corners = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": max(x2, x1 + 1), "ymax": max(y2, y1 + 1)}
        _texts(ElementTree.SubElement(row, "bndbox"), corners)
    return root


def _texts(parent: ElementTree.Element, values: Mapping[str, object]) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(parent, tag).text = str(value)


def _write_yolo(data: DataSet, folder: Path, names: Names, lost: Counter[str]) -> None:
    number = {name: index for index, name in enumerate(data.classes)}
    tree: dict[str, Any] = {}
    for split, pictures in data.splits.items():
        (folder / "labels" / split).mkdir(parents=True)
        tree["train" if split == ALL else split] = f"images/{split}"
        for picture in pictures:
            lines = [_yolo_line(thing, picture, number) for thing in picture.things if not thing.crowd]
            _write_lines((folder / "labels" / split / names[id(picture)]).with_suffix(".txt"), lines)
    tree |= {"nc": len(number), "names": list(data.classes)}
    (folder / "data.yaml").write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    if ALL in data.splits:
        lost["data without splits: all of it is called train"] += 1
    things = [thing for picture in data.pictures for thing in picture.things]
    lost["crowd regions: left out"] += sum(thing.crowd for thing in things)
    for key in MARKS:
        lost[f"marks of {key} objects"] += sum(getattr(thing, key) for thing in things)
    _count_masks(data, lost)


def _yolo_line(thing: Thing, picture: Picture, number: Mapping[str, int]) -> str:
    assert picture.size is not None
    height, width = picture.size
    x1, y1, x2, y2 = thing.box
    values = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, thing.width / width, thing.height / height
    return f"{number[thing.name]} " + " ".join(f"{value:.8f}" for value in values)


def _write_labelme(data: DataSet, folder: Path, names: Names, lost: Counter[str]) -> None:
    for split, pictures in data.splits.items():
        (folder / split).mkdir(parents=True)
        for picture in pictures:
            assert picture.size is not None
            shapes = [shape for index, thing in enumerate(picture.things, 1) for shape in _shapes(thing, index, lost)]
            name = names[id(picture)]
            tree: dict[str, Any] = {
                "version": "5.5.0",
                "flags": {},
                "shapes": shapes,
                "imagePath": name,
                "imageData": None,
            }
            tree |= {"imageHeight": picture.size[0], "imageWidth": picture.size[1]}
            (folder / split / name).with_suffix(".json").write_text(json.dumps(tree, indent=1), encoding="utf-8")
    _write_lines(folder / "labels.txt", data.classes)
    _count_new_ids(data, lost)


def _shapes(thing: Thing, group: int, lost: Counter[str]) -> list[dict[str, Any]]:
    """A rectangle, and the polygons of the mask in one group with it."""
    flags = {key: True for key in ("crowd", *MARKS) if getattr(thing, key)}
    if isinstance(thing.segmentation, dict):
        lost["run-length masks"] += 1
    corners = [round(value, DIGITS) for value in thing.box]
    kinds = [("rectangle", corners)] + [("polygon", polygon) for polygon in thing.polygons]
    return [
        {
            "label": thing.name,
            "points": [points[i : i + 2] for i in range(0, len(points), 2)],
            "group_id": group if len(kinds) > 1 else None,
            "shape_type": kind,
            "flags": flags,
        }
        for kind, points in kinds
    ]


def _count_masks(data: DataSet, lost: Counter[str]) -> None:
    lost["masks"] += sum(thing.segmentation is not None for picture in data.pictures for thing in picture.things)
    _count_new_ids(data, lost)


def _count_new_ids(data: DataSet, lost: Counter[str]) -> None:
    if data.form in ("coco", "lvis"):
        lost["ids of pictures: numbered anew, or gone"] += sum(1 for _ in data.pictures)


def _names(data: DataSet, lost: Counter[str]) -> dict[int, str]:
    """A file name for each picture; folders are left off, and names (without ending) that are there twice numbered."""
    taken: set[str] = set()
    names = {}
    for picture in data.pictures:
        stem, ending, number = picture.file.stem, picture.file.suffix, 1
        name = stem
        while name.lower() in taken:
            number += 1
            name = f"{stem}_{number}"
        lost["pictures that got another name: theirs was taken"] += name != stem
        taken.add(name.lower())
        names[id(picture)] = name + ending
    return names


def _write_lines(file: Path, lines: Sequence[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _bring(file: Path, target: Path, link: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        target.symlink_to(file.resolve())
    else:
        shutil.copyfile(file, target)


WRITERS = {"coco": _write_coco, "voc": _write_voc, "yolo": _write_yolo, "labelme": _write_labelme}
PLACES = {"coco": "{split}", "voc": "JPEGImages", "yolo": "images/{split}", "labelme": "{split}"}
"""Where pictures go."""
