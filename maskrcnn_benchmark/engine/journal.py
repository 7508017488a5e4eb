"""What a training tells while it runs: a progress bar, lines in the log, ``metrics.jsonl``, boards (see ``boards.py``).

A row of ``metrics.jsonl`` holds means over the steps since the row before. What has been summed up so far is part of a
checkpoint, and rows of steps that are done again are taken out, so that a run which was interrupted has the rows of one
that was not; but for ``time``, ``seconds`` of a step, ``data_wait`` (the share of them spent waiting for data) and
``memory``, which are what was measured.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from maskrcnn_benchmark.engine.boards import Board
from maskrcnn_benchmark.engine.log import PACKAGE
from maskrcnn_benchmark.errors import DataError

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
Item = TypeVar("Item")


class Journal(AbstractContextManager["Journal"]):
    """Gathers numbers of steps and tells them.

    Args:
        folder: Where ``metrics.jsonl`` is.
        total: Steps of the training.
        every: Steps in a row.
        main: Whether this process is the one that talks.
        device: Whose memory is told.
        boards: Where scalars go too; see :func:`maskrcnn_benchmark.engine.boards.open_boards`.
    """

    def __init__(
        self, folder: Path, total: int, every: int, main: bool, device: torch.device, boards: Sequence[Board] = ()
    ) -> None:
        self.file, self.total, self.every, self.main, self.device = folder / METRICS, total, every, main, device
        self.boards = boards
        self.done, self.bad, self.bad_in_a_row = 0, 0, 0
        self._sums: dict[str, float] = {}
        self._steps = 0  # that are in the sums
        self._row = 0  # step of the last row
        self._stack = ExitStack()
        self._restart()

    def _restart(self) -> None:
        self._since, self._waited, self._timed = time.perf_counter(), 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self._sums), "steps": self._steps, "row": self._row, "bad": [self.bad, self.bad_in_a_row]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums, self._steps, self._row = dict(state["sums"]), state["steps"], state["row"]
        self.bad, self.bad_in_a_row = state["bad"]

    def begin(self, done: int) -> None:
        """Training begins, or goes on, after ``done`` steps."""
        self.done = done
        if self.main:
            trim(self.file, done)

    def __enter__(self) -> Journal:
        if self.main:
            self._stack.enter_context(logging_redirect_tqdm([logging.getLogger(PACKAGE)]))
        hidden = None if self.main else True  # None: where nobody watches a terminal
        self._bar = self._stack.enter_context(tqdm(total=self.total, initial=self.done, unit="step", disable=hidden))
        self._restart()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for board in self.boards:
            board.close()

    def take(self, batches: Iterator[Item]) -> Item:
        """The next batch; how long it was waited for is counted.

        Raises:
            DataError: a process that reads pictures has died.
        """
        start = time.perf_counter()
        try:
            return next(batches)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"a process that reads pictures has died ({str(error).splitlines()[0]}): where memory or /dev/shm is "
                "full, lower DATALOADER.NUM_WORKERS; run again to go on"
            ) from error
        finally:
            self._waited += time.perf_counter() - start

    def record(self, done: int, values: Mapping[str, float], lr: float) -> None:
        """Take in a step; one without values was left out."""
        self.done = done
        if values:
            self._steps, self.bad_in_a_row = self._steps + 1, 0
        else:
            self.bad, self.bad_in_a_row = self.bad + 1, self.bad_in_a_row + 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._timed += 1
        self._bar.update()
        if done % self.every == 0 or done == self.total:
            self._write(lr)

    def finish(self, lr: float) -> None:
        """Training has ended; where that was before its time, a row is still to be written."""
        if self._row < self.done:
            self._write(lr)

    def _write(self, lr: float) -> None:
        means = {name: value / self._steps for name, value in self._sums.items()}
        seconds = (time.perf_counter() - self._since) / max(1, self._timed)
        waited = self._waited / max(1e-9, time.perf_counter() - self._since)
        measured = {"seconds": round(seconds, 4), "data_wait": round(waited, 4), "memory": memory(self.device)}
        row: dict[str, Any] = {"step": self.done, **means, "lr": lr, "bad_steps": self.bad}
        self._sums, self._steps, self._row = {}, 0, self.done
        self._restart()
        if not self.main:
            return
        row = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
        with self.file.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps({**row, "time": round(time.time(), 3), **measured}) + "\n")
        self._bar.set_postfix({"loss": f"{means.get('loss', math.nan):.4g}", "lr": f"{lr:.3g}"})
        self._tell(means, lr, seconds, waited)
        for board in self.boards:
            for key, value in {**means, "lr": lr, **measured}.items():
                board.add_scalar(key, value, self.done)

    def _tell(self, means: Mapping[str, float], lr: float, seconds: float, waited: float) -> None:
        losses = ", ".join(f"{name.removeprefix('loss_')} {value:.4g}" for name, value in means.items())
        left = timedelta(seconds=round(seconds * (self.total - self.done)))
        bad = f", {self.bad} steps left out" if self.bad else ""
        logger.info(
            f"step {self.done} of {self.total}: {losses or 'no finite loss'}, lr {lr:.3g}{bad}; {seconds:.3g} s a step"
            f", {waited:.0%} of it waiting for data, {memory(self.device):.3g} GiB, {left} left"
        )


def trim(file: Path, done: int) -> None:
    """Take the rows of steps after ``done`` out of a ``metrics.jsonl``, and a line that was not finished."""
    if not file.is_file():
        return
    lines = file.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= done]
    if kept != lines:
        temporary = file.with_name(f".{file.name}.partial")
        temporary.write_bytes(b"".join(kept))
        os.replace(temporary, file)


def _step_of(line: bytes) -> float:
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def memory(device: torch.device) -> float:
    """GiB that this process has held at most: on its accelerator, or of the machine's memory."""
    if device.type != "cpu":
        return round(torch.get_device_module(device).max_memory_allocated(device) / 2**30, 3)
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)
