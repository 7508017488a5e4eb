"""Two protocols that score the same detections: what a data set is known for, and all boxes of its captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from maskrcnn_benchmark.evaluation.interface import Evaluator
from maskrcnn_benchmark.structures import Detections

BOXES = "boxes"
"""What the numbers of all boxes begin with, and the folder of their files."""


class WithBoxes:
    """An evaluator, and beside it one of all boxes, whose numbers are called "boxes/AP50" and so on.

    Args:
        evaluator: Gives the main number; it gets the detections of phrases, whose labels count from 1.
        boxes: Gets all of them.
    """

    def __init__(self, evaluator: Evaluator, boxes: Evaluator):
        self.evaluator, self.boxes = evaluator, boxes

    @property
    def main(self) -> str:
        """That of the first."""
        return self.evaluator.main

    def update(self, detections: Sequence[Detections]) -> None:
        """See :class:`Evaluator`."""
        self.evaluator.update([found[found.labels > 0] for found in detections])
        self.boxes.update(detections)

    def summary(self) -> dict[str, float]:
        """The numbers of both."""
        others = {f"{BOXES}/{name}": value for name, value in self.boxes.summary().items()}
        return {**self.evaluator.summary(), **others}

    def table(self) -> str:
        """The tables of both."""
        return f"{self.evaluator.table()}\n{self.boxes.table()}"

    def write(self, folder: Path, card: Mapping[str, object] | None = None) -> None:
        """The files of the first, with all numbers in results.json; those of the other in ``folder/boxes``."""
        numbers = self.summary()
        self.boxes.write(folder / BOXES, card)
        self.evaluator.write(folder, {**(card or {}), "metrics": numbers})
