"""Samplers that heed what is in a picture and which set it is from: rare classes more often, sets in proportion.

As in detectron2 (https://github.com/facebookresearch/detectron2) and Detic (https://github.com/facebookresearch/Detic).
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch

from maskrcnn_benchmark.data.draws import rng_for
from maskrcnn_benchmark.data.samplers import Batches, ChunkSampler, EpochSampler, in_groups, refuse_unequal

AT_ONCE = 4096  # draws that are Python's numbers


def repeat_factors(classes: Sequence[np.ndarray], threshold: float) -> np.ndarray:
    """(N,) float64, how often each picture is to be seen; at least once.

    A class that the share f of the pictures has gets max(1, sqrt(threshold / f)), a picture the largest of its classes.

    Args:
        classes: Of each picture; a class may be there several times, and counts once.
        threshold: Classes with a smaller share are seen more often.
    """
    distinct = [np.unique(row) for row in classes]
    count = Counter(np.concatenate(distinct).tolist()) if distinct else Counter()
    factor = {name: max(1.0, (threshold * len(classes) / number) ** 0.5) for name, number in count.items()}
    return np.array([max((factor[name] for name in row.tolist()), default=1.0) for row in distinct])


def set_weights(factors: Sequence[np.ndarray | None], lengths: Sequence[int], ratio: Sequence[float]) -> torch.Tensor:
    """(N,) float32, how likely each picture of all sets is drawn; of a set all together, in proportion to its ratio.

    Args:
        factors: Per set, of its pictures, see :func:`repeat_factors`; None: all alike.
        lengths: Of the sets.
        ratio: Of each set.
    """
    total, largest = sum(ratio), max(lengths)
    parts = []
    for factor, length, share in zip(factors, lengths, ratio, strict=True):
        rows = torch.ones(length) if factor is None else torch.tensor(factor, dtype=torch.float32)
        rows = rows * (length / rows.sum())
        parts.append(rows * (largest / length * share / total))
    return torch.cat(parts)


@dataclass(frozen=True)
class RepeatFactorSampler:
    """Shuffled batches in which pictures with rare classes come several times.

    How often a picture is in an epoch is its factor, rounded up or down by chance. Batches are made as those of
    :class:`EpochSampler`, all epochs have the same number of them.

    Attributes:
        groups: (N,) of each sample, such as "upright or not".
        batch_size: Samples of all processes in a step.
        seed: Another one, another order.
        factors: (N,) of each sample.
        world: Processes.
        rank: Which of them this one is.
    """

    groups: np.ndarray
    batch_size: int
    seed: int
    factors: np.ndarray
    world: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        refuse_unequal(self.batch_size, self.world)

    def __len__(self) -> int:
        """Batches of an epoch: as many as the factors together fill, at least one."""
        return max(1, int(self.factors.sum()) // self.batch_size)

    def batches(self, epoch: int, start: int = 0) -> Batches:
        """The samples of this process in each step of an epoch, from step ``start`` on.

        Sample ``i`` is ``i + N`` when it comes again, ``i + 2 N`` the time after, and so on, which is for its random
        numbers to be others.
        """
        rng, count = rng_for(self.seed, epoch).numpy, len(self.groups)
        whole = np.floor(self.factors).astype(np.int64)
        times = whole + (rng.rand(count) < self.factors - whole)
        samples = np.repeat(np.arange(count), times)
        again = np.arange(len(samples)) - np.repeat(np.cumsum(times) - times, times)
        samples = rng.permutation(samples + count * again)
        wanted = len(self) * self.batch_size
        while len(samples) < wanted:
            samples = np.concatenate((samples, samples + count * (1 + int(samples.max()) // count)))
        samples = samples[:wanted]
        share = self.batch_size // self.world
        made = in_groups(samples, self.groups[samples % count], self.batch_size)
        return Batches.equal(made[start:, self.rank * share : (self.rank + 1) * share])


def drawn(weights: torch.Tensor, seed: int) -> Iterator[int]:
    """Pictures by number without end, each draw independent of all others."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for some in torch.multinomial(weights, len(weights), replacement=True, generator=generator).split(AT_ONCE):
            yield from some.tolist()


