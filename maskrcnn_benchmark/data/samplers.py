"""Which pictures make up which batch of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch

from maskrcnn_benchmark.data.draws import rng_for
from maskrcnn_benchmark.errors import ConfigError


class Batches(Sequence[list[int]]):
    """The batches of an epoch, in the memory of two arrays; of 1.2 million pictures, lists of them take 100 MB more.

    Args:
        samples: (N,) int64, of all batches.
        ends: (steps,) int64, where each of them ends.
    """

    def __init__(self, samples: np.ndarray, ends: np.ndarray):
        self.samples, self.ends = samples, ends

    @classmethod
    def equal(cls, rows: np.ndarray) -> Batches:
        """Of (steps, batch size) samples."""
        steps, size = rows.shape
        return cls(rows.reshape(-1), size * np.arange(1, steps + 1))

    @classmethod
    def of(cls, parts: Iterable[np.ndarray]) -> Batches:
        """Of the samples (n,) of each."""
        rows = list(parts)
        return cls(
            np.concatenate([*rows, np.zeros(0, np.int64)]), np.cumsum([len(row) for row in rows], dtype=np.int64)
        )

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, place: int) -> list[int]: ...
    @overload
    def __getitem__(self, place: slice) -> Batches: ...
    def __getitem__(self, place: int | slice) -> list[int] | Batches:
        if isinstance(place, slice):
            first, end, stride = place.indices(len(self))
            if stride != 1:
                return Batches.of(self._row(step) for step in range(first, end, stride))
            before = self._begin(first)
            ends = self.ends[first:end] - before
            return Batches(self.samples[before:][: ends[-1] if len(ends) else 0], ends)
        row: list[int] = self._row(range(len(self))[place]).tolist()
        return row

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Batches):
            return np.array_equal(self.samples, other.samples) and np.array_equal(self.ends, other.ends)
        return isinstance(other, list) and list(self) == other

    __hash__ = None  # type: ignore[assignment]

    def _begin(self, step: int) -> int:
        return int(self.ends[step - 1]) if step else 0

    def _row(self, step: int) -> np.ndarray:
        return self.samples[self._begin(step) : self.ends[step]]


@dataclass(frozen=True)
class EpochSampler:
    """Shuffled batches: a pure function of seed and epoch.

    A batch is made for all processes together and then shared out, so that any number of them takes the same pictures
    in the same steps. Pictures of one group come together as far as they fill batches; what is left over of the groups
    makes mixed batches, and what is left of those, fewer than a batch, waits for another epoch.

    Attributes:
        groups: (N,) of each sample, such as "upright or not"; pictures of a group pad each other less.
        batch_size: Samples of all processes in a step.
        seed: Another one, another order.
        world: Processes.
        rank: Which of them this one is.
        parts: Into how many parts the samples are cut, in their order; an epoch is one of them, the next one the next.
    """

    groups: np.ndarray
    batch_size: int
    seed: int
    world: int = 1
    rank: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        refuse_unequal(self.batch_size, self.world)

    def __len__(self) -> int:
        """Batches of an epoch: all whole ones, at least one."""
        return max(1, len(self.groups) // self.parts // self.batch_size)

    def batches(self, epoch: int, start: int = 0) -> Batches:
        """The samples of this process in each step of an epoch, from step ``start`` on.

        When there are fewer than a batch of samples, these are repeated: sample ``i`` is then also ``i + N``,
        ``i + 2 N``, and so on, which is for its random numbers to be others.
        """
        share = self.batch_size // self.world
        return Batches.equal(self._all(epoch)[start:, self.rank * share : (self.rank + 1) * share])

    def _all(self, epoch: int) -> np.ndarray:
        """(steps, batch size) int64."""
        whole, size = len(self.groups), self.batch_size
        first, end = (whole * (epoch % self.parts + step) // self.parts for step in (0, 1))
        count = end - first
        shuffled = first + rng_for(self.seed, epoch).numpy.permutation(count)
        if count < size:
            repeats = -(-size // count)
            return (shuffled + whole * np.arange(repeats)[:, None]).reshape(-1)[:size][None]
        return in_groups(shuffled, self.groups[shuffled], size)[: len(self)]


def in_groups(samples: np.ndarray, group: np.ndarray, size: int) -> np.ndarray:
    """(N,) samples in their order -> (batches, size), of one group each as far as that fills them, then of several."""
    places = np.arange(len(samples))
    whole, left = [], []
    for name in np.unique(group):
        members = places[group == name]
        full = len(members) // size * size
        whole.append(members[:full].reshape(-1, size))
        left.append(members[full:])
    mixed = np.sort(np.concatenate(left))
    whole.append(mixed[: len(mixed) // size * size].reshape(-1, size))
    batches = np.concatenate(whole)
    return samples[batches[np.argsort(batches[:, 0])]]


@dataclass(frozen=True)
class ChunkSampler:
    """Batches as maskrcnn-benchmark makes them (https://github.com/facebookresearch/maskrcnn-benchmark).

    Each process takes the chunk of a permutation that its rank says, and makes batches of its own, of one group each;
    the last batch of a group may be smaller. An epoch of a process ends when its batches are used up, which need not be
    in the same step for all of them, and the seed of its next permutation is that step: from then on processes may take
    the same pictures. Neither ``epoch`` nor a resumed training changes what a step takes.

    Attributes:
        groups: (N,) of each sample, such as "upright or not".
        batch_size: Samples of all processes in a step.
        seed: Of the permutations; 0: the original's.
        world: Processes.
        rank: Which of them this one is.
    """

    groups: np.ndarray
    batch_size: int
    seed: int
    world: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        refuse_unequal(self.batch_size, self.world)

    def __len__(self) -> int:
        """Steps that are counted as an epoch: those that a chunk of one group would take."""
        share = self.batch_size // self.world
        return -(-self._chunk // share)

    def batches(self, epoch: int, start: int = 0) -> Batches:
        """The samples of this process in each step of an epoch, from step ``start`` on."""
        first, end = epoch * len(self) + start, (epoch + 1) * len(self)
        step, found = 0, list[np.ndarray]()
        while step < end:
            chunk = self._from(step)
            found += chunk[max(0, first - step) : end - step]
            step += len(chunk)
        return Batches.of(found)

    @property
    def _chunk(self) -> int:
        return -(-len(self.groups) // self.world)

    def _from(self, step: int) -> list[np.ndarray]:
        """All batches of the permutation that begins at a step."""
        generator = torch.Generator().manual_seed(self.seed + step)
        order = torch.randperm(len(self.groups), generator=generator).numpy()
        order = np.resize(order, self._chunk * self.world)  # filled up from its beginning
        mine = order[self._chunk * self.rank : self._chunk * (self.rank + 1)]
        share, group = self.batch_size // self.world, self.groups[mine]
        batches = []
        for name in np.unique(group):
            places = np.flatnonzero(group == name)
            batches += [places[first : first + share] for first in range(0, len(places), share)]
        batches.sort(key=lambda places: int(places[0]))
        return [mine[places] for places in batches]


SAMPLERS: dict[str, Callable[[np.ndarray, int, int], EpochSampler | ChunkSampler]] = {
    "shared": EpochSampler,
    "chunks": ChunkSampler,
}
"""``DATALOADER.SAMPLER`` -> what makes a sampler from groups, batch size and seed; see also :mod:`.set_samplers`."""


def refuse_unequal(batch_size: int, world: int) -> None:
    if batch_size % world:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {batch_size} cannot be shared by {world} processes: "
            "it must be a multiple of their number"
        )
