"""A few pictures of each class, chosen as GLIP and FIBER do (https://github.com/microsoft/FIBER)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from random import Random


def pick(classes: Sequence[Collection[int]], shots: int, seed: int = 0) -> list[int]:
    """Walk through the pictures and keep each one that has a class of which too few are there yet.

    A class is counted once per picture, whatever the number of its boxes, and in every picture that is kept: there may
    be more than ``shots`` pictures of a class, and fewer when the data have no more.

    Args:
        classes: Of each picture, by any numbers.
        shots: Pictures wanted of each class; 0: all pictures, as they are.
        seed: Shuffles the pictures before the walk; 0: their own order.

    Returns:
        Indices of the pictures kept, in the order of the walk.
    """
    order = list(range(len(classes)))
    if shots == 0:
        return order
    if seed != 0:
        Random(seed).shuffle(order)
    seen: Counter[int] = Counter()
    kept = []
    for index in order:
        present = set(classes[index])
        if any(seen[name] < shots for name in present):
            kept.append(index)
            seen.update(present)
    return kept
