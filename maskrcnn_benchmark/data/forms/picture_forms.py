"""Readers of forms that have a file for each picture: PASCAL VOC, YOLO, LabelMe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any
from xml.etree.ElementTree import Element

from maskrcnn_benchmark.data.check import read_json
from maskrcnn_benchmark.data.forms.model import ERROR, NOTE, WARNING, Box, DataSet, Part, Picture, Problems, Thing
from maskrcnn_benchmark.data.forms.recognise import pictures_below
from maskrcnn_benchmark.data.pictures import Size, header_size
from maskrcnn_benchmark.data.xml_files import read_xml
from maskrcnn_benchmark.errors import DataError

LABELME_FLAGS = ("crowd", "difficult", "truncated")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
VOC_KNOWN = ("name", "bndbox", "difficult", "truncated")
NOT_TAKEN = ("line", "point", "linestrip", "points")  # LabelMe's shapes that have no extent


def read_voc(part: Part, found: DataSet, problems: Problems) -> list[Picture]:
    """Pictures of VOC's XML files, whose pixels count from 1, the last one inside: x1 = xmin - 1, x2 = xmax."""
    files = _picture_index(part.folders)
    pictures = []
    for file in part.files:
        try:
            root = read_xml(file)
        except DataError as error:
            problems.add(ERROR, file, "", str(error).removeprefix(f"{file}: "), "mend or remove the file")
            continue
        named = PureWindowsPath((root.findtext("filename") or "").strip()).name
        picture = _find(files, [named, file.stem], file.parent / (named or f"{file.stem}.jpg"))
        things = []
        for number, row in enumerate(root.findall("object"), 1):
            name = " ".join((row.findtext("name") or "").split())
            place = f"object {number} ({name or 'without a name'})"
            box = _voc_box(row, file, place, problems)
            if not name:
                problems.add(ERROR, file, place, "has no name", "give it the name of its class")
            elif box is not None:
                flags = {key: _voc_flag(row, key, file, place, problems) for key in ("difficult", "truncated")}
                things.append(Thing(name, box, place, **flags))
            found.lost.update(f"<{tag.tag}> of an object" for tag in row if tag.tag not in VOC_KNOWN and _says(tag))
        size = _voc_size(root, file, problems)
        known = size or header_size(picture)
        pictures.append(Picture(picture, picture.name, known, tuple(things), file, told=size is not None))
    return pictures


def _voc_box(row: Element, file: Path, place: str, problems: Problems) -> Box | None:
    corners = row.find("bndbox")
    if corners is None:
        problems.add(ERROR, file, place, "has no bndbox", "add xmin, ymin, xmax, ymax, or take the object out")
        return None
    values = []
    for key in CORNERS:
        text = (corners.findtext(key) or "").strip()
        value = _number(text)
        if value is None:
            problems.add(ERROR, file, f"{place}: {key}", f"is {text!r}, not a number", "write a number of pixels")
            return None
        values.append(value)
        if value % 1:
            told = f"is {text}, VOC has whole numbers"
            problems.add(NOTE, file, f"{place}: {key}", told, "it is read as it is", "float")
    x1, y1, x2, y2 = values
    if x2 < x1 or y2 < y1:
        text = f"{values}: xmax is below xmin or ymax below ymin"
        problems.add(ERROR, file, f"{place}: bndbox", text, f"VOC wants {', '.join(CORNERS)}", "corners")
        return None
    return x1 - 1, y1 - 1, x2, y2


def _says(tag: Element) -> bool:
    """Whether there is more in it than a stand-in."""
    return len(tag) > 0 or (tag.text or "").strip() not in ("", "0", "Unspecified", "unspecified")


def _voc_flag(row: Element, key: str, file: Path, place: str, problems: Problems) -> bool:
    text = (row.findtext(key) or "0").strip() or "0"
    if text not in ("0", "1"):
        problems.add(ERROR, file, f"{place}: {key}", f"is {text!r}, not 0 or 1", "write 0 or 1")
    return text == "1"


