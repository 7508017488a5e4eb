"""Pictures that annotations speak of and that are not there, found before the first one is needed."""

from __future__ import annotations

import os
from pathlib import Path

from maskrcnn_benchmark.data.sample import PictureSet
from maskrcnn_benchmark.errors import DataError

FEW = 1000  # pictures that are looked for one by one; for more, their folders are listed


def refuse_missing(dataset: PictureSet) -> None:
    """Look for every picture of a data set.

    Raises:
        DataError: some are missing; names the first.
    """
    if told := missing(dataset):
        raise DataError(f"{dataset.name}: {told}: put it there, or take it out of the annotations")


def missing(dataset: PictureSet) -> str:
    """What is missing of a data set, with the first such picture; empty when all are there."""
    files = {dataset.file(index): index for index in reversed(range(len(dataset)))}
    listed: dict[Path, set[str]] = {}

    def there(path: Path) -> bool:
        if len(files) <= FEW:
            return path.exists()
        if path.parent not in listed:
            listed[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
        return path.name in listed[path.parent]

    gone = [index for path, index in files.items() if not there(path)]
    if not gone:
        return ""
    count = f"{len(gone)} of {len(files)} pictures are missing, such as" if len(gone) > 1 else "missing picture"
    return f"{count} {dataset.file(min(gone))}"
