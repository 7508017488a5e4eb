"""A few pictures of a data set, drawn by a seed, as COCO JSON: to see what a detector makes of little data."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from maskrcnn_benchmark.data import fewshot
from maskrcnn_benchmark.data.check import read_json
from maskrcnn_benchmark.data.datasets.voc import VOC_CLASSES
from maskrcnn_benchmark.data.forms.convert import coco_tree, need_picture
from maskrcnn_benchmark.data.forms.model import DataSet, Layout, Part, Picture
from maskrcnn_benchmark.data.forms.read import usable
from maskrcnn_benchmark.errors import DataError

JSONS = ("coco", "lvis")  # forms whose rows are kept as they are, with their ids


@dataclass(frozen=True)
class Share:
    """How many pictures.

    Attributes:
        seed: Which of them; equal seeds give equal pictures, and a smaller fraction is part of a larger one.
        per_class: Pictures wanted of each class; a picture counts for all of its classes, so that there may be more of
            some, and there are fewer where the data have no more; None: a fraction is wanted.
        fraction: Of the pictures with boxes, above 0 to 1.
    """

    seed: int
    per_class: int | None = None
    fraction: float | None = None

    def draw(self, classes: Sequence[Collection[int]]) -> list[int]:
        """Indices of the pictures, in their order.

        Args:
            classes: Of each picture, by any numbers; those without any are never drawn.
        """
        order = [index for index, present in enumerate(classes) if present]
        Random(self.seed).shuffle(order)
        if self.per_class is not None:
            chosen = fewshot.pick([classes[index] for index in order], self.per_class)
        else:
            assert self.fraction is not None
            chosen = list(range(max(1, round(self.fraction * len(order)))))
        return sorted(order[place] for place in chosen)


@dataclass(frozen=True)
class Subset:
    """What was drawn.

    Attributes:
        tree: Of a COCO file, with the share under ``info``.
        folder: Where its file names start.
        total: Pictures that there were.
        counts: Pictures of each class, by name.
        lost: What is not in it -> how often.
    """

    tree: dict[str, Any]
    folder: Path
    total: int
    counts: dict[str, int]
    lost: Counter[str]


def draw_subset(layout: Layout, share: Share, splits: Sequence[str] = ()) -> Subset:
    """A share of a data set.

    Objects that are marked as difficult are left out, as training does with those of PASCAL VOC.

    Args:
        layout: From :func:`maskrcnn_benchmark.data.forms.recognise.recognise`.
        share: How much.
        splits: Which of its splits; none: the only one.

    Raises:
        DataError: the data have errors, no such split, several where one must be named, or nothing to draw.
    """
    if layout.form == "mdetr":
        raise DataError(f"{layout.root}: captions with boxes (MDETR) have no classes to draw by")
    parts = _parts(layout, splits)
    data = usable(Layout(layout.form, layout.root, parts, classes=layout.classes))
    subset = _rows(parts, data, share) if layout.form in JSONS else _pictures(data, share)
    subset.tree["info"] = {
        "description": f"drawn from {', '.join(part.split for part in parts)} of {layout.root.name}",
        **{key: value for key, value in vars(share).items() if value is not None},
    }
    return subset


def _parts(layout: Layout, splits: Sequence[str]) -> tuple[Part, ...]:
    known = {part.split: part for part in layout.parts}
    shown = ", ".join(known)
    if unknown := [name for name in splits if name not in known]:
        raise DataError(f"{layout.root}: has no split {unknown[0]!r}; it has {shown}")
    chosen = tuple(known[name] for name in dict.fromkeys(splits)) or layout.parts
    if not splits and len(chosen) > 1:
        raise DataError(f"{layout.root}: has the splits {shown}: say with --split which of them")
    if layout.form in JSONS and len(chosen) > 1:
        raise DataError(f"{layout.root}: {shown} are files with ids of their own: --split can take one of them")
    return chosen


def _rows(parts: Sequence[Part], data: DataSet, share: Share) -> Subset:
    """Rows of a JSON as they are: their ids stay, so that it can be compared with its source."""
    source = parts[0].data if parts[0].data is not None else read_json(parts[0].files[0])
    images = sorted(source["images"], key=lambda row: row["id"])
    kept = [row for row in source["annotations"] if not row.get("difficult")]
    solid = [row for row in kept if not row.get("iscrowd") and min(row["bbox"][2:]) > 1]
    present: dict[Any, set[int]] = {row["id"]: set() for row in images}
    for row in solid:
        present[row["image_id"]].add(row["category_id"])
    chosen = [images[index] for index in _drawn([present[row["id"]] for row in images], share, parts[0].files[0])]
    ids = {row["id"] for row in chosen}
    tree = {
        "images": chosen,
        "annotations": [row for row in kept if row["image_id"] in ids],
        "categories": source["categories"],
    }
    counts = {row["name"]: sum(row["id"] in present[number] for number in ids) for row in source["categories"]}
    lost = Counter({"difficult objects": len(source["annotations"]) - len(kept)})
    return Subset(tree, _folder_of(list(data.pictures)), len(images), counts, +lost)


def _pictures(data: DataSet, share: Share) -> Subset:
    """Pictures of any other form; ids count from 1."""
    pictures = list({picture.file: picture for picture in data.pictures}.values())
    classes = list(VOC_CLASSES) if data.form == "voc" and set(data.classes) <= set(VOC_CLASSES) else data.classes
    number = {name: index for index, name in enumerate(classes)}
    usable_things = [tuple(thing for thing in row.things if not thing.difficult) for row in pictures]
    lost = Counter({"difficult objects": sum(len(row.things) for row in pictures) - sum(map(len, usable_things))})
    present = [{number[thing.name] for thing in things if not thing.crowd} for things in usable_things]
    drawn = _drawn(present, share, data.root)
    for index in drawn:
        need_picture(pictures[index])
    rows = [
        Picture(row.file, row.name, row.size, usable_things[index], row.source)
        for index, row in ((index, pictures[index]) for index in drawn)
    ]
    folder = Path(os.path.commonpath([row.file.parent for row in pictures]))
    tree = coco_tree(rows, classes, {id(row): row.file.relative_to(folder).as_posix() for row in rows})
    counts = {name: sum(number[name] in present[index] for index in drawn) for name in classes}
    return Subset(tree, folder, len(pictures), counts, +lost)


def _drawn(present: Sequence[Collection[int]], share: Share, source: Path) -> list[int]:
    if not any(present):
        raise DataError(f"{source}: none of its {len(present)} pictures has a box to train on")
    return share.draw(present)


def _folder_of(pictures: Sequence[Picture]) -> Path:
    """Where the file names of a JSON start."""
    first = pictures[0]
    return first.file.parents[len(Path(first.name).parts) - 1]
