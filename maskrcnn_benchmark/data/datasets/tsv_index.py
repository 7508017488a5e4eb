"""The tab-separated files of a detection set, checked and laid out as flat arrays."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from maskrcnn_benchmark.data.check import MOST_PROBLEMS, read_json, refuse
from maskrcnn_benchmark.data.datasets.tsv_file import TsvFile, open_tsv
from maskrcnn_benchmark.data.index import Arrays, Index, cached, first_rows, pack, pack_value
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.text.prompts import BACKGROUND

logger = logging.getLogger(__name__)

VERSION = 1  # raise when the arrays change
KEYS_LOOKED_AT = 64  # rows of the pictures' file whose key is compared before the first picture is read

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class TsvParts:
    """The files of a set."""

    img: Path
    label: Path
    labelmap: Path
    hw: Path | None = None
    linelist: Path | None = None
    imageid2idx: Path | None = None


class _BadRow(Exception):
    """What is wrong with a row."""


def read_parts(path: Path) -> TsvParts:
    """The files that a YAML names, relative to itself.

    Raises:
        DataError: it is no such file, or one of them is missing.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(given, dict):
        raise DataError(f"{path}: not a list of files; it must have img, label and labelmap, and may have hw, linelist")
    given["labelmap"] = given.get("labelmap") or given.get("jsondict")
    for key in ("img", "label", "labelmap"):
        if not given.get(key):
            raise DataError(f"{path}: no {key}; it has {', '.join(key for key in given if given[key])}")
    found = {}
    for field in fields(TsvParts):
        if name := given.get(field.name):
            file = path.parent / str(name)
            found[field.name] = file if file.is_file() else Path(str(name))
            if not found[field.name].is_file():
                raise DataError(f"{path}: {field.name}: {file} is missing")
    return TsvParts(**found)


def tsv_index(path: Path) -> Index:
    """A set by its YAML.

    R rows of the label file with M boxes, N samples: ``lines`` (N,) int64, the row of each sample; ``keys`` texts (R);
    ``sizes`` (R, 2) int32 h, w, 0 where not given; ``first`` (R + 1,); ``boxes`` (M, 4) float32 as in the file;
    ``labels`` (M,) int64; ``image_row`` (R,) int64; ``offsets`` int64, of the rows of the pictures' file; the values
    ``names``, pairs of label and name with the background last, and ``notes``.

    Raises:
        DataError: a file is missing or broken.
    """
    parts = read_parts(path)
    files = [file for field in fields(parts) if (file := getattr(parts, field.name)) is not None]
    return cached("tsv", [path, *files], VERSION, lambda: _build(parts))


def _build(parts: TsvParts) -> Arrays:
    names = _read_names(parts.labelmap)
    label_of = {name: label for label, name in names} | {BACKGROUND: 0}
    labels, images = open_tsv(parts.label), open_tsv(parts.img)
    rows = _each_row(labels, partial(_parse_label, label_of=label_of, names_file=parts.labelmap.name))
    keys = [key for key, _ in rows]
    objects = [row for _, (row, _) in rows]
    image_row = _image_rows(parts, [about for _, (_, about) in rows], images, labels)
    _compare_keys(images, labels, keys, image_row, same_order=parts.imageid2idx is None)
    sizes = _sizes(parts, keys, [about for _, (_, about) in rows])
    boxes = np.array([box for row in objects for box, _ in row], dtype=np.float32).reshape(-1, 4)
    first = first_rows([len(row) for row in objects])
    arrays: Arrays = {
        "lines": _lines(parts, len(labels)),
        "sizes": sizes,
        "first": first,
        "boxes": boxes,
        "labels": np.array([label for row in objects for _, label in row], dtype=np.int64),
        "image_row": image_row,
        "offsets": images.offsets,
    }
    notes = _notes(boxes, np.repeat(sizes, np.diff(first), axis=0))
    return arrays | pack("keys", keys) | pack_value("names", names) | pack_value("notes", notes)


