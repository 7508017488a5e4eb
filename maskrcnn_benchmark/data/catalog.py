"""Which files a data set's name stands for, how they are read and who scores them.

Names come from ``DATASETS.REGISTER`` of a config and from ``catalog.yaml``; where a name is in both, the files are
those of the config. The kind stands in the entry: nothing is guessed from what a user's name happens to contain.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import DataError

CATALOG = Path(__file__).with_name("catalog.yaml")
KINDS = {
    "test": ("coco", "flickr", "gqa", "lvis", "phrasecut", "refexp", "voc"),
    "train": (
        *("coco", "coco_grounding", "mixed", "flickr", "gqa", "phrasecut", "refexp", "tsv"),
        *("voc", "imagenet", "imagenet22k", "image_labels"),
        *("lvis", "imagenet_lvis", "imagenet_tar"),
    ),
}
"""Kinds that can be evaluated on and trained with."""
PICTURES_INSIDE = ("tsv",)
"""Kinds whose annotation file names the pictures' file, so that there is no ``img_dir``."""
ONE_FILE = ("tsv", "imagenet", "imagenet22k")
"""Kinds whose pictures are all in one file, or a few."""
FOLDERS = ("voc", "imagenet", "imagenet22k")
"""Kinds whose ``ann_file`` is a folder."""
FILE_OR_FOLDER = ("image_labels",)
"""Kinds whose ``ann_file`` may be either."""
SUFFIX_KINDS = {"_grounding": "coco_grounding"}
"""``DATASETS.*_DATASETNAME_SUFFIX`` -> kind of a registered data set that is used under it."""

Row = dict[str, Any]


class UnknownKind(DataError):
    """A data set is of a kind that there is no reader or evaluator for."""


@dataclass(frozen=True)
class Entry:
    """A data set whose files have been found."""

    name: str
    kind: str
    images: Path  # folder that the file names in the annotations start from
    annotations: Path
    evaluator: str  # empty: nothing scores it
    options: Mapping[str, Any] = field(default_factory=dict)  # further keys of the entry, for its reader


def resolve(cfg: Cfg, name: str, split: str) -> Entry:
    """The entry of a name in ``DATASETS.TEST`` (``split`` "test") or ``DATASETS.TRAIN`` ("train").

    Raises:
        DataError: the name is unknown, its kind cannot be read, or a file of it is missing.
    """
    key = split.upper()
    suffix = {"TRAIN": "TRAIN_DATASETNAME_SUFFIX", "TEST": "TEST_DATASETNAME_SUFFIX"}[key]
    registered = {str(other): dict(row) for other, row in cfg.DATASETS.REGISTER.items()}
    row = _look_up(name, getattr(cfg.DATASETS, suffix), registered)
    if row is None:
        raise DataError(_unknown(name, f"DATASETS.{key} ({cfg.source(f'DATASETS.{key}')})", registered))
    where = f"data set {name!r}"
    if name in registered:
        where = f"DATASETS.REGISTER.{name} ({cfg.source(f'DATASETS.REGISTER.{name}')})"
    return _entry(name, row, where, split)


def names() -> list[str]:
    """Every name of the catalog."""
    return sorted(_catalog())


def find_path(relative: str | Sequence[str], what: str = "file") -> Path:
    """Where a path of a config lies: an absolute path as it is, any other below the first folder that has it.

    Args:
        relative: A path, or alternatives of which the first one found counts.
        what: What is looked for, for the message.

    Raises:
        DataError: none is found; names every folder tried.
    """
    wanted = [Path(path).expanduser() for path in ([relative] if isinstance(relative, str) else relative)]
    folders = _folders()
    for path in wanted:
        for folder in [""] if path.is_absolute() else folders:
            if (folder / path).exists():
                return folder / path
    shown = " or ".join(repr(str(path)) for path in wanted)
    tried = ", ".join(label for label in folders.values())
    below = "" if all(path.is_absolute() for path in wanted) else f" below {tried}"
    raise DataError(f"{what} {shown} not found{below}: see DATA.md for where to get it and where to put it")


def _folders() -> dict[Path, str]:
    """The folders that relative paths start from, in order, and what to call them."""
    own = os.environ.get("DATASET")
    first = {Path("."): f". ({Path.cwd()})", **({Path(own): f"$DATASET ({own})"} if own else {})}
    return first | {Path(folder): f"{folder}/" for folder in ("DATASET", "OUTPUT", "data", "MODEL")}