def bucketed(
    samples: Iterator[int], sources: np.ndarray, wide: np.ndarray, sizes: Sequence[int]
) -> Iterator[list[int]]:
    """Batches of one set and one shape each: a batch comes when its bucket is full.

    Args:
        samples: By number, without end.
        sources: (N,) which set a sample is of.
        wide: (N,) bool, wider than high.
        sizes: Of a batch of each set.
    """
    buckets: dict[tuple[int, bool], list[int]] = {}
    for sample in samples:
        source = int(sources[sample])
        key = source, bool(wide[sample])
        bucket = buckets.setdefault(key, [])
        bucket.append(sample)
        if len(bucket) == sizes[source]:
            yield buckets.pop(key)


@dataclass(frozen=True)
class MultiSetSampler:
    """Batches of one set each, sets in proportion, with batch sizes of their own.

    One stream of draws for all processes; each takes every ``world``-th, and fills its own batches, so that in a step
    one process may have pictures of one set and another of another. What a step takes does not depend on where an
    epoch begins, nor on interruptions.

    Attributes:
        weights: (N,) float32 of each sample, see :func:`set_weights`.
        sources: (N,) which set it is of.
        wide: (N,) bool, wider than high.
        sizes: Samples of a process in a batch of each set.
        seed: Another one, another order.
        shared: ``sizes`` are of all processes together instead.
        world: Processes.
        rank: Which of them this one is.
    """

    weights: torch.Tensor
    sources: np.ndarray
    wide: np.ndarray
    sizes: tuple[int, ...]
    seed: int
    shared: bool = False
    world: int = 1
    rank: int = 0
    _ahead: dict[int, Iterator[list[int]]] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.shared:
            refuse_unequal(self.sizes[0], self.world)

    @property
    def own_sizes(self) -> tuple[int, ...]:
        """Samples of this process in a batch of each set."""
        return tuple(size // self.world for size in self.sizes) if self.shared else self.sizes

    def __len__(self) -> int:
        """Steps that are counted as an epoch: those that take as many samples as there are, on average."""
        share = np.bincount(self.sources, self.weights.numpy(), minlength=len(self.sizes))
        steps = (share / share.sum() / np.array(self.own_sizes)).sum() * len(self.sources) / self.world
        return max(1, round(float(steps)))

    def batches(self, epoch: int, start: int = 0) -> Batches:
        """The samples of this process in each step of an epoch, from step ``start`` on.

        Sample ``i`` is ``i + N`` when it comes again in the epoch, ``i + 2 N`` the time after, and so on, which is for
        its random numbers to be others; several processes take such numbers in turn.
        """
        first, count = epoch * len(self), len(self.sources)
        stream = self._ahead.pop(first, None) or islice(self._stream(), first, None)
        samples, ends = array("q"), array("q")
        for batch in islice(stream, len(self)):
            samples.extend(batch)
            ends.append(len(samples))
        self._ahead[first + len(self)] = stream
        drawn_ones = np.array(samples)
        again = times_before(drawn_ones) * self.world + self.rank
        return Batches(drawn_ones + count * again, np.array(ends))[start:]

    def _stream(self) -> Iterator[list[int]]:
        mine = islice(drawn(self.weights, self.seed), self.rank, None, self.world)
        return bucketed(mine, self.sources, self.wide, self.own_sizes)


def times_before(values: np.ndarray) -> np.ndarray:
    """(N,) int64, how often each of N values has come before."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    begins = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))[: len(values)]
    found = np.empty(len(values), np.int64)
    found[order] = np.arange(len(values)) - np.repeat(begins, np.diff(begins, append=len(values)))
    return found


BatchSampler = EpochSampler | ChunkSampler | RepeatFactorSampler | MultiSetSampler


def for_process(sampler: BatchSampler, world: int, rank: int) -> BatchSampler:
    """The same sampler for one of several processes.

    Raises:
        ConfigError: the batch cannot be shared by so many.
    """
    return replace(sampler, world=world, rank=rank)
