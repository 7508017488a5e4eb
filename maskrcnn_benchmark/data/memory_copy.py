"""Copies of large files in memory, for data that lie on a slow disk or on the network."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path

from maskrcnn_benchmark.data.index import one_at_a_time
from maskrcnn_benchmark.errors import DataError

logger = logging.getLogger(__name__)

PLACE = Path("/dev/shm")
"""A folder of Linux whose files are in memory."""
GIB = 2**30


def in_memory(path: Path, place: Path | None = None) -> Path:
    """A copy of a file in memory, for all processes of this machine; the first one makes it.

    It stays when they end, so that the next training finds it, until it is removed by hand or the machine restarts.

    Args:
        path: The file.
        place: Folder for the copy; None: :data:`PLACE`.

    Raises:
        DataError: there is no such folder here, or not enough room in it.
    """
    place = place or PLACE
    leave = "leave 'down' out of the name of the data set to read it where it is"
    if not os.access(place, os.W_OK):
        raise DataError(f"{path}: cannot be copied to memory, {place} is no folder that can be written: {leave}")
    state = path.stat()
    stamp = f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
    copy = place / f"maskrcnn_benchmark-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}-{path.name}"
    with one_at_a_time(place / f"{copy.name}.lock", path):
        if copy.exists():
            return copy
        free = shutil.disk_usage(place).free
        if free < state.st_size:
            raise DataError(
                f"{path}: has {state.st_size / GIB:.1f} GiB, {place} {free / GIB:.1f} GiB left: make room, or {leave}"
            )
        logger.info("%s: copied to %s, %.1f GiB of memory until it is removed", path, copy, state.st_size / GIB)
        beside = place / f"{copy.name}.part"
        shutil.copyfile(path, beside)
        os.replace(beside, copy)
    return copy
