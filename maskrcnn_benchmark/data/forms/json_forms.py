"""Readers of forms that keep all pictures of a split in one JSON file: COCO, LVIS, MDETR."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from maskrcnn_benchmark.data.check import LARGEST, Row, as_lists, problems_of, read_json
from maskrcnn_benchmark.data.datasets.json_index import bad_captions, mdetr_lists
from maskrcnn_benchmark.data.forms.model import ERROR, NOTE, WARNING, DataSet, Part, Picture, Problems, Thing
from maskrcnn_benchmark.data.pictures import header_size
from maskrcnn_benchmark.errors import DataError

BACKGROUND = "__background__"
MARKS = ("difficult", "truncated")
KNOWN = {
    "images": {"id", "file_name", "width", "height", "coco_url"},
    "annotations": {
        "id",
        "image_id",
        "category_id",
        "bbox",
        "area",
        "segmentation",
        "iscrowd",
        "difficult",
        "truncated",
    },
    "categories": {"id", "name"},
}
"""Keys of the three lists that are taken over; others are counted as lost."""
REMEDIES = {
    "image_id": "add the picture to images, or take the annotation out",
    "category_id": "add the category to categories, or take the annotation out",
    "negative width": "write x, y of the upper left corner, then width and height",
    "bbox": "write four numbers, or take the annotation out",
    "duplicate": "number them anew",
    "file_name": "give the picture its file_name",
    "width x height": "write the size of the picture in pixels, or leave both out",
    "no name": "give the category a name",
    "tokens_positive": "write [[begin, end], ...], characters of the caption from 0",
    "no caption": "give each picture its caption, or take it out",
    " id ": "give it a whole number of its own",
    "list is empty": "export the data again",
}
"""Words of a problem -> what to do about it."""


def read_coco(part: Part, found: DataSet, problems: Problems) -> list[Picture]:
    """Pictures of a COCO file; the background of Roboflow's exports is no class."""
    file = part.files[0]
    try:
        data = as_lists(part.data if part.data is not None else read_json(file), file)
    except DataError as error:
        problems.add(ERROR, file, "", str(error).removeprefix(f"{file}: "), "give the annotation file")
        return []
    images, rows, categories = data["images"], data["annotations"], data["categories"]
    _list(problems, file, problems_of(images, rows, categories))
    names = _categories(file, rows, categories, problems)
    found.classes += [name for name in names.values() if name not in found.classes]
    _ids(file, rows, problems)
    _notes(file, rows, problems)
    _masks(file, rows, problems)
    for key, known in KNOWN.items():
        found.lost.update(f"{key}: {name}" for row in data[key] for name in row if name not in known and row[name])
    pictures = _pictures(part, images, _things(rows, names))
    if any("neg_category_ids" in row for row in images):
        _lvis_notes(file, images, problems)
    return pictures


def read_lvis(part: Part, found: DataSet, problems: Problems) -> list[Picture]:
    """As COCO; the name of the picture is the end of its coco_url where that is the file that is there."""
    file = part.files[0]
    renamed, first = 0, ""
    images = part.data["images"] if isinstance(part.data, dict) else []
    for row in (row for row in images if isinstance(row, dict)):
        url, name = row.get("coco_url"), row.get("file_name")
        if not isinstance(url, str) or (name and _lies(part.folders, str(name))):
            continue
        ends = ["/".join(url.split("/")[-count:]) for count in (1, 2)]
        row["file_name"] = next((end for end in ends if _lies(part.folders, end)), ends[1])
        renamed, first = renamed + 1, first or f"images (id {row.get('id')!r}): file_name"
    if renamed:
        text = f"{renamed} pictures are not called by their file_name, or have none"
        problems.add(NOTE, file, first, text, "the end of coco_url is taken", kind="coco_url")
    return read_coco(part, found, problems)


def read_mdetr(part: Part, found: DataSet, problems: Problems) -> list[Picture]:
    """Captions as pictures; a thing is called by the words of the caption that name it."""
    file = part.files[0]
    try:
        data = mdetr_lists(file)
    except DataError as error:
        problems.add(ERROR, file, "", str(error).removeprefix(f"{file}: "), "give the annotation file")
        return []
    images, rows = data["images"], data["annotations"]
    _list(problems, file, chain(problems_of(images, rows, None), bad_captions(images, rows)))
    _ids(file, rows, problems)
    captions = {row["id"]: row.get("caption") for row in images if type(row.get("id")) in (int, str)}
    things: dict[Any, list[Thing]] = {}
    for index, row in enumerate(rows):
        number, spans = row.get("image_id"), row.get("tokens_positive")
        text = captions.get(number) if type(number) in (int, str) else None
        if isinstance(text, str) and _is_box(row.get("bbox")) and isinstance(spans, list):
            words = [text[s[0] : s[1]] for s in spans if _is_span(s)]
            things.setdefault(row["image_id"], []).append(_thing(index, row, " ".join(words) or "(no words)"))
    return _pictures(part, images, things)


def _list(problems: Problems, file: Path, told: Iterable[str]) -> None:
    """The one-line problems of the checks that loading makes, with their field and a remedy."""
    for line in told:
        match = re.match(r"((?:images|annotations|categories)\[\d+\](?:\.\w+\[\d+\])?(?: \(id [^)]*\))?):? (.*)", line)
        place, text = match.groups() if match else ("", line)
        text, _, remedy = text.partition("; ")
        remedy = remedy or next((todo for words, todo in REMEDIES.items() if words in line), "mend it")
        problems.add(ERROR, file, place, text, remedy, kind=re.sub(r"[-\d.,'\[\]]+", "#", text))


