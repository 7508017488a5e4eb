"""Chance that is the same on every machine: whole numbers from generators whose streams are promised not to change.

Python promises the stream of ``random.Random(int).random()``, numpy that of the raw numbers of its bit generators. The
methods of both on top of these have changed between versions, and floating-point functions differ between processors,
so nothing else is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")


class Dice:
    """Draws that depend on ``key`` alone.

    Args:
        key: Anything whose text tells it from others: a seed, the name of a split, the number of a picture.
    """

    def __init__(self, *key: object):
        self._key = key
        self._random = Random(_number(key)).random

    def other(self, name: str) -> Dice:
        """Dice with a stream of their own, which does not depend on what has been drawn from these."""
        return Dice(*self._key, name)

    def below(self, bound: int) -> int:
        """0, 1, ..., ``bound`` - 1."""
        return int(self._random() * bound)

    def between(self, low: int, high: int) -> int:
        """``low``, ..., ``high``, both included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        return self.below(100) < percent

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[Item], weights: Sequence[int]) -> Item:
        """An item, as often as its weight says."""
        place = self.below(sum(weights))
        for item, weight in zip(items, weights, strict=True):
            place -= weight
            if place < 0:
                return item
        raise ValueError("weights must be whole numbers, and one of them above 0")

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(len(rest))]

    def bytes(self, *shape: int) -> npt.NDArray[np.uint8]:
        """An array of bytes, all equally likely; the same again when called again."""
        count = int(np.prod(shape))
        raw = np.random.PCG64(_number((*self._key, "bytes"))).random_raw(-(-count // 8))
        return raw.astype("<u8").view(np.uint8)[:count].reshape(shape)


def _number(key: tuple[object, ...]) -> int:
    text = "/".join(map(str, key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