def _voc_size(root: Element, file: Path, problems: Problems) -> Size | None:
    row = root.find("size")
    if row is None:
        problems.add(NOTE, file, "size", "is not given", "it is taken from the picture", "no size")
        return None
    height, width = (_number((row.findtext(key) or "").strip()) for key in ("height", "width"))
    if not height or not width or height < 1 or width < 1 or height % 1 or width % 1:
        text = f"{row.findtext('width')} x {row.findtext('height')} is not that of a picture"
        problems.add(ERROR, file, "size", text, "mend it, or take <size> out to have it read from the picture")
        return None
    return int(height), int(width)


def read_yolo(part: Part, found: DataSet, problems: Problems) -> list[Picture]:
    """Pictures of YOLO's text files: class, then centre and sides, or the corners of a polygon, from 0 to 1."""
    pictures = []
    for file in part.files:
        labels = label_file(file)
        size = header_size(file) if file.is_file() else None
        things: list[Thing] = []
        if size is not None and labels.is_file():
            things = list(_yolo_things(labels, size, found.classes, problems))
        pictures.append(Picture(file, file.name, size, tuple(things), labels, told=False))
    _orphans(part, problems)
    return pictures


def label_file(picture: Path) -> Path:
    """The text file of a picture: in labels/ beside its images/, or beside the picture itself."""
    parts = list(picture.parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        there = Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")
        beside = picture.with_suffix(".txt")
        return beside if not there.is_file() and beside.is_file() else there
    return picture.with_suffix(".txt")


def _yolo_things(file: Path, size: Size, classes: Sequence[str], problems: Problems) -> Iterator[Thing]:
    height, width = size
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        problems.add(ERROR, file, "", "is no text", "write one line for each box")
        return
    for number, line in enumerate(lines, 1):
        words, place = line.split(), f"line {number}"
        values = [_number(word) for word in words]
        if not words:
            continue
        if None in values or not (len(values) == 5 or (len(values) >= 7 and len(values) % 2)):
            text = f"{line.strip()[:60]!r} is neither `class x y width height` nor `class x y x y x y ...`"
            problems.add(ERROR, file, place, text, "mend or remove the line", "line")
            continue
        label, *rest = (value for value in values if value is not None)
        if label % 1 or not 0 <= label < len(classes):
            text = f"class {words[0]} is none of 0-{len(classes) - 1} ({', '.join(classes)[:60]})"
            problems.add(ERROR, file, f"{place}: class", text, "mend the number, or add the name", "class")
            continue
        if max(rest) > 2 or min(rest) < -1:
            text = f"{' '.join(words[1:])[:60]} are no fractions of the picture"
            remedy = "divide x and width by the width, y and height by the height"
            problems.add(ERROR, file, place, text, remedy, "range")
            continue
        yield _yolo_thing(classes[int(label)], rest, width, height, place)


def _yolo_thing(name: str, values: Sequence[float], width: int, height: int, place: str) -> Thing:
    if len(values) == 4:
        x, y, w, h = values
        return Thing(
            name, ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height), place
        )
    points = [value * (height if index % 2 else width) for index, value in enumerate(values)]
    return Thing(name, _extent(points), place, segmentation=[points])


def _orphans(part: Part, problems: Problems) -> None:
    """Label files without a picture, in the folders where labels are."""
    expected = {label_file(file) for file in part.files}
    for folder in sorted({file.parent for file in expected if file.parent.name == "labels" or "labels" in file.parts}):
        for file in sorted(folder.glob("*.txt")) if folder.is_dir() else []:
            if file not in expected:
                text = "there is no picture for these labels"
                problems.add(ERROR, file, "", text, "add the picture, or remove the file")


