"""Pseudo boxes for many pictures: batches through the network, and results on disk as they come.

The pictures are taken in chunks of consecutive ones. A chunk is worked on as a whole, whatever was done before and
however many processes share the work, and its boxes reach the disk as a whole: a run that was killed goes on and ends
with the same bytes. What stays in memory is one chunk.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from maskrcnn_benchmark.data.box_files import BoxTable
from maskrcnn_benchmark.data.index import first_rows
from maskrcnn_benchmark.data.pictures import PictureError, Size, header_size
from maskrcnn_benchmark.engine.distributed import World
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.modeling.cam.boxes import RELEASED, BoxRule, boxes_of_map, whole_picture
from maskrcnn_benchmark.modeling.cam.maps import SCALES, ClassMaps, at_scales, padded_sizes
from maskrcnn_benchmark.structures import ImageBatch

logger = logging.getLogger(__name__)

BATCHES = 16  # of a chunk
LOOK, PATIENCE = 0.5, 2 * 3600.0  # seconds between two looks for the other processes' chunks; without a new one
FOUND, FLAT, UNREADABLE = range(3)  # what became of a picture


class Source(Protocol):
    """Pictures with a class each, such as :class:`~maskrcnn_benchmark.data.datasets.class_pictures.ClassPictures`."""

    def __len__(self) -> int: ...
    def key(self, index: int) -> str: ...
    def label(self, index: int) -> int: ...  # from 1
    def size(self, index: int) -> Size | None: ...
    def file(self, index: int) -> Path: ...
    def picture(self, index: int) -> Image.Image: ...


@dataclass(frozen=True)
class Work:
    """What is to be done.

    Attributes:
        source: The pictures.
        folder: For the chunks.
        key: Says which pictures, which network and which settings; chunks of another key do not count.
        classes: The classifier's output for each class of the pictures.
        rule: From maps to boxes.
        scales: Short sides of the network's input in pixels.
        batch: Pictures in a batch, each of them twice because of its mirror image.
        workers: Processes that read pictures; 0: this one reads.
    """

    source: Source
    folder: Path
    key: str
    classes: Sequence[int]
    rule: BoxRule = RELEASED
    scales: tuple[int, ...] = SCALES
    batch: int = 2
    workers: int = 0

    @property
    def chunks(self) -> list[range]:
        """Of pictures."""
        size = self.batch * BATCHES
        return [range(start, min(start + size, len(self.source))) for start in range(0, len(self.source), size)]

    def file(self, chunk: range) -> Path:
        """Where the boxes of a chunk are."""
        return self.folder / f"{chunk.start:09d}-{chunk.stop:09d}.safetensors"

    def done(self, chunk: range) -> bool:
        """Whether a chunk is on the disk, and of this work."""
        try:
            with safe_open(self.file(chunk), framework="np") as file:
                return (file.metadata() or {}).get("key") == self.key
        except FileNotFoundError:
            return False
        except (SafetensorError, OSError) as error:
            logger.warning("%s is damaged and is made anew (%s)", self.file(chunk), error)
            return False


@dataclass(frozen=True)
class Result:
    """Of N pictures.

    Attributes:
        table: Boxes with scores, labels from 0 and sizes (0, 0 where unknown). A picture whose map is flat has the box
            of the whole picture, one that cannot be read has none.
        flat: Numbers of the pictures with a flat map.
        unreadable: Number of a picture that cannot be read, and why.
    """

    table: BoxTable
    flat: tuple[int, ...]
    unreadable: dict[int, str]


@dataclass(frozen=True)
class _Row:
    """What was found in a picture."""

    boxes: np.ndarray
    scores: np.ndarray
    size: Size
    state: int = FOUND
    reason: str = ""


@dataclass(frozen=True)
class _Read:
    """Pictures of one padded size, and those that could not be read."""

    scales: list[ImageBatch]
    numbers: list[int]
    sizes: list[Size]
    broken: dict[int, str]


def find_boxes(work: Work, net: ClassMaps, world: World) -> None:
    """Work on this process's part of the chunks, as far as they are not done.

    Args:
        work: What is to be done.
        net: Gives the maps, on its device.
        world: Its processes share the chunks, in contiguous parts.
    """
    work.folder.mkdir(parents=True, exist_ok=True)
    every = work.chunks
    each = len(every) // world.size
    mine = every[world.rank * each : None if world.rank == world.size - 1 else (world.rank + 1) * each]
    left = [chunk for chunk in mine if not work.done(chunk)]
    total, missing = sum(map(len, mine)), sum(map(len, left))
    if missing < total:
        logger.info("%s: goes on after %d of %d pictures", work.folder, total - missing, total)
    loader = DataLoader(
        _Pictures(work.source, work.scales),
        batch_size=None,
        sampler=_Plan(work, left),
        num_workers=work.workers,
        collate_fn=_as_it_is,
    )
    batches, hidden = iter(loader), None if world.main else True
    with tqdm(total=total, initial=total - missing, unit="picture", disable=hidden, smoothing=0.05) as bar:
        for chunk in left:
            rows: dict[int, _Row] = {}
            while len(rows) < len(chunk):
                found = {number: row for read in next(batches) for number, row in _find(read, work, net).items()}
                rows.update(found)
                bar.update(len(found))
            _write(work, chunk, [rows[number] for number in chunk])


def _as_it_is(batch: list[_Read]) -> list[_Read]:
    return batch


class _Plan:
    """Batches of numbers, chunk by chunk: pictures of equal padded size together."""

    def __init__(self, work: Work, chunks: Sequence[range]):
        self.work, self.chunks = work, chunks

    def __iter__(self) -> Iterator[list[int]]:
        source, batch, scales = self.work.source, self.work.batch, self.work.scales
        for chunk in self.chunks:
            sizes = {number: source.size(number) or header_size(source.file(number)) for number in chunk}
            shapes = {number: padded_sizes(size, scales) if size else () for number, size in sizes.items()}
            for _, group in groupby(sorted(chunk, key=lambda number: (shapes[number], number)), key=shapes.get):
                numbers = list(group)
                yield from (numbers[start : start + batch] for start in range(0, len(numbers), batch))


class _Pictures(Dataset[list[_Read]]):
    """Reads a batch; several results where sizes are not what was announced."""

    def __init__(self, source: Source, scales: tuple[int, ...]):
        self.source, self.scales = source, scales

    def __getitem__(self, numbers: list[int]) -> list[_Read]:
        groups: dict[tuple[Size, ...], list[tuple[int, Image.Image]]] = {}
        broken: dict[int, str] = {}
        for number in numbers:
            try:
                picture = self.source.picture(number)
            except PictureError as error:
                broken[number] = str(error)
                continue
            shapes = padded_sizes((picture.height, picture.width), self.scales)
            groups.setdefault(shapes, []).append((number, picture))
        read = [_Read([], [], [], broken)] if broken else []
        for rows in groups.values():
            pictures = [picture for _, picture in rows]
            sizes = [(picture.height, picture.width) for picture in pictures]
            read.append(_Read(at_scales(pictures, self.scales), [number for number, _ in rows], sizes, {}))
        return read


def _find(read: _Read, work: Work, net: ClassMaps) -> dict[int, _Row]:
    """Boxes by number."""
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    rows = {
        number: _Row(*nothing, work.source.size(number) or (0, 0), UNREADABLE, reason)
        for number, reason in read.broken.items()
    }
    if not read.numbers:
        return rows
    labels = torch.tensor([work.classes[work.source.label(number) - 1] for number in read.numbers])
    maps = net(read.scales, labels)
    values = zip(maps.values.numpy(), maps.flat.tolist(), strict=True)
    for number, size, (cells, flat) in zip(read.numbers, read.sizes, values, strict=True):
        if flat:
            rows[number] = _Row(*whole_picture(size), size, FLAT)
        else:
            side = maps.stride * min(size) / work.scales[-1]
            rows[number] = _Row(*boxes_of_map(cells, size, side, work.rule), size)
    return rows


def _write(work: Work, chunk: range, rows: Sequence[_Row]) -> None:
    arrays: dict[str, np.ndarray] = {
        "count": np.array([len(row.boxes) for row in rows], dtype=np.int64),
        "size": np.array([row.size for row in rows], dtype=np.int32),
        "state": np.array([row.state for row in rows], dtype=np.uint8),
        "boxes": np.concatenate([row.boxes for row in rows]),
        "scores": np.concatenate([row.scores for row in rows]),
    }
    reasons = {number: row.reason for number, row in zip(chunk, rows, strict=True) if row.reason}
    beside = work.folder / f".{work.file(chunk).name}.{os.getpid()}"
    save_file(arrays, beside, {"key": work.key, "reasons": json.dumps(reasons)})
    os.replace(beside, work.file(chunk))


def collect(work: Work) -> Result:
    """The boxes of all chunks; waits for those that other processes work on.

    Raises:
        DataError: nothing has come from them for a long time.
    """
    _wait(work)
    every: list[dict[str, np.ndarray]] = []
    unreadable: dict[int, str] = {}
    for chunk in work.chunks:
        every.append(load_file(work.file(chunk)))
        with safe_open(work.file(chunk), framework="np") as file:
            reasons: dict[str, str] = json.loads(file.metadata()["reasons"])
        unreadable.update({int(number): reason for number, reason in reasons.items()})
    joined = {name: np.concatenate([arrays[name] for arrays in every]) for name in every[0]}
    own = np.array([work.source.label(number) - 1 for number in range(len(work.source))], dtype=np.int64)
    labels = np.repeat(own, joined["count"])
    table = BoxTable(first_rows(joined["count"]), joined["boxes"], joined["scores"], labels, joined["size"])
    return Result(table, tuple(np.flatnonzero(joined["state"] == FLAT).tolist()), unreadable)


def _wait(work: Work) -> None:
    left, latest = work.chunks, time.monotonic()
    while missing := [chunk for chunk in left if not work.done(chunk)]:
        if len(missing) < len(left):
            latest = time.monotonic()
        elif time.monotonic() - latest > PATIENCE:
            raise DataError(
                f"{work.folder}: {len(missing)} chunks are missing after {PATIENCE / 3600:g} hours without a new one: "
                "see whether the other processes still run and see this folder; run again to go on"
            )
        left = missing
        time.sleep(LOOK)


def clean(work: Work) -> None:
    """Remove the chunks, after their boxes are in a file."""
    shutil.rmtree(work.folder, ignore_errors=True)
