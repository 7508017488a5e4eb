"""Parsed annotations as flat arrays on disk: every process maps the same pages, and a second start takes seconds.

An index is a folder of ``.npy`` files below ``$MB_CACHE`` (default: ``maskrcnn_benchmark`` in the user's cache folder;
``MB_CACHE=off``: none). It holds for the sizes and times of its sources and for the version of the code that made it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

try:
    import fcntl
except ImportError:  # not POSIX: processes that start together each build, and the last one wins
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

FORMAT = 1
ABOUT = "about.json"

Arrays = dict[str, np.ndarray]


class Index(Mapping[str, np.ndarray]):
    """Named arrays. One that lies on disk is pickled as its folder, so that a worker maps it anew."""

    def __init__(self, arrays: Mapping[str, np.ndarray] | None = None, folder: Path | None = None):
        self.folder = folder
        self._arrays = _load(folder) if folder is not None else dict(arrays or {})

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Index, (None, self.folder)) if self.folder else (Index, (self._arrays,))

    def text(self, name: str, row: int) -> str:
        """Row of a column of texts that :func:`pack` made."""
        first = self._arrays[f"{name}.first"]
        return bytes(self._arrays[name][first[row] : first[row + 1]]).decode()

    def texts(self, name: str) -> list[str]:
        return [self.text(name, row) for row in range(len(self._arrays[f"{name}.first"]) - 1)]

    def value(self, name: str) -> Any:
        """What :func:`pack_value` stored."""
        return json.loads(bytes(self._arrays[name]))


def pack(name: str, texts: Sequence[str]) -> Arrays:
    """A column of texts as two arrays, for :meth:`Index.text`."""
    rows = [text.encode() for text in texts]
    first = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=first[1:])
    return {name: np.frombuffer(b"".join(rows), dtype=np.uint8), f"{name}.first": first}


def pack_value(name: str, value: object) -> Arrays:
    """Anything small that JSON can hold, for :meth:`Index.value`."""
    return {name: np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)}


def first_rows(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """(N,) counts -> (N + 1,) int64: rows of group i are ``first[i]`` to ``first[i + 1]``."""
    first = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=first[1:])
    return first


def cached(kind: str, sources: Sequence[Path], version: int, build: Callable[[], Arrays]) -> Index:
    """The index of some files: from the cache, or built now and put there.

    Args:
        kind: What makes it, such as "coco".
        sources: All files that it depends on; the first one gives its name.
        version: To be raised when ``build`` gives other arrays than before.
        build: Reads the files. Of processes on one machine that ask at a time, one builds and the others wait.
    """
    root = cache_folder()
    if root is None:
        return Index(build())
    name = f"{kind}-{sources[0].stem[:40]}-{_digest([kind, *(str(path.resolve()) for path in sources)])}"
    folder = root / f"{name}-{_digest(_stamp(sources, version))}"
    if (found := _open(folder)) is not None:
        return found
    try:
        root.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(root / f"{name}.lock", sources[0]):
            if (found := _open(folder)) is not None:
                return found
            start = time.perf_counter()
            arrays = build()
            _publish(folder, arrays, name)
            logger.info("%s: indexed in %.1f s, into %s", sources[0], time.perf_counter() - start, folder)
    except OSError as error:
        logger.warning("%s: no index is kept, %s (set MB_CACHE to a folder that can be written)", sources[0], error)
        return Index(build())
    return _open(folder) or Index(arrays)


def cache_folder() -> Path | None:
    """Where indices lie; None: nowhere."""
    given = os.environ.get("MB_CACHE")
    if given is None:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskrcnn_benchmark"
    return None if given in ("", "0", "off") else Path(given).expanduser()


def _stamp(sources: Sequence[Path], version: int) -> list[Any]:
    """What an index holds for."""
    states = [path.stat() for path in sources]
    return [FORMAT, version, [[state.st_size, state.st_mtime_ns] for state in states]]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _open(folder: Path) -> Index | None:
    """The index in a folder; None when there is none, or none that can be read."""
    if not (folder / ABOUT).is_file():
        return None
    try:
        return Index(folder=folder)
    except (OSError, ValueError) as error:
        logger.warning("%s: damaged (%s), built again", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _load(folder: Path) -> Arrays:
    names = json.loads((folder / ABOUT).read_text())["arrays"]
    arrays = {}
    for name, (dtype, shape) in names.items():
        file = folder / f"{name}.npy"
        if np.prod(shape):
            arrays[name] = np.asarray(np.load(file, mmap_mode="r"))  # the same pages; a memmap is slow to slice
        else:
            arrays[name] = np.load(file)  # an empty file cannot be mapped
        if str(arrays[name].dtype) != dtype or list(arrays[name].shape) != shape:
            raise ValueError(f"{name}.npy is not the array that {ABOUT} tells of")
    return arrays


def _publish(folder: Path, arrays: Arrays, name: str) -> None:
    """Write beside, then rename: what has the name is complete. What older files or killed processes left goes."""
    root = folder.parent
    for old in (*root.glob(f"{glob.escape(name)}-*"), *root.glob(f".{glob.escape(name)}-*")):
        shutil.rmtree(old, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    try:
        for key, array in arrays.items():
            with open(beside / f"{key}.npy", "wb") as file:
                np.save(file, array, allow_pickle=False)
                _sync(file)
        with open(beside / ABOUT, "w") as file:
            json.dump({"arrays": {key: (str(array.dtype), array.shape) for key, array in arrays.items()}}, file)
            _sync(file)
        os.replace(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def one_at_a_time(path: Path, source: Path) -> Iterator[None]:
    """Held by one process at a time, as a lock on a file; it goes with its process. ``source``: for the log."""
    with open(path, "w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                logger.info("%s: another process works on it, waiting", source)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
