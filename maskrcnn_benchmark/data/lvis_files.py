"""Files that training on LVIS needs beside its annotations: those without rare classes, and how often classes occur.

As Detic's scripts make them (https://github.com/facebookresearch/Detic).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from maskrcnn_benchmark.data.check import as_lists, read_json
from maskrcnn_benchmark.errors import DataError

RARE = "r"  # frequency of a category
COUNTS = "image_count"

Row = dict[str, Any]


def read_lvis(path: Path) -> dict[str, Any]:
    """An annotation file whose categories say how frequent they are.

    Raises:
        DataError: it is none.
    """
    data = as_lists(read_json(path), path)
    if lacking := [row.get("name") for row in data["categories"] if row.get("frequency") not in ("r", "c", "f")]:
        raise DataError(f"{path}: category {lacking[0]!r} has no frequency r, c or f: give a file of LVIS v1")
    return data


def without_rare(data: dict[str, Any]) -> dict[str, Any]:
    """The same pictures and categories, without the boxes of rare ones."""
    rare = {row["id"] for row in data["categories"] if row["frequency"] == RARE}
    return {**data, "annotations": [row for row in data["annotations"] if row["category_id"] not in rare]}


def counted(data: dict[str, Any]) -> list[Row]:
    """The categories, with the number of pictures that they are in and of their boxes."""
    boxes = Counter(row["category_id"] for row in data["annotations"])
    pictures = Counter(
        category for _, category in {(row["image_id"], row["category_id"]) for row in data["annotations"]}
    )
    return [
        {**row, COUNTS: pictures[row["id"]], "instance_count": boxes[row["id"]]}
        for row in sorted(data["categories"], key=lambda row: row["id"])
    ]