def _categories(file: Path, rows: Sequence[Row], categories: Sequence[Row], problems: Problems) -> dict[int, str]:
    """Category id -> class name, without the background."""
    used = {row.get("category_id") for row in rows if type(row.get("category_id")) is int}
    names: dict[int, str] = {}
    for index, row in enumerate(categories):
        number, name = row.get("id"), row.get("name")
        if type(number) is not int or not isinstance(name, str) or not name.strip():
            continue
        place = f"categories[{index}] (id {number}, {name!r})"
        if (number == 0 or name == BACKGROUND) and number not in used:
            text = "no annotation has this category: it looks like the background, or the name of a Roboflow project"
            problems.add(WARNING, file, place, text, "it is left out of the classes; take it out of the file")
        elif name in names.values():
            text = f"two categories are called {name!r}"
            problems.add(ERROR, file, place, text, "give each its own name, or join them", "doubled name")
            names[number] = name
        else:
            names[number] = name
    return names


def _ids(file: Path, rows: Sequence[Row], problems: Problems) -> None:
    for index, row in enumerate(rows):
        number = row.get("id")
        if type(number) is not int or number <= 0:
            what = (
                "there is an annotation without an id"
                if number is None
                else f"annotation ids: there is an id {number!r}"
            )
            text = f"{what} (evaluators take a match with 0 for no match)"
            remedy = "annotations are renumbered from 1 when they are read; number them from 1"
            problems.add(WARNING, file, f"annotations[{index}]: id", text, remedy, kind="annotation ids")
            return


def _notes(file: Path, rows: Sequence[Row], problems: Problems) -> None:
    crowds = [index for index, row in enumerate(rows) if row.get("iscrowd")]
    if crowds:
        codes = sum(isinstance(rows[index].get("segmentation"), dict) for index in crowds)
        text = f"{len(crowds)} crowd regions, {codes} of them with a run-length mask"
        remedy = "they are no targets in training, and ignored in evaluation"
        problems.add(NOTE, file, f"annotations[{crowds[0]}]: iscrowd", text, remedy, kind="crowd")


def _masks(file: Path, rows: Sequence[Row], problems: Problems) -> None:
    for index, row in enumerate(rows):
        mask = row.get("segmentation")
        if mask and not _is_mask(mask):
            text = f"{str(mask)[:60]} is neither a list of polygons nor a run-length code"
            remedy = "it is left out; write [[x, y, x, y, x, y, ...], ...]"
            place = f"annotations[{index}] (id {row.get('id')!r}): segmentation"
            problems.add(WARNING, file, place, text, remedy, kind="segmentation")


def _lvis_notes(file: Path, images: Sequence[Row], problems: Problems) -> None:
    """LVIS evaluates a picture on the classes it has, and on those known to be absent."""
    for index, row in enumerate(images):
        if row.get("neg_category_ids") == []:
            text = "the list of absent categories is empty"
            remedy = "false alarms in this picture count for the categories that it has alone"
            place = f"images[{index}] (id {row.get('id')!r}): neg_category_ids"
            problems.add(NOTE, file, place, text, remedy)


def _things(rows: Sequence[Row], names: Mapping[int, str]) -> dict[Any, list[Thing]]:
    """Image id -> what is in it; rows that are refused elsewhere are left out."""
    things: dict[Any, list[Thing]] = {}
    for index, row in enumerate(rows):
        category, image = row.get("category_id"), row.get("image_id")
        if type(category) is int and category in names and type(image) in (int, str) and _is_box(row.get("bbox")):
            things.setdefault(image, []).append(_thing(index, row, names[category]))
    return things


def _thing(index: int, row: Row, name: str) -> Thing:
    x, y, w, h = row["bbox"]
    area = row.get("area")
    return Thing(
        name,
        (x, y, x + w, y + h),
        f"annotations[{index}] (id {row.get('id')!r})",
        segmentation=row["segmentation"] if _is_mask(row.get("segmentation")) else None,
        area=area if isinstance(area, (int, float)) else None,
        crowd=bool(row.get("iscrowd")),
        difficult=bool(row.get("difficult")),
        truncated=bool(row.get("truncated")),
    )


def _pictures(part: Part, images: Sequence[Row], things: Mapping[Any, list[Thing]]) -> list[Picture]:
    pictures, file = [], part.files[0]
    for row in images:
        name, number = row.get("file_name"), row.get("id")
        if not isinstance(name, str) or not name or type(number) not in (int, str):
            continue
        sides = row.get("height"), row.get("width")
        known = all(type(side) is int and side > 0 for side in sides)
        size = (int(sides[0]), int(sides[1])) if known else None  # type: ignore[arg-type]
        place = next((folder / name for folder in part.folders if (folder / name).is_file()), part.folders[0] / name)
        size = size or header_size(place)
        pictures.append(Picture(place, name, size, tuple(things.get(number, ())), file, told=known))
    return pictures


def _lies(folders: Iterable[Path], name: str) -> bool:
    return any((folder / name).is_file() for folder in folders)


def _is_box(box: object) -> bool:
    numbers = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)
    return numbers and all(abs(v) < LARGEST for v in box) and min(box[2:]) >= 0  # type: ignore[attr-defined, index]


def _is_span(span: object) -> bool:
    return isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)


def _is_mask(mask: object) -> bool:
    """Polygons of three points or more, or a run-length code."""
    if isinstance(mask, dict):
        return isinstance(mask.get("size"), list) and isinstance(mask.get("counts"), (list, str))
    polygons = mask if isinstance(mask, list) else []
    return bool(polygons) and all(
        isinstance(p, list) and len(p) >= 6 and not len(p) % 2 and all(type(v) in (int, float) for v in p)
        for p in polygons
    )
