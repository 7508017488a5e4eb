"""What can be wrong or odd with data of any form, once they are read."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from maskrcnn_benchmark.data.check import SLACK
from maskrcnn_benchmark.data.forms.model import ERROR, NOTE, WARNING, DataSet, Picture, Problems
from maskrcnn_benchmark.data.pictures import PictureError, read_picture

TWINS = 0.9  # IoU of two boxes of a class that are probably one
SMALL = 5  # pixels
FOUR_CORNERS = 0.5  # part of the boxes beyond their picture, above which they look like x1, y1, x2, y2


def check(data: DataSet, problems: Problems, decode: bool = True) -> None:
    """Look at pictures, boxes, classes and splits.

    Args:
        data: From :func:`maskrcnn_benchmark.data.forms.read.read`.
        problems: Gets what is wrong.
        decode: Read every picture to its end; without it only that it is there.
    """
    for picture in data.pictures:
        _picture(picture, problems, decode)
        _boxes(picture, problems)
    _corners(data, problems)
    _classes(data, problems)
    if decode:
        _same_pictures(data, problems)


def _picture(picture: Picture, problems: Problems, decode: bool) -> None:
    file = picture.file
    if not file.is_file():
        remedy = "put it there, take it out of the annotations, or name the folder of the pictures with --images"
        problems.add(ERROR, picture.source, picture.name, f"the picture {file} is missing", remedy, "missing picture")
        return
    if not picture.things:
        text = "a picture without a box"
        problems.add(NOTE, picture.source, picture.name, text, "it teaches and tests that nothing is there")
    if not decode:
        return
    try:
        _, odd = read_picture(file, picture.size if picture.told else None)
    except PictureError as error:
        problems.add(ERROR, file, "", error.reason, "get the picture again, or take it out", "damaged picture")
        return
    if odd:
        level = NOTE if "left as stored" in odd else WARNING
        remedy = "boxes may lie elsewhere: annotate the picture that is there, or mend the size"
        problems.add(level, file, "", odd, "nothing is to be done" if level == NOTE else remedy, "size")
    with Image.open(file) as image:
        if image.mode not in ("RGB", "P"):
            text = f"the picture is of mode {image.mode}, not of three colours"
            problems.add(NOTE, file, "", text, "it is turned into RGB when it is read")


def _boxes(picture: Picture, problems: Problems) -> None:
    height, width = picture.size or (np.inf, np.inf)
    for thing in picture.things:
        box = f"[{', '.join(f'{v:g}' for v in (*thing.box[:2], thing.width, thing.height))}]"
        place = f"{thing.place}: box {box} (x, y, width, height) of {thing.name!r} in {picture.name}"
        x1, y1, x2, y2 = thing.box
        if not thing.has_area:
            text, remedy = "a box without area", "it is left out of the targets; draw it again or take it out"
            problems.add(WARNING, picture.source, place, text, remedy)
        elif x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            text, remedy = "a box beyond the border of the picture", "it is left out of the targets; mend or remove it"
            problems.add(WARNING, picture.source, place, f"{text} ({width}x{height})", remedy, text)
        elif min(x1, y1) < -SLACK or x2 > width + SLACK or y2 > height + SLACK:
            text, remedy = "a box partly outside the picture", "it is cut at the border"
            problems.add(WARNING, picture.source, place, f"{text} ({width}x{height})", remedy, text)
        elif min(thing.width, thing.height) < SMALL:
            text = f"a side of the box is under {SMALL} pixels"
            problems.add(NOTE, picture.source, place, text, "make sure that it is meant")
    _twins(picture, problems)


def _twins(picture: Picture, problems: Problems) -> None:
    """Two boxes of one class in almost the same place."""
    by_name = defaultdict(list)
    for thing in picture.things:
        if thing.has_area and not thing.crowd:
            by_name[thing.name].append(thing)
    for name, things in by_name.items():
        boxes = np.array([thing.box for thing in things])
        low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        shared = np.clip(high - low, 0, None).prod(axis=2)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        iou = np.triu(shared / (area[:, None] + area[None, :] - shared), 1)
        for one, other in np.argwhere(iou > TWINS):
            text = f"two boxes of {name!r} in {picture.name} are almost the same (IoU {iou[one, other]:.2f})"
            place = f"{things[one].place} and {things[other].place}"
            problems.add(WARNING, picture.source, place, text, "take one of them out, if it is one thing", "twins")


def _corners(data: DataSet, problems: Problems) -> None:
    """Boxes of COCO files that were written as two corners."""
    outside = total = 0
    for picture in data.pictures:
        height, width = picture.size or (np.inf, np.inf)
        total += len(picture.things)
        outside += sum(thing.box[2] > width + SLACK or thing.box[3] > height + SLACK for thing in picture.things)
    if data.form in ("coco", "lvis", "mdetr") and total and outside / total > FOUR_CORNERS:
        text = f"{outside} of {total} boxes leave their picture: they look like [x1, y1, x2, y2]"
        problems.add(ERROR, data.root, "annotations: bbox", text, "COCO wants [x, y, width, height]", "corners")


def _classes(data: DataSet, problems: Problems) -> None:
    if data.form == "mdetr":
        return
    plain: dict[str, str] = {}
    for name, splits in data.counts().items():
        total = sum(boxes for boxes, _ in splits.values())
        other = plain.setdefault(" ".join(name.lower().replace("_", " ").replace("-", " ").split()), name)
        if other != name:
            text, remedy = f"{name!r} and {other!r} look like one class", "write all of them alike"
            problems.add(WARNING, data.root, f"class {name!r}", text, remedy, "classes alike")
        if total and data.form != "lvis":
            for split, (boxes, _) in splits.items():
                if not boxes:
                    text, remedy = f"no box in the split {split!r}", "it is neither taught nor tested there"
                    problems.add(NOTE, data.root, f"class {name!r}", text, remedy, "class not in a split")
        elif not total:
            text, remedy = (
                "no box of this class",
                "evaluations still ask for it; take it out if it is not meant",
            )
            problems.add(NOTE, data.root, f"class {name!r}", text, remedy, "class without a box")


def _same_pictures(data: DataSet, problems: Problems) -> None:
    """One picture in two splits, by its bytes."""
    seen: dict[bytes, tuple[str, Path]] = {}
    if len(data.splits) < 2 or data.form == "mdetr":
        return
    for split, pictures in data.splits.items():
        for picture in pictures:
            if picture.file.is_file():
                digest = hashlib.sha256(picture.file.read_bytes()).digest()
                first, file = seen.setdefault(digest, (split, picture.file))
                if first != split:
                    text = f"the same picture is in {first!r} as {file.name}, and in {split!r}"
                    remedy = "take it out of one of them: scores would be too good"
                    problems.add(WARNING, picture.source, picture.name, text, remedy, "picture in two splits")
