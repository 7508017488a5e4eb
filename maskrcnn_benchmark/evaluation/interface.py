"""What every evaluator offers. Which one scores a data set stands in the data set's entry of the catalog."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from maskrcnn_benchmark.structures import Detections


class Evaluator(Protocol):
    """Takes what was found in each entry of a data set exactly once, then scores all of it.

    An entry is a picture, or a picture with one of its captions.

    Attributes:
        main: The number that stands for all of them, a key of :meth:`summary`.
    """

    @property
    def main(self) -> str: ...

    def update(self, detections: Sequence[Detections]) -> None:
        """Add some entries; boxes in pixels of the picture on disk.

        Raises:
            DataError: an entry is not in the data set, or has been added before.
        """
        ...

    def summary(self) -> dict[str, float]:
        """The numbers, 0..1; -1 where there is nothing to measure on.

        Raises:
            DataError: an entry of the data set has not been added.
        """
        ...

    def table(self) -> str:
        """The numbers for people."""
        ...

    def write(self, folder: Path, card: Mapping[str, object] | None = None) -> None:
        """Write the result files, all or none, and log the table; ``card`` goes into results.json."""
        ...
