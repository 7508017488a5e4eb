"""Detections on their way from the processes that find them to the one that scores them: small files in one folder.

A run that was interrupted reads them again and goes on; several processes meet in the folder instead of in a
collective, so that nobody runs into a timeout while another one works; and none holds the detections of all pictures.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as mask_api
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor

from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.structures import Detections, ImageMeta

logger = logging.getLogger(__name__)

SOONEST, SHARE, LATEST = 5.0, 0.02, 60.0  # seconds between files: a share of the time so far, within limits
PATIENCE = 2 * 3600.0  # seconds without anything new from the other processes
LOOK, TELL = 0.5, 60.0  # seconds between two looks into the folder, and between two messages while waiting
SKIPPED = -1  # stands for the number of detections of a picture that could not be read

Piece = tuple[int, int]  # entry of the data set, and which of its prompts
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Found:
    """What one prompt found in one entry."""

    entry: int
    part: int
    detections: Detections | None  # None: the picture could not be read


class PredictionStore:
    """The detections of one evaluation.

    Args:
        folder: Where the files are; one for all processes.
        key: Says what is evaluated with which weights. Files of another key are of another run and do not count.
        rank: Of this process.
    """

    def __init__(self, folder: Path, key: str, rank: int = 0):
        self.folder, self.key, self.rank = folder, key, rank
        self._where: dict[Piece, tuple[Path, int]] = {}  # and the row in the file
        self._known: set[Path] = set()
        self._waiting: list[Found] = []
        self._start = self._written = time.monotonic()
        self._load = lru_cache(maxsize=32)(_load)
        folder.mkdir(parents=True, exist_ok=True)

    def refresh(self) -> None:
        """Take note of the files that have come since."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in self._known:
                continue
            self._known.add(path)
            try:
                with safe_open(path, framework="np") as file:
                    if (file.metadata() or {}).get("key") != self.key:
                        continue
                    pieces = zip(file.get_tensor("entry").tolist(), file.get_tensor("part").tolist(), strict=True)
            except (SafetensorError, OSError) as error:
                logger.warning("%s is damaged and does not count (%s)", path, error)
                continue
            self._where.update({piece: (path, row) for row, piece in enumerate(pieces)})

    def __contains__(self, piece: Piece) -> bool:
        return piece in self._where

    def __len__(self) -> int:
        """How many pieces have been found, by all processes."""
        return len(self._where)

    def add(self, found: Sequence[Found]) -> None:
        """Keep what belongs together; it reaches the disk as a whole, soon."""
        self._waiting += found
        now = time.monotonic()
        if now - self._written >= min(max(SOONEST, SHARE * (now - self._start)), LATEST):
            self.flush()

    def flush(self) -> None:
        """Write what has been added."""
        if self._waiting:
            name = f"{self.rank:04d}-{time.time_ns()}.safetensors"
            partial = self.folder / f".{name}.partial"
            save_file(_pack(self._waiting), partial, {"key": self.key})
            os.replace(partial, self.folder / name)
            self._waiting = []
        self._written = time.monotonic()

    def drop_others(self) -> None:
        """Remove the files of other runs."""
        self.refresh()
        mine = {path for path, _ in self._where.values()}
        strangers = [path for path in self._known if path not in mine]
        if strangers:
            logger.info("%s: %d files of another run removed", self.folder, len(strangers))
        for path in strangers:
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder."""
        self._load.cache_clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def wait(self, pieces: int, tell: Callable[[int], None]) -> None:
        """Wait until all processes have delivered.

        Raises:
            DataError: nothing has come for a long time.
        """
        latest = told = time.monotonic()
        count = -1
        while True:
            self.refresh()
            now = time.monotonic()
            if len(self) != count:
                count, latest = len(self), now
            if count >= pieces:
                return
            if now - latest > PATIENCE:
                raise DataError(
                    f"{self.folder}: {count} of {pieces} results after {PATIENCE / 3600:g} hours without a new one: "
                    "see whether the other processes still run, and whether OUTPUT_DIR is one folder for all of them"
                )
            if now - told > TELL:
                tell(count)
                told = now
            time.sleep(LOOK)

    def read(self, entry: int, parts: int, meta: Callable[[tuple[int, int]], ImageMeta]) -> Detections | None:
        """What all prompts found in an entry, best first; None where its picture could not be read.

        Args:
            entry: Which one.
            parts: How many prompts it was asked.
            meta: (h, w) of the picture on disk -> what else is known about it.
        """
        found = []
        for part in range(parts):
            path, row = self._where[entry, part]
            arrays, first, masks = self._load(path)
            if arrays["count"][row] == SKIPPED:
                return None
            about = meta((int(arrays["size"][row, 0]), int(arrays["size"][row, 1])))
            found.append(_unpack(arrays, slice(int(first[row]), int(first[row + 1])), masks, about))
        return Detections.cat(found)


def _pack(found: Sequence[Found]) -> Arrays:
    good = [item.detections for item in found if item.detections is not None]
    sizes = [(0, 0) if item.detections is None else item.detections.meta.orig_size for item in found]
    counts = [SKIPPED if item.detections is None else len(item.detections) for item in found]
    arrays: Arrays = {
        "entry": np.array([item.entry for item in found], dtype=np.int64),
        "part": np.array([item.part for item in found], dtype=np.int32),
        "count": np.array(counts, dtype=np.int32),
        "size": np.array(sizes, dtype=np.int32),
        "boxes": _joined([item.boxes for item in good], (4,), torch.float32),
        "scores": _joined([item.scores for item in good], (), torch.float32),
        "labels": _joined([item.labels for item in good], (), torch.int64),
    }
    masks = [mask for item in good for mask in _encoded(item)]
    if masks:
        arrays["mask_bytes"] = np.frombuffer(b"".join(masks), dtype=np.uint8)
        arrays["mask_length"] = np.array([len(mask) for mask in masks], dtype=np.int64)
    return arrays


def _joined(parts: Sequence[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> np.ndarray:
    joined: np.ndarray = torch.cat([torch.zeros(0, *shape, dtype=dtype), *parts]).numpy()
    return joined


def _encoded(found: Detections) -> Iterator[bytes]:
    """Masks in COCO's run-length encoding."""
    for mask in found.masks if found.masks is not None else ():
        yield mask_api.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))["counts"]


def _load(path: Path) -> tuple[Arrays, np.ndarray, list[bytes] | None]:
    """The arrays of a file, the first detection of each row, and the masks."""
    arrays = load_file(path)
    first = np.concatenate([[0], np.cumsum(np.maximum(arrays["count"], 0))])
    if "mask_bytes" not in arrays:
        return arrays, first, None
    ends = np.concatenate([[0], np.cumsum(arrays["mask_length"])])
    data = arrays["mask_bytes"].tobytes()
    return arrays, first, [data[begin:end] for begin, end in pairwise(ends)]


def _unpack(arrays: Arrays, rows: slice, masks: list[bytes] | None, meta: ImageMeta) -> Detections:
    boxes, scores, labels = (torch.from_numpy(arrays[name][rows].copy()) for name in ("boxes", "scores", "labels"))
    if masks is None:
        return Detections(boxes, scores, labels, meta)
    height, width = meta.orig_size
    drawn = [mask_api.decode([{"size": [height, width], "counts": counts}])[..., 0] for counts in masks[rows]]
    stack = np.stack(drawn).astype(bool) if drawn else np.zeros((0, height, width), dtype=bool)
    return Detections(boxes, scores, labels, meta, masks=torch.from_numpy(stack))


def key_of(facts: object) -> str:
    """A short name for what is evaluated: equal facts have equal names."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
