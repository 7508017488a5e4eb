"""Several tasks as one number: the unweighted mean of their scores, as ODinW-13 and ODinW-35 are reported."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.report import table, write_files

COLUMNS = ("AP", "AP50")


@dataclass(frozen=True)
class Suite:
    """The numbers of all tasks of a suite.

    Attributes:
        results: Task -> AP and AP50, 0..1, -1 where a task has nothing to measure on.
        splits: Task -> split that its numbers are of, such as "val", "minival" or "test".
    """

    results: Mapping[str, Mapping[str, float]]
    splits: Mapping[str, str]

    @property
    def measured(self) -> list[str]:
        """The tasks that have a score, which is what means and medians are of."""
        return [task for task, numbers in self.results.items() if numbers["AP"] >= 0]

    def mean(self, column: str = "AP") -> float:
        """Unweighted: every task counts alike, however many pictures it has."""
        values = self._values(column)
        return statistics.fmean(values) if values else -1.0

    def median(self, column: str = "AP") -> float:
        values = self._values(column)
        return statistics.median(values) if values else -1.0

    def _values(self, column: str) -> list[float]:
        return [self.results[task][column] for task in self.measured]

    @property
    def notes(self) -> list[str]:
        """What a reader of the mean has to know."""
        notes = []
        if without := [task for task in self.results if task not in self.measured]:
            notes.append(
                f"mean and median of {len(self.measured)} of {len(self.results)} tasks: "
                f"nothing to measure on in {', '.join(without)}"
            )
        if len(counts := Counter(self.splits.values())) > 1:
            notes.append(f"of several splits: {', '.join(f'{split} {n}' for split, n in counts.items())}")
        return notes

    def text(self) -> str:
        """A table for people: one row a task, then mean and median; notes below it."""
        rows: list[list[object]] = [
            [task, self.splits[task], *(numbers[column] for column in COLUMNS)]
            for task, numbers in self.results.items()
        ]
        for name, number in (("mean", self.mean), ("median", self.median)):
            rows.append([name, f"{len(self.measured)} tasks", *(number(column) for column in COLUMNS)])
        return "\n".join([table(["task", "split", *COLUMNS], rows), *(f"note: {note}" for note in self.notes)])

    def as_dict(self) -> dict[str, Any]:
        """What ``summary.json`` holds, see docs/evaluation/odinw.md."""
        return {
            "tasks": [
                {"task": task, "split": self.splits[task], **{column: numbers[column] for column in COLUMNS}}
                for task, numbers in self.results.items()
            ],
            "mean": {column: self.mean(column) for column in COLUMNS},
            "median": {column: self.median(column) for column in COLUMNS},
            "counts": {"tasks": len(self.results), "measured": len(self.measured)},
            "splits": dict(Counter(self.splits.values())),
            "notes": self.notes,
        }

    def write(self, folder: str | Path) -> None:
        """``summary.json`` and ``summary.txt``, both or none."""
        summary = json.dumps(self.as_dict(), indent=2, ensure_ascii=False)
        write_files(Path(folder), {"summary.json": summary.encode(), "summary.txt": f"{self.text()}\n".encode()})


def suite(results: Mapping[str, Mapping[str, float]], splits: Mapping[str, str]) -> Suite:
    """Put the scores of tasks together.

    Args:
        results: Task -> its numbers; AP and AP50 count, others are left aside.
        splits: Every task of the suite -> split that it was evaluated on.

    Raises:
        DataError: a task has no result, or one that is not of boxes, or a result is of no task. A mean of the rest
            would be the number of another benchmark.
    """
    if not splits:
        raise DataError("a suite needs at least one task, got none")
    if missing := [task for task in splits if task not in results]:
        raise DataError(
            f"no result for {len(missing)} of {len(splits)} tasks ({', '.join(missing)}): the mean of a part is not "
            "that of the suite; evaluate them, or name only the tasks that you mean"
        )
    if unknown := [task for task in results if task not in splits]:
        raise DataError(
            f"results of {', '.join(unknown)}, which {'are' if len(unknown) > 1 else 'is'} not in the suite"
        )
    for task in splits:
        if lacking := [column for column in COLUMNS if column not in results[task]]:
            raise DataError(
                f"task {task!r} has no {' and '.join(lacking)}, only {', '.join(results[task])}: "
                "a suite is of tasks that are scored by box AP"
            )
    return Suite({task: {column: float(results[task][column]) for column in COLUMNS} for task in splits}, dict(splits))