def _look_up(name: str, suffix: str, registered: Mapping[str, Row]) -> Row | None:
    """Keys of an entry: under the name with the suffix, or else under the name, then read as the suffix says."""
    if suffix and (name + suffix in registered or name + suffix in _catalog()):
        name, suffix = name + suffix, ""
    known = _catalog().get(name) or _by_star(name) or {}
    row = registered.get(name, known or None)
    if row is None:
        return None
    kept = ["kind", "evaluator", "copies"]
    if row.get("kind") in (None, known.get("kind")):
        kept.append("split")  # a key of that kind of data
    about = {key: known[key] for key in kept if key in known}
    row = {"kind": "coco", "evaluator": "coco"} | about | row
    return row | {"kind": SUFFIX_KINDS.get(suffix, suffix)} if suffix else row


def _entry(name: str, row: Row, where: str, split: str) -> Entry:
    options = dict(row)
    kind, evaluator = str(options.pop("kind")), options.pop("evaluator") or ""
    if kind not in KINDS[split]:
        verb = "evaluate on" if kind in KINDS["train"] else "read"
        raise UnknownKind(f"{where}: this version cannot {verb} data of kind {kind!r}, only {', '.join(KINDS[split])}")
    needed = ("ann_file",) if kind in PICTURES_INSIDE else ("img_dir", "ann_file")
    for key in needed:
        if not options.get(key):
            raise DataError(f"{where}: no {key}; an entry needs {' and '.join(needed)}, and has {', '.join(row)}")
    annotations = find_path(options.pop("ann_file"), f"{where}: ann_file")
    images = find_path(options.pop("img_dir"), f"{where}: img_dir") if "img_dir" in needed else annotations.parent
    if not images.is_dir():
        raise DataError(f"{where}: img_dir {str(images)!r} is not a folder")
    if kind not in FILE_OR_FOLDER and not (annotations.is_dir() if kind in FOLDERS else annotations.is_file()):
        wanted = f"folder, as it is for kind {kind!r}" if kind in FOLDERS else "file"
        raise DataError(f"{where}: ann_file {str(annotations)!r} is not a {wanted}")
    return Entry(name, kind, images, annotations, str(evaluator), options)


def _unknown(name: str, where: str, registered: Mapping[str, Row]) -> str:
    known = [*registered, *_catalog()]
    near = (
        difflib.get_close_matches(name, known, n=3) or [other for other in known if name.lower() in other.lower()][:3]
    )
    hint = f" Closest: {', '.join(map(repr, near))}." if near else ""
    return (
        f"{where} names {name!r}, which is no data set.{hint} "
        f"To add your own, give DATASETS.REGISTER.{name} an img_dir and an ann_file"
    )


@cache
def _catalog() -> dict[str, Row]:
    return {name: _filled(row, parts) for name, parts, row in _entries() if "*" not in name}


def _by_star(name: str) -> Row | None:
    """The first entry with stars that a name can be read as."""
    for pattern, parts, row in _entries():
        if "*" in pattern and (found := re.fullmatch(re.escape(pattern).replace(r"\*", "(.*)"), name)):
            return _filled(row, (*parts, *found.groups()))
    return None


@cache
def _entries() -> list[tuple[str, tuple[str, ...], Row]]:
    """Name, what its braces stood for, and keys, of all that the file has."""
    rows = yaml.safe_load(CATALOG.read_text(encoding="utf-8"))
    return [(name, parts, row) for pattern, row in rows.items() for name, parts in _expand(pattern)]


def _filled(row: Row, parts: tuple[str, ...]) -> Row:
    return {"evaluator": "", **{key: _fill(value, parts) for key, value in row.items()}}


def _expand(pattern: str) -> list[tuple[str, tuple[str, ...]]]:
    """``a_{x,y}`` -> ``("a_x", ("x",)), ("a_y", ("y",))``."""
    pieces = re.split(r"\{(.*?)\}", pattern)
    text, choices = pieces[::2], [piece.split(",") for piece in pieces[1::2]]
    return [
        ("".join(part for pair in zip(text, (*parts, ""), strict=True) for part in pair), parts)
        for parts in product(*choices)
    ]


def _fill(value: Any, parts: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [_fill(item, parts) for item in value]
    return value.format(*parts) if isinstance(value, str) else value
