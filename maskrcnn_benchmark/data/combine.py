"""Several data sets as one, each any number of times."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from maskrcnn_benchmark.data.index import first_rows


class Combined:
    """Samples of all sets by one number: first set, its copies one after the other, then the next set.

    Args:
        lengths: Of the sets.
        copies: How often each of them is there.
    """

    def __init__(self, lengths: Sequence[int], copies: Sequence[int]):
        self.lengths, self.copies = tuple(lengths), tuple(copies)
        totals = [length * copy for length, copy in zip(lengths, copies, strict=True)]
        self._first: list[int] = first_rows(totals).tolist()

    def __len__(self) -> int:
        return self._first[-1]

    def locate(self, index: int) -> tuple[int, int]:
        """(set, index in it); beyond the end it begins anew."""
        index %= len(self)
        number = bisect_right(self._first, index) - 1
        return number, (index - self._first[number]) % self.lengths[number]
