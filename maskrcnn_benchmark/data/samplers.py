"""Which pictures make up which batch of an epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskrcnn_benchmark.data.draws import rng_for
from maskrcnn_benchmark.errors import ConfigError


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
    """

    groups: np.ndarray
    batch_size: int
    seed: int
    world: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        if self.batch_size % self.world:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH {self.batch_size} cannot be shared by {self.world} processes: "
                "it must be a multiple of their number"
            )

    def __len__(self) -> int:
        """Batches of an epoch: all whole ones, at least one."""
        return max(1, len(self.groups) // self.batch_size)

    def batches(self, epoch: int, start: int = 0) -> list[list[int]]:
        """The samples of this process in each step of an epoch, from step ``start`` on.

        When there are fewer than a batch of samples, these are repeated: sample ``i`` is then also ``i + N``,
        ``i + 2 N``, and so on, which is for its random numbers to be others.
        """
        share = self.batch_size // self.world
        mine = self._all(epoch)[start:, self.rank * share : (self.rank + 1) * share]
        return mine.tolist()

    def _all(self, epoch: int) -> np.ndarray:
        """(steps, batch size) int64."""
        count, size = len(self.groups), self.batch_size
        shuffled = rng_for(self.seed, epoch).numpy.permutation(count)
        if count < size:
            repeats = -(-size // count)
            return (shuffled + count * np.arange(repeats)[:, None]).reshape(-1)[:size][None]
        places = np.arange(count)
        group = self.groups[shuffled]
        whole, left = [], []
        for name in np.unique(group):
            members = places[group == name]
            full = len(members) // size * size
            whole.append(members[:full].reshape(-1, size))
            left.append(members[full:])
        mixed = np.sort(np.concatenate(left))
        whole.append(mixed[: len(mixed) // size * size].reshape(-1, size))
        batches = np.concatenate(whole)
        return shuffled[batches[np.argsort(batches[:, 0])]]
