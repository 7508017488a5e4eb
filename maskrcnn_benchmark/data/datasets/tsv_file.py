"""Tab-separated files with an index of their lines, as in Objects365's training data: any row at once."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from maskrcnn_benchmark.data.handle import Handle
from maskrcnn_benchmark.errors import DataError

logger = logging.getLogger(__name__)

CHUNK = 1 << 26  # bytes read at a time
LOOKED_AT = 64  # lines of an index that are compared with its file


class TsvFile:
    """Rows by number."""

    def __init__(self, path: Path, offsets: np.ndarray):
        self.path, self.offsets = path, offsets
        self._file = Handle(path)

    def __len__(self) -> int:
        return len(self.offsets)

    def row(self, number: int) -> list[str]:
        """The columns of a row, without white space around them."""
        line = self._file.at(int(self.offsets[number])).readline()
        return [column.strip().decode() for column in line.split(b"\t")]

    def key(self, number: int) -> str:
        """The first column of a row, without reading the others."""
        file, start = self._file.at(int(self.offsets[number])), b""
        while b"\t" not in start and b"\n" not in start and (part := file.read(64)):
            start += part
        return start.split(b"\n")[0].split(b"\t")[0].strip().decode()


def open_tsv(path: Path) -> TsvFile:
    """A file by its ``.lineidx``, the offsets of its lines, which is made when it is missing or of another file.

    Raises:
        DataError: the file cannot be read or is empty.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not size:
        raise DataError(f"{path}: the file is empty: download or copy it again")
    beside = path.with_suffix(".lineidx")
    wrong = "missing"
    if beside.is_file():
        offsets = _stored(beside)
        if offsets is not None and not (wrong := _why_not(offsets, path, size, beside)):
            return TsvFile(path, offsets)
        wrong = wrong if offsets is not None else "not a list of numbers"
    logger.warning("%s: %s, made from %s", beside, wrong, path.name)
    offsets = line_offsets(path)
    _write(beside, offsets)
    return TsvFile(path, offsets)


def line_offsets(path: Path) -> np.ndarray:
    """(R,) int64: where each line of a file begins, in bytes."""
    found, place = [np.zeros(1, dtype=np.int64)], 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            found.append(np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n")) + place + 1)
            place += len(chunk)
    offsets = np.concatenate(found)
    return offsets[offsets < place]


def _stored(path: Path) -> np.ndarray | None:
    try:
        return np.array(path.read_bytes().split(), dtype=np.int64)
    except (ValueError, OverflowError):
        return None


def _why_not(offsets: np.ndarray, path: Path, size: int, beside: Path) -> str:
    """What shows that offsets are not those of a file; when they are older than it, each of them is looked at."""
    if not len(offsets) or offsets[0] != 0 or (np.diff(offsets) <= 0).any() or offsets[-1] >= size:
        return f"its {len(offsets)} offsets are not those of a file of {size} bytes"
    older = beside.stat().st_mtime_ns < path.stat().st_mtime_ns
    looked_at = offsets if older else offsets[np.unique(np.linspace(0, len(offsets) - 1, LOOKED_AT).astype(int))]
    with open(path, "rb") as file:
        for offset in looked_at.tolist():
            file.seek(max(0, offset - 1))
            if offset and file.read(1) != b"\n":
                return f"no line begins at byte {offset}"
        file.seek(int(offsets[-1]))
        file.readline()
        if file.tell() != size:
            return f"it ends after {len(offsets)} lines, the file does not"
    return ""


def _write(path: Path, offsets: np.ndarray) -> None:
    """Whole or not at all; a folder that cannot be written costs the time of another scan."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "w") as file:
            file.writelines(f"{offset}\n" for offset in offsets.tolist())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        logger.warning("%s: cannot be written (%s), the offsets are kept in memory", path, error.strerror)
