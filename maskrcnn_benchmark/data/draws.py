"""Random numbers of training: those of a picture depend on seed, epoch and picture, and on nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import numpy as np
import torch
from numpy.random import RandomState


@dataclass(frozen=True)
class Draws:
    """The generators that GLIP, FIBER and MDETR draw from; their streams do not change between versions."""

    python: Random
    numpy: RandomState
    torch: torch.Generator = field(default_factory=torch.Generator)


def rng_for(*key: int) -> Draws:
    """Fresh generators for a key, such as (seed, epoch, index); another key gives other numbers."""
    if not all(0 <= part < 2**32 for part in key):
        raise ValueError(f"the parts of a key must be from 0 to 2**32 - 1, got {key}")
    words = np.random.SeedSequence([len(key), *key]).generate_state(10)
    return Draws(
        Random(int.from_bytes(words[:4].tobytes(), "little")),
        RandomState(words[4:8]),
        torch.Generator().manual_seed(int.from_bytes(words[8:].tobytes(), "little")),
    )
