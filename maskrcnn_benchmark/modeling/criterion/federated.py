"""Classes that a step is trained on, where there are too many of them or a picture is not labelled with all: those that
are there, and others by chance, common ones more often (Zhou et al., https://arxiv.org/abs/2103.07461).
"""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor


class FederatedClasses:
    """The classes of a step; see :func:`draw_classes`.

    Args:
        count: How many.

    Attributes:
        chance: (C,) float64 on the CPU, how often each class is drawn; None: nobody has told.
    """

    def __init__(self, count: int = 50) -> None:
        self.count = count
        self.chance: Tensor | None = None

    def __call__(self, present: Tensor, num_classes: int, rng: Random) -> Tensor:
        """Classes that count among ``num_classes``, when those of ``present`` are there; all alike if nobody has told.

        Raises:
            ValueError: it was told of other classes.
        """
        chance = torch.ones(num_classes, dtype=torch.float64) if self.chance is None else self.chance
        if len(chance) != num_classes:
            raise ValueError(f"{num_classes} classes, and it is known how often {len(chance)} are drawn")
        return draw_classes(present, chance, self.count, rng)


def draw_classes(present: Tensor, weights: Tensor, count: int, rng: Random) -> Tensor:
    """The classes that are there, and others up to ``count``, drawn without replacement.

    Args:
        present: (n,) int64 from 0; one may come more than once.
        weights: (C,) on the CPU, how often each class is drawn; never where it is 0.
        count: Classes wanted; more where more are there, fewer where there are not so many.
        rng: What the draw follows from.

    Returns:
        (m,) int64: first those that are there, ascending.
    """
    there = present.unique()
    chance = weights.clone()
    chance[there.cpu()] = 0
    wanted = min(count - len(there), int((chance > 0).sum()))
    if wanted <= 0:
        return there
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    others = torch.multinomial(chance, wanted, generator=generator)
    return torch.cat((there, others.to(there.device)))
