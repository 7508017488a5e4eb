"""Which rows of a category list are classes, and what another list may say about them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_benchmark.data.check import describe_ids
from maskrcnn_benchmark.errors import DataError

Row = Mapping[str, Any]


def visible(rows: Sequence[Row], in_use: Collection[int], file: Path, notes: list[str]) -> list[Row]:
    """The rows besides the background: a category 0 (or ``__background__``) that no box has.

    Args:
        rows: Of the file.
        in_use: Indices of the rows that some box has.
        file: For the message.
        notes: Gets a line for each row left out.

    Raises:
        DataError: nothing is left.
    """
    kept = []
    for index, row in enumerate(rows):
        if (row["id"] != 0 and row["name"] != "__background__") or index in in_use:
            kept.append(row)
            continue
        notes.append(
            f"category id {row['id']} ({row['name']!r}) has no annotations and looks like the background or the "
            "super-category of a Roboflow export: left out, labels count from the next one"
        )
    if not kept:
        raise DataError(f"{file}: no category is left besides the background: there is nothing to look for")
    return kept


def overridden(rows: Sequence[Row], other: Sequence[Row], all_rows: Sequence[Row], file: Path) -> list[Row]:
    """The categories of ``DATASETS.OVERRIDE_CATEGORY``, which must be for the same ids.

    Args:
        rows: The classes of the file.
        other: What replaces them; may have a background that was left out.
        all_rows: Of the file, with its background.
        file: For the message.

    Raises:
        DataError: they are not.
    """
    wrong = [row for row in other if type(row.get("id")) is not int or not isinstance(row.get("name"), str)]
    if wrong:
        raise DataError(f"DATASETS.OVERRIDE_CATEGORY: {dict(wrong[0])!r} needs a whole number as id and a text as name")
    ids = {row["id"] for row in rows}
    dropped = {row["id"] for row in all_rows} - ids
    kept = [row for row in other if row["id"] not in dropped]
    given = {row["id"] for row in kept}
    if len(given) < len(kept):
        raise DataError("DATASETS.OVERRIDE_CATEGORY: an id is there twice; each category needs its own")
    if given != ids:
        parts = [(ids - given, "lacks"), (given - ids, "has in addition")]
        said = " and ".join(f"{verb} {describe_ids(part)}" for part, verb in parts if part)
        raise DataError(
            f"DATASETS.OVERRIDE_CATEGORY {said}: its {len(kept)} categories must have the ids of the {len(ids)} "
            f"categories of {file} ({describe_ids(ids)})"
        )
    return kept
