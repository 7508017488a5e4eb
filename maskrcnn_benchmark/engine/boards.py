"""Where scalars of a training can be looked at: TensorBoard, Weights & Biases. Both packages are optional."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from maskrcnn_benchmark.errors import ConfigError

BOARDS: Mapping[str, str] = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # name, and the package it needs


class Board(Protocol):
    """Takes numbers of steps."""

    def add_scalar(self, key: str, value: float, step: int) -> None: ...

    def close(self) -> None: ...


def need_boards(names: Sequence[str]) -> None:
    """To be called before any work starts.

    Raises:
        ConfigError: the package of one of the boards is not installed.
    """
    for name in names:
        _package(name)


def open_boards(names: Sequence[str], folder: Path, done: int) -> list[Board]:
    """Open boards for the run of a folder, of which ``done`` steps are done.

    Raises:
        ConfigError: a package is not installed, or Weights & Biases refuses.
    """
    return [_OPEN[name](_package(name), folder, done) for name in names]


def _package(name: str) -> ModuleType:
    package = BOARDS[name]
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ConfigError(
            f"--use-{name} needs the package {package}, which is not installed: pip install {package}, or "
            "leave the option out (the numbers are in metrics.jsonl too)"
        ) from None


def _tensorboard(package: Any, folder: Path, done: int) -> Board:
    """In ``folder/tensorboard``; what is there of later steps no longer counts."""
    board: Board = package.SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
    return board


class _Wandb:
    """A run of Weights & Biases, one call for all numbers of a step."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._step, self._row = 0, dict[str, float]()

    def add_scalar(self, key: str, value: float, step: int) -> None:
        if step != self._step:
            self._send()
        self._step = step
        self._row[key] = value

    def close(self) -> None:
        self._send()
        self._run.finish()

    def _send(self) -> None:
        if self._row:
            self._run.log({**self._row, "step": self._step})
        self._row = {}


def _wandb(package: Any, folder: Path, done: int) -> Board:
    """The package finds project, account and mode in its own variables: ``WANDB_PROJECT``, ``WANDB_MODE=offline``.

    A run that goes on after an interruption goes on there too: its id is in ``folder/wandb.json``. Numbers of steps
    that are done again come twice.
    """
    file = folder / "wandb.json"
    known = json.loads(file.read_text(encoding="utf-8"))["id"] if file.is_file() and done else None
    try:
        run = package.init(dir=str(folder), id=known, resume="allow", name=folder.name)
    except package.Error as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ConfigError(f"--use-wandb: {reason}: log in with wandb login, or set WANDB_MODE=offline") from error
    run.define_metric("*", step_metric="step")
    file.write_text(json.dumps({"id": run.id}), encoding="utf-8")
    return _Wandb(run)


_OPEN = {"tensorboard": _tensorboard, "wandb": _wandb}
