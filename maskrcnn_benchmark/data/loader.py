"""From a data set to the batches of an evaluation."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from maskrcnn_benchmark.data.missing import refuse_missing
from maskrcnn_benchmark.data.pictures import PictureError, Size, header_size
from maskrcnn_benchmark.data.sample import PictureSet
from maskrcnn_benchmark.data.transforms import EvalTransform
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta
from maskrcnn_benchmark.structures.image_batch import padded_size

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Read:
    """A picture that a worker has read."""

    number: int  # in the data set
    pixels: Tensor
    meta: ImageMeta
    note: str


@dataclass(frozen=True)
class _Bad:
    """A picture that a worker could not read. An exception would come out of a worker with its traceback as text."""

    number: int
    file: str
    reason: str
    message: str


@dataclass(frozen=True)
class Loaded:
    """A batch, or the part of one whose pictures have one shape."""

    turn: int  # of the batch, in the order asked for
    numbers: tuple[int, ...]  # of the pictures in the data set
    images: ImageBatch


class _Batches(Dataset[list["_Read | _Bad"]]):
    """Reads the pictures of one batch at a time, in a worker."""

    def __init__(self, dataset: PictureSet, transform: EvalTransform):
        self.dataset, self.transform = dataset, transform

    def __getitem__(self, indices: Sequence[int]) -> list[_Read | _Bad]:
        return [self._read(index) for index in indices]

    def _read(self, index: int) -> _Read | _Bad:
        try:
            sample = self.dataset[index]
        except PictureError as error:
            return _Bad(index, error.file, error.reason, str(error))
        pixels = self.transform(sample.image)
        height, width = pixels.shape[1:]
        return _Read(index, pixels, replace(sample.meta, size=(height, width)), sample.note)


class EvalLoader:
    """Every picture once, as :class:`ImageBatch`; see :func:`eval_loader`.

    Attributes:
        plan: The pictures of each batch, by number.
        skipped: Number -> (file, reason) of the pictures left out so far, in the present or latest iteration.
    """

    def __init__(
        self,
        dataset: PictureSet,
        transform: EvalTransform,
        batch_size: int,
        workers: int,
        divisibility: int,
        mixed: bool,
        skip_bad: bool,
    ):
        self.dataset, self.transform, self.workers = dataset, transform, workers
        self.divisibility, self.mixed, self.skip_bad = divisibility, mixed, skip_bad
        self.skipped: dict[int, tuple[str, str]] = {}
        if not skip_bad:
            refuse_missing(dataset)
        self.plan = _in_order(len(dataset), batch_size) if mixed else list(self._by_shape(batch_size))

    def __len__(self) -> int:
        """How many batches are planned; pictures of another size than announced, or skipped, may change it."""
        return len(self.plan)

    def __iter__(self) -> Iterator[ImageBatch]:
        return (loaded.images for loaded in self.read(range(len(self.plan))))

    def read(self, places: Sequence[int]) -> Iterator[Loaded]:
        """The batches at some places of the plan, in the order given."""
        self.skipped.clear()
        odd: list[tuple[str, str]] = []
        for turn, items in enumerate(self._items(places)):
            good = []
            for item in items:
                if isinstance(item, _Bad):
                    self._skip(item)
                    continue
                good.append(item)
                if item.note:
                    odd.append((item.meta.file, item.note))
            yield from self._batches(turn, good)
        self._report(odd)

    def _items(self, places: Sequence[int]) -> Iterable[list[_Read | _Bad]]:
        workers = min(self.workers, len(places), processors())
        source = _Batches(self.dataset, self.transform)
        return DataLoader(
            source,
            batch_size=None,
            sampler=[self.plan[place] for place in places],
            num_workers=workers,
            collate_fn=_as_it_is,
            prefetch_factor=1 if workers else None,  # a batch may be hundreds of megabytes
        )

    def _batches(self, turn: int, items: Sequence[_Read]) -> Iterator[Loaded]:
        """One batch; several when a picture did not have the size that its batch was planned for."""
        groups: dict[Size | None, list[_Read]] = {}
        for item in items:
            shape = None if self.mixed else padded_size([item.meta.size], self.divisibility)
            groups.setdefault(shape, []).append(item)
        for group in groups.values():
            images = ImageBatch.pad([item.pixels for item in group], [item.meta for item in group], self.divisibility)
            yield Loaded(turn, tuple(item.number for item in group), images)

    def _by_shape(self, batch_size: int) -> Iterator[list[int]]:
        """Fill a batch for each padded shape in the order of the data set; what is left over comes last."""
        waiting: dict[object, list[int]] = {}
        for index in range(len(self.dataset)):
            size = self.dataset.size(index) or header_size(self.dataset.file(index))
            shape = padded_size([self.transform.size(*size)], self.divisibility) if size else f"unknown {index}"
            batch = waiting.setdefault(shape, [])
            batch.append(index)
            if len(batch) == batch_size:
                yield waiting.pop(shape)
        yield from waiting.values()

    def _skip(self, bad: _Bad) -> None:
        if not self.skip_bad:
            raise DataError(f"{bad.message}: mend or replace the file")
        self.skipped[bad.number] = (bad.file, bad.reason)

    def _report(self, odd: Sequence[tuple[str, str]]) -> None:
        total = len(self.dataset)
        if self.skipped:
            text = f"{len(self.skipped)} of {total} pictures could not be read and were left out"
            logger.warning("%s: %s", self.dataset.name, text)
        if odd:
            text = f"{len(odd)} of {total} pictures do not fit their annotations, such as {': '.join(odd[0])}"
            logger.warning("%s: %s", self.dataset.name, text)


def eval_loader(
    dataset: PictureSet,
    transform: EvalTransform,
    batch_size: int = 1,
    workers: int = 0,
    divisibility: int = 32,
    mixed: bool = False,
    on_bad_image: str = "stop",
) -> EvalLoader:
    """The pictures of a data set in batches, always in the same order.

    Backbones without a padding mask see the zeros beside a picture, so a picture's detections depend on the shape of
    its batch. Pictures therefore share one only when their padded shapes are equal; which they are is known from the
    annotations or from the headers of the files.

    Args:
        dataset: What to read.
        transform: PIL picture -> pixels.
        batch_size: Most pictures in a batch.
        workers: Processes that read ahead, a batch each, at most one a processor; 0: this process.
        divisibility: The sides of a batch are multiples of this; 0: as large as its largest picture.
        mixed: The reference's batches instead: neighbours in the data set, padded to the largest of them.
        on_bad_image: "stop" with an error, or "skip" and count in ``skipped``.

    Raises:
        DataError: pictures are missing and ``on_bad_image`` is "stop".
    """
    if on_bad_image not in ("stop", "skip"):
        raise ValueError(f"on_bad_image must be 'stop' or 'skip', got {on_bad_image!r}")
    return EvalLoader(dataset, transform, batch_size, workers, divisibility, mixed, on_bad_image == "skip")


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_order(count: int, batch_size: int) -> list[list[int]]:
    return [list(range(first, min(first + batch_size, count))) for first in range(0, count, batch_size)]


def _as_it_is(items: list[_Read | _Bad]) -> list[_Read | _Bad]:
    return items
