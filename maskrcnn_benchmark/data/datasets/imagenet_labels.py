"""The texts of ImageNet-22k's label files: names of classes, and objects of a picture in an old and a new form."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_benchmark.errors import DataError

OLD, NEW = 2, 5  # columns: key, objects; key, height, width, objects, offset


def read_labelmap(path: Path) -> list[str]:
    """Names of the classes, one in each line; the first one has the label 1.

    Raises:
        DataError: the file is missing or empty.
    """
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); it has the name of a class in each line") from None
    if not names:
        raise DataError(f"{path}: the file is empty; it has the name of a class in each line")
    return names


def parse_objects(
    columns: Sequence[str], label_of: Mapping[str, int], class_base: int | None
) -> list[tuple[int, list[float]]]:
    """(label from 1, [x1, y1, x2, y2] as it stands) of each object of a line.

    Args:
        columns: Old form: key, ``[{"class": name, "rect": [...]}, ...]``; new form: key, height, width,
            ``[{"c": name or number, "rect": [...]}, ...]``, offset. The list is JSON or Python's.
        label_of: Name to label; 0 where several labels have the name.
        class_base: Number of the first class where classes are numbers, 0 or 1; None: numbers are refused.

    Raises:
        ValueError: the line is of neither form, or a class is unknown.
    """
    if len(columns) not in (OLD, NEW):
        raise ValueError(f"{len(columns)} columns, not {OLD} (key, objects) or {NEW} (key, h, w, objects, offset)")
    field, text = ("class", columns[1]) if len(columns) == OLD else ("c", columns[3])
    objects = _literal(text)
    if not isinstance(objects, list):
        raise ValueError(f"{text!r:.60} is no list of objects")
    return [(_label(row, field, label_of, class_base), _rect(row)) for row in objects]


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError(f"{text!r:.60} is neither JSON nor a Python list; it is cut short") from None


def _label(row: Any, field: str, label_of: Mapping[str, int], class_base: int | None) -> int:
    if not isinstance(row, dict) or field not in row:
        raise ValueError(f"{row!r:.60} has no {field!r}")
    value = row[field]
    if isinstance(value, str):
        if value not in label_of:
            raise ValueError(f"class {value!r} is not in labelmap.txt")
        if not label_of[value]:
            raise ValueError(f"class {value!r} is in labelmap.txt more than once; the classes need names of their own")
        return label_of[value]
    if type(value) is not int:
        raise ValueError(f"{field} {value!r:.60} is neither a name nor a number")
    if class_base is None:
        raise ValueError(f"{field} is the number {value}; say with the key class_base of the data set, 0 or 1, which")
    label = value - class_base + 1
    if not 1 <= label <= len(label_of):
        raise ValueError(f"class {value} (from {class_base}) is out of range, labelmap.txt has {len(label_of)} classes")
    return label


def _rect(row: Mapping[str, Any]) -> list[float]:
    rect = row.get("rect")
    numbers = isinstance(rect, list | tuple) and len(rect) == 4
    if not numbers or not all(type(side) in (int, float) and math.isfinite(side) for side in rect or ()):
        raise ValueError(f"rect is {rect!r:.60}, not [x1, y1, x2, y2]")
    return [float(side) for side in rect or ()]
