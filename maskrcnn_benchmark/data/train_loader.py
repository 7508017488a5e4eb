"""Batches for training, read by any number of workers: which they are does not depend on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from maskrcnn_benchmark.data.collate import Item, Note, collate
from maskrcnn_benchmark.data.draws import rng_for
from maskrcnn_benchmark.data.loader import processors
from maskrcnn_benchmark.data.pictures import PictureError
from maskrcnn_benchmark.data.set_samplers import BatchSampler
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.modeling.interface import Batch

logger = logging.getLogger(__name__)

Step = tuple[int, int, list[int]]  # epoch, step in it, samples of this process


class ItemSource:
    """What gives the samples of an epoch by number."""

    seed: int
    divisibility: int

    def item(self, epoch: int, index: int) -> Item:
        raise NotImplementedError


@dataclass(frozen=True)
class _Read:
    """A batch that a worker has read, and what is odd about its pictures."""

    batch: Batch
    notes: tuple[Note, ...]

    def pin_memory(self, device: object = None) -> _Read:
        """With its pixels, which are nearly all of it, where a GPU fetches them while it computes."""
        images = self.batch.images
        pinned = replace(images, pixels=images.pixels.pin_memory())
        return replace(self, batch=replace(self.batch, images=pinned))


@dataclass(frozen=True)
class _Bad:
    """A picture that a worker could not read. An exception would come out of a worker with its traceback as text."""

    message: str


class _Steps(Dataset["_Read | _Bad"]):
    """Reads the batch of a step, in a worker."""

    def __init__(self, source: ItemSource, rank: int):
        self.source, self.rank = source, rank

    def __getitem__(self, step: Step) -> _Read | _Bad:
        epoch, number, indices = step
        try:
            items = [self.source.item(epoch, index) for index in indices]
        except PictureError as error:
            return _Bad(str(error))
        rng = rng_for(self.source.seed, epoch, number, self.rank).python
        batch = replace(collate(items, self.source.divisibility), rng=rng)
        return _Read(batch, tuple(note for item in items for note in item.notes))


class TrainLoader:
    """The batches of an epoch, or of all epochs from one on, for one process.

    The first batch is that of step ``start`` of ``epoch``. Workers stay from epoch to epoch. Pixels are uint8: see
    :meth:`TrainingData.prepare`.

    Args:
        source: Gives the samples.
        sampler: Says which.
        workers: Processes that read ahead, a batch each, at most one a processor; 0: this process.
        epoch: From 0.
        start: Steps of that epoch to leave out.
        endless: Go on with the next epochs.
        pin: Keep pixels in memory that a GPU can read by itself.
    """

    def __init__(
        self,
        source: ItemSource,
        sampler: BatchSampler,
        workers: int,
        epoch: int,
        start: int = 0,
        endless: bool = False,
        pin: bool = False,
    ):
        self.source, self.sampler, self.workers = source, sampler, workers
        self.epoch, self.start, self.endless, self.pin = epoch, start, endless, pin

    def __len__(self) -> int:
        """Batches that are left of the first epoch."""
        return max(0, len(self.sampler) - self.start)

    def __iter__(self) -> Iterator[Batch]:
        notes: dict[str, list[str]] = {}
        workers = min(self.workers, processors())
        loader = DataLoader(
            _Steps(self.source, self.sampler.rank),
            batch_size=None,
            sampler=_Plan(self._steps),
            num_workers=workers,
            collate_fn=_as_it_is,
            prefetch_factor=2 if workers else None,
            pin_memory=self.pin,
            generator=torch.Generator(),  # torch's own draws would otherwise come from the stream that dropout uses
        )
        left = len(self) or len(self.sampler)
        try:
            for read in loader:
                if isinstance(read, _Bad):
                    raise DataError(f"{read.message}: mend or replace the file, or take it out of the annotations")
                for note in read.notes:
                    notes.setdefault(note.what, []).append(note.example)
                left -= 1
                if not left:
                    self._report(notes)
                    left = len(self.sampler)
                yield read.batch
        finally:
            self._report(notes)  # of an epoch that was not ended

    def _steps(self) -> Iterator[Step]:
        start = self.start
        for epoch in count(self.epoch) if self.endless else (self.epoch,):
            for number, indices in enumerate(self.sampler.batches(epoch, start), start):
                yield epoch, number, indices
            start = 0

    @staticmethod
    def _report(notes: dict[str, list[str]]) -> None:
        for what, examples in notes.items():
            logger.warning("%s: %d in this epoch, such as %s", what, len(examples), examples[0])
        notes.clear()


class _Plan(Sampler[Step]):
    """Steps as a sampler, whose length nobody needs to know."""

    def __init__(self, steps: Callable[[], Iterator[Step]]):
        self._steps = steps

    def __iter__(self) -> Iterator[Step]:
        return self._steps()


def _as_it_is(read: Any) -> Any:
    return read