def _read_names(path: Path) -> list[tuple[int, str]]:
    """(label, name) in the order of the file, the background last, as the original has them."""
    pairs: Any
    if path.suffix == ".tsv":
        lines = path.read_text(encoding="utf-8").splitlines()
        pairs = {line.strip(): label for label, line in enumerate(lines, 1)}
    else:
        pairs = read_json(path)
        if isinstance(pairs, dict) and isinstance(pairs.get("label_to_idx"), dict):
            pairs = pairs["label_to_idx"]
    if not isinstance(pairs, dict) or not pairs:
        raise DataError(f"{path}: no label map; it must be JSON like {{'person': 1, 'bicycle': 2}}")
    wrong = next((name for name, label in pairs.items() if type(label) is not int or label < 0), None)
    if wrong is not None:
        raise DataError(f"{path}: the label of {wrong!r} is {pairs[wrong]!r}, not a whole number from 1")
    names = {label: name for name, label in pairs.items()}
    names.setdefault(0, BACKGROUND)
    if len(names) < len(pairs):
        logger.warning("%s: %d names for %d labels: the last name of a label counts", path, len(pairs), len(names))
    return list(names.items())


def _each_row(tsv: TsvFile, parse: Callable[[list[str]], Parsed]) -> list[tuple[str, Parsed]]:
    """(key, what ``parse`` makes of the columns) of each row.

    Raises:
        DataError: with all that is wrong.
    """
    found, problems = [], []
    for number in range(len(tsv)):
        columns = tsv.row(number)
        try:
            found.append((columns[0], parse(columns)))
        except _BadRow as error:
            problems.append(f"line {number + 1} (key {columns[0]!r:.60}): {error}")
        if len(problems) >= MOST_PROBLEMS:
            break
    refuse(tsv.path, iter(problems))
    return found


def _json(columns: list[str]) -> Any:
    if len(columns) < 2:
        raise _BadRow("has one column, not a key and JSON with a tab between them")
    try:
        return json.loads(columns[1])
    except ValueError as error:
        raise _BadRow(f"its second column is not valid JSON ({error}): {columns[1]!r:.60}") from None


def _parse_label(
    columns: list[str], label_of: Mapping[str, int], names_file: str
) -> tuple[list[tuple[list[float], int]], Any]:
    """Boxes with their labels, and the other things that the row says about its picture."""
    value = _json(columns)
    about = {key: value[key] for key in ("img_id", "img_h", "img_w") if key in value} if isinstance(value, dict) else {}
    rows = value.get("objects") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise _BadRow(f"its second column is no list of objects: {columns[1]!r:.60}")
    return [_parse_object(row, place, label_of, names_file) for place, row in enumerate(rows)], about


def _parse_object(row: Any, place: int, label_of: Mapping[str, int], names_file: str) -> tuple[list[float], int]:
    rect: Any
    rect, name = (row.get("rect"), row.get("class")) if isinstance(row, dict) else (None, None)
    numbers = isinstance(rect, list) and len(rect) == 4 and all(type(side) in (int, float) for side in rect)
    if not numbers or not np.isfinite(rect).all():
        raise _BadRow(f"object {place}: rect {rect!r} is not four numbers [x1, y1, x2, y2]")
    if rect[2] < rect[0] or rect[3] < rect[1]:
        raise _BadRow(f"object {place}: rect {rect} ends before it begins; it must be [x1, y1, x2, y2]")
    if not isinstance(name, str) or name not in label_of:
        near = difflib.get_close_matches(str(name), label_of, n=1)
        hint = f" (closest: {near[0]!r})" if near else ""
        raise _BadRow(f"object {place}: class {name!r} is not in {names_file}{hint}")
    return rect, label_of[name]


def _parse_size(columns: list[str]) -> tuple[int, int]:
    """(h, w) of ``[{"height": 480, "width": 640}]``, of such a dict, or of "480 640"."""
    try:
        value: Any = dict(zip(("height", "width"), map(int, columns[1].split()), strict=True))
    except (ValueError, IndexError):
        value = _json(columns)
    value = value[0] if isinstance(value, list) and value else value
    size: Any = (value.get("height"), value.get("width")) if isinstance(value, dict) else (None, None)
    if not all(type(side) is int and side > 0 for side in size):
        raise _BadRow(f"no height and width: {columns[1]!r:.60}")
    return size


