"""From somebody's data to the task file of a fine-tuning: splits, COCO files where there are none, and prompts."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from maskrcnn_benchmark.data.forms.convert import coco_tree, need_picture
from maskrcnn_benchmark.data.forms.model import ALL, DataSet, Layout, Picture, in_order
from maskrcnn_benchmark.errors import DataError, PromptError

logger = logging.getLogger(__name__)

UNDIVIDED = ("trainval", ALL)  # splits that training and validation pictures may be taken from


@dataclass(frozen=True)
class Taken:
    """What a task file says about its data.

    Attributes:
        register: ``DATASETS.REGISTER``.
        categories: ``DATASETS.OVERRIDE_CATEGORY``: ids of the annotation files, with the names of the prompt.
        said: What was decided, for people.
    """

    register: dict[str, dict[str, str]]
    categories: list[dict[str, Any]]
    said: list[str]


def take(
    layout: Layout, data: DataSet, folder: Path, prompts: Mapping[str, str], val_part: float = 0.2, seed: int = 3
) -> Taken:
    """Decide about splits and prompts; COCO files that can be used as they are stay where they are.

    Args:
        layout: Of the data.
        data: As :func:`maskrcnn_benchmark.data.forms.read.usable` reads them.
        folder: Gets ``<split>.json`` for the splits that are not such files.
        prompts: Class name -> words to ask with, in place of :func:`clean`.
        val_part: Of the training pictures, what becomes the validation set where there is none.
        seed: Of that choice.

    Raises:
        DataError: there is nothing to train on, a picture is missing, or the data are captions.
        PromptError: a prompt is for a class that is not there, or two classes would be asked for by the same words.
    """
    if data.form == "mdetr":
        raise DataError(f"{data.root}: captions with boxes (MDETR) have no classes to tune on: use mrb train")
    said: list[str] = []
    words = _words(data, prompts, said)
    splits = divide(data, val_part, seed, said)
    for picture in (picture for pictures in splits.values() for picture in pictures):
        need_picture(picture)
    marked = any(thing.difficult for pictures in splits.values() for picture in pictures for thing in picture.things)
    if marked:
        splits = set_aside(splits, said)
    register, ids = (None if marked else _as_they_are(layout, splits)) or _converted(data, splits, folder, said)
    categories = [{"id": ids[name], "name": words[name]} for name in data.classes]
    return Taken(register, categories, said)


def divide(data: DataSet, val_part: float, seed: int, said: list[str]) -> dict[str, list[Picture]]:
    """ "train", "val" and, where there is one, "test"; a missing validation set comes out of the training pictures.

    Raises:
        DataError: there is no training set, or it is too small.
    """
    splits = dict(data.splits)
    if "train" not in splits:
        source = next((name for name in UNDIVIDED if name in splits), None)
        if source is None:
            raise DataError(f"{data.root}: no split to train on, only {', '.join(splits)}: name a folder with one")
        splits["train"] = splits.pop(source)
    splits = {name: splits[name] for name in ("train", "val", "test") if name in splits}
    if "val" not in splits:
        pictures = splits["train"]
        if len(pictures) < 2:
            raise DataError(f"{data.root}: {len(pictures)} picture: at least 2 are needed, to train and to validate")
        count = min(len(pictures) - 1, max(1, round(len(pictures) * val_part)))
        chosen = set(Random(seed).sample(range(len(pictures)), count))
        splits["val"] = [pictures[index] for index in sorted(chosen)]
        splits["train"] = [picture for index, picture in enumerate(pictures) if index not in chosen]
        said.append(
            f"no validation set: {count} of {len(pictures)} training pictures became it (--val {val_part:g}, "
            f"--seed {seed})"
        )
    for name in data.classes:
        if not any(t.name == name and not t.difficult for p in splits["train"] for t in p.things):
            said.append(f"no box of {name!r} in the training set: it is asked for, and not learnt")
    return {name: splits[name] for name in in_order([*splits])}


def set_aside(splits: Mapping[str, Sequence[Picture]], said: list[str]) -> dict[str, list[Picture]]:
    """Objects marked as difficult, as PASCAL VOC has it: not taught, and neither right nor wrong where they are found.

    In COCO files the latter are crowds.
    """
    parts = {}
    for split, pictures in splits.items():
        kept = []
        for picture in pictures:
            if split == "train":
                things = tuple(thing for thing in picture.things if not thing.difficult)
            else:
                things = tuple(replace(thing, crowd=thing.crowd or thing.difficult) for thing in picture.things)
            kept.append(replace(picture, things=things))
        parts[split] = kept
    counts = {name: sum(t.difficult for p in pictures for t in p.things) for name, pictures in splits.items()}
    others = ", ".join(f"{count} of {name}" for name, count in counts.items() if name != "train" and count)
    said.append(
        f"objects marked as difficult: {counts['train']} are left out of the training"
        f"{f', {others} are neither right nor wrong where they are found' if others else ''}"
    )
    return parts


def clean(name: str) -> str:
    """A class name as words: "traffic_light-red" becomes "traffic light red"; marks that end a prompt go."""
    return " ".join(re.sub(r"[_\-.,;:/]+", " ", name).split()) or name


def _words(data: DataSet, prompts: Mapping[str, str], said: list[str]) -> dict[str, str]:
    for name in prompts:
        if name not in data.classes:
            raise PromptError(f"--names: there is no class {name!r}; the classes are {', '.join(data.classes)}")
    words = {name: prompts.get(name) or clean(name) for name in data.classes}
    first: dict[str, str] = {}
    for name, text in words.items():
        other = first.setdefault(text.lower(), name)
        if other != name:
            raise PromptError(f"classes {other!r} and {name!r} would both be asked for as {text!r}: give --names")
    changed = [f"{name} -> {text}" for name, text in words.items() if name != text]
    if changed:
        said.append(f"asked for in other words: {', '.join(changed)}")
    return words


def _as_they_are(
    layout: Layout, splits: Mapping[str, Sequence[Picture]]
) -> tuple[dict[str, dict[str, str]], dict[str, int]] | None:
    """The COCO files themselves, if they have these splits and one list of categories."""
    parts = {part.split: part for part in layout.parts}
    if layout.form != "coco" or any(name not in parts for name in splits):
        return None
    lists = [{row["name"]: row["id"] for row in parts[name].data["categories"]} for name in splits]
    if any(ids != lists[0] for ids in lists) or "train" not in parts or "val" not in parts:
        return None
    register = {}
    for name in splits:
        folder, file = parts[name].folders[0], parts[name].files[0]
        if not all(picture.file == folder / picture.name for picture in splits[name]):
            return None
        register[name] = {"img_dir": str(folder.resolve()), "ann_file": str(file.resolve())}
    return register, lists[0]


def _converted(
    data: DataSet, splits: Mapping[str, Sequence[Picture]], folder: Path, said: list[str]
) -> tuple[dict[str, dict[str, str]], dict[str, int]]:
    """COCO files for the splits; the pictures stay where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [picture.file.resolve() for pictures in splits.values() for picture in pictures]
    common = Path(os.path.commonpath([file.parent for file in files]))
    register = {}
    for split, pictures in splits.items():
        names = {id(picture): picture.file.resolve().relative_to(common).as_posix() for picture in pictures}
        path = folder / f"{split}.json"
        path.write_text(json.dumps(coco_tree(pictures, data.classes, names)), encoding="utf-8")
        register[split] = {"img_dir": str(common), "ann_file": str(path.resolve())}
    said.append(f"annotations written as COCO: {folder}; pictures stay in {common}")
    return register, {name: index for index, name in enumerate(data.classes, 1)}