def read_labelme(part: Part, found: DataSet, problems: Problems) -> list[Picture]:
    """Pictures of LabelMe's files; shapes of one group_id are one object: a rectangle is its box, polygons its mask."""
    files = _picture_index(part.folders)
    pictures = []
    for file in part.files:
        try:
            data = read_json(file)
        except DataError as error:
            problems.add(ERROR, file, "", str(error).removeprefix(f"{file}: "), "mend or remove the file")
            continue
        named = PureWindowsPath(str(data.get("imagePath") or "")).name
        picture = _find(files, [named, file.stem], file.parent / (named or f"{file.stem}.jpg"))
        sides = data.get("imageHeight"), data.get("imageWidth")
        told = all(type(side) is int and side > 0 for side in sides)
        size = (int(sides[0]), int(sides[1])) if told else header_size(picture)
        if data.get("imageData") and not picture.is_file():
            text = "the picture is inside the file alone (imageData)"
            problems.add(ERROR, file, "imageData", text, f"save it as {picture.name} beside the file")
        things = _labelme_things(data["shapes"], file, found, problems)
        pictures.append(Picture(picture, picture.name, size, tuple(things), file, told=told))
    return pictures


def _labelme_things(shapes: Sequence[Any], file: Path, found: DataSet, problems: Problems) -> list[Thing]:
    groups: dict[tuple[str, object], list[tuple[int, Mapping[str, Any]]]] = {}
    for index, shape in enumerate(shapes):
        name = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(name, str) or not name.strip():
            problems.add(ERROR, file, f"shapes[{index}]: label", f"is {name!r}, no name", "give the shape its class")
            continue
        group = shape.get("group_id")
        alone = ("alone", index) if group is None else str(group)
        groups.setdefault((name.strip(), alone), []).append((index, shape))
    things = []
    for (name, _), members in groups.items():
        thing = _labelme_thing(name, members, file, found, problems)
        if thing is not None:
            things.append(thing)
    return things


def _labelme_thing(
    name: str, members: Sequence[tuple[int, Mapping[str, Any]]], file: Path, found: DataSet, problems: Problems
) -> Thing | None:
    boxes, polygons, flags = [], [], dict[str, Any]()
    for index, shape in members:
        kind, points = shape.get("shape_type") or "polygon", _points(shape.get("points"))
        place = f"shapes[{index}] ({name})"
        if kind in NOT_TAKEN:
            problems.add(WARNING, file, place, f"a {kind} has no extent", "it is left out; draw a rectangle", kind)
            found.lost[f"shapes of type {kind}"] += 1
            continue
        if points is None or len(points) < (6 if kind == "polygon" else 4):
            problems.add(ERROR, file, f"{place}: points", f"are no {kind}", "draw the shape again", f"{kind} points")
            continue
        if kind == "circle":
            radius = math.hypot(points[2] - points[0], points[3] - points[1])
            points = [points[0] - radius, points[1] - radius, points[0] + radius, points[1] + radius]
        if kind == "polygon":
            polygons.append(points)
        else:
            boxes.append(_extent(points))
        given = shape.get("flags")
        flags |= given if isinstance(given, dict) else {}
        found.lost.update(f"{key} of a shape" for key in ("description", "mask") if shape.get(key))
    if not boxes and not polygons:
        return None
    box = boxes[0] if boxes else _extent([value for polygon in polygons for value in polygon])
    known = {key: bool(flags.get(key)) for key in LABELME_FLAGS}
    found.lost.update(f"flag {key!r} of a shape" for key in flags if key not in LABELME_FLAGS and flags[key])
    return Thing(name, box, f"shapes[{members[0][0]}] ({name})", segmentation=polygons or None, **known)


def _points(points: object) -> list[float] | None:
    if not isinstance(points, list):
        return None
    flat = [value for point in points if isinstance(point, list) and len(point) == 2 for value in point]
    fine = len(flat) == 2 * len(points) and all(type(v) in (int, float) and math.isfinite(v) for v in flat)
    return flat if fine else None


def _extent(points: Sequence[float]) -> Box:
    return min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _picture_index(folders: Sequence[Path]) -> dict[str, Path]:
    """Name, and name without ending -> picture; the first of a name counts."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in pictures_below(folder):
            found.setdefault(path.name, path)
            found.setdefault(path.stem, path)
    return found


def _find(files: Mapping[str, Path], names: Sequence[str], default: Path) -> Path:
    if default.is_file():  # beside its annotations
        return default
    wanted = [name for name in names if name]
    wanted += [Path(name).stem for name in wanted]
    return next((files[name] for name in wanted if name in files), default)