def _sizes(parts: TsvParts, keys: list[str], abouts: list[Any]) -> np.ndarray:
    """(R, 2) h, w; 0 where no file says."""
    if parts.hw is None:
        return np.array([(about.get("img_h", 0), about.get("img_w", 0)) for about in abouts], dtype=np.int32)
    rows = _each_row(open_tsv(parts.hw), _parse_size)
    if len(rows) != len(keys):
        raise DataError(
            f"{parts.label} has {len(keys)} rows, {parts.hw} {len(rows)}: they must be of the same pictures"
        )
    for line, (key, (other, _)) in enumerate(zip(keys, rows, strict=True), 1):
        if key != other:
            raise DataError(f"{parts.hw}: line {line} has the key {other!r}, {parts.label.name} has {key!r} there")
    return np.array([size for _, size in rows], dtype=np.int32)


def _image_rows(parts: TsvParts, abouts: list[Any], images: TsvFile, labels: TsvFile) -> np.ndarray:
    """(R,) rows of the pictures' file."""
    if parts.imageid2idx is None:
        if len(images) < len(labels):
            raise DataError(
                f"{parts.label} has {len(labels)} rows, {parts.img} only {len(images)}: they must be of one set"
            )
        return np.arange(len(labels), dtype=np.int64)
    table = read_json(parts.imageid2idx)
    rows = []
    for line, about in enumerate(abouts, 1):
        row = table.get(str(about.get("img_id"))) if isinstance(table, dict) else None
        if type(row) is not int or not 0 <= row < len(images):
            raise DataError(
                f"{parts.imageid2idx}: no row of {parts.img.name} for img_id {about.get('img_id')!r} "
                f"of {parts.label.name} line {line}"
            )
        rows.append(row)
    return np.array(rows, dtype=np.int64)


def _compare_keys(images: TsvFile, labels: TsvFile, keys: list[str], image_row: np.ndarray, same_order: bool) -> None:
    """Some keys now; the others when their pictures are read."""
    if not same_order:
        return
    for number in np.unique(np.linspace(0, len(keys) - 1, KEYS_LOOKED_AT).astype(int)).tolist():
        other = images.key(int(image_row[number]))
        if other != keys[number]:
            raise DataError(
                f"{images.path}: line {number + 1} has the key {other!r}, {labels.path.name} has {keys[number]!r} there"
            )


def _lines(parts: TsvParts, rows: int) -> np.ndarray:
    """(N,) the rows that count, with repeats."""
    if parts.linelist is None:
        return np.arange(rows, dtype=np.int64)
    lines = []
    for number, text in enumerate(parts.linelist.read_text(encoding="utf-8").split("\n"), 1):
        if not text.strip():
            continue
        if not text.strip().isdigit() or int(text) >= rows:
            raise DataError(
                f"{parts.linelist}: line {number}: {text.strip()!r:.40} is no row of {parts.label.name} "
                f"(0 to {rows - 1})"
            )
        lines.append(int(text))
    if not lines:
        raise DataError(f"{parts.linelist}: lists no row: there is nothing to train on")
    return np.array(lines, dtype=np.int64)


def _notes(boxes: np.ndarray, sizes: np.ndarray) -> list[str]:
    """What will be mended when pictures are read; sizes are (M, 2) h, w."""
    border = np.where(sizes > 0, sizes - 1, np.inf)[:, [1, 0, 1, 0]]
    outside = ((boxes < 0) | (boxes > border + 1)).any(axis=1)
    cut = np.clip(boxes, 0, border)
    flat = (cut[:, 2:] <= cut[:, :2]).any(axis=1)
    counts = [
        (int((outside & ~flat).sum()), "partly outside the picture: cut at the border"),
        (int(flat.sum()), "of at most one pixel in width or height: left out of the targets"),
    ]
    return [f"{count} box{'es' * (count > 1)} {what}" for count, what in counts if count]
