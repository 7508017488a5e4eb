"""Where scalars of a training can be looked at: TensorBoard, Weights & Biases. Both packages are optional."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from maskrcnn_benchmark.errors import ConfigError

BOARDS: Mapping[str, str] = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # name, and the package it needs


@dataclass(frozen=True)
class Run:
    """What a run is called on Weights & Biases, where that is not left to the package's own variables.

    Attributes:
        project: It belongs to.
        group: Of runs that belong together.
        name: None: that of its folder.
        config: To be shown beside it.
    """

    project: str | None = None
    group: str | None = None
    name: str | None = None
    config: Mapping[str, Any] | None = None


UNNAMED = Run()


class Board(Protocol):
    """Takes numbers and pictures of steps."""

    def add_scalar(self, key: str, value: float, step: int) -> None: ...

    def add_picture(self, key: str, picture: Image.Image, step: int) -> None: ...

    def close(self) -> None: ...


def need_boards(names: Sequence[str]) -> None:
    """To be called before any work starts.

    Raises:
        ConfigError: the package of one of the boards is not installed.
    """
    for name in names:
        _package(name)


def open_boards(names: Sequence[str], folder: Path, done: int, run: Run = UNNAMED) -> list[Board]:
    """Open boards for the run of a folder, of which ``done`` steps are done.

    Raises:
        ConfigError: a package is not installed, or Weights & Biases refuses.
    """
    return [_OPEN[name](_package(name), folder, done, run) for name in names]


def _package(name: str) -> ModuleType:
    package = BOARDS[name]
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ConfigError(
            f"--use-{name} needs the package {package}, which is not installed: pip install {package}, or "
            "leave the option out (the numbers are in metrics.jsonl too)"
        ) from None


class _Tensorboard:
    """A folder of TensorBoard."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self.add_scalar, self.close = writer.add_scalar, writer.close

    def add_picture(self, key: str, picture: Image.Image, step: int) -> None:
        self._writer.add_image(key, np.asarray(picture), step, dataformats="HWC")


def _tensorboard(package: Any, folder: Path, done: int, run: Run) -> Board:
    """In ``folder/tensorboard``; what is there of later steps no longer counts."""
    return _Tensorboard(package.SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1))


class _Wandb:
    """A run of Weights & Biases, one call for all numbers of a step."""

    def __init__(self, run: Any, package: Any) -> None:
        self._run, self._package = run, package
        self._step, self._row = 0, dict[str, Any]()

    def add_scalar(self, key: str, value: Any, step: int) -> None:
        if step != self._step:
            self._send()
        self._step = step
        self._row[key] = value

    def add_picture(self, key: str, picture: Image.Image, step: int) -> None:
        self.add_scalar(key, self._package.Image(picture), step)

    def close(self) -> None:
        self._send()
        self._run.finish()

    def _send(self) -> None:
        if self._row:
            self._run.log({**self._row, "step": self._step})
        self._row = {}


def _wandb(package: Any, folder: Path, done: int, run: Run) -> Board:
    """The package finds account, mode and what ``run`` leaves open in its own variables: ``WANDB_MODE=offline``.

    A run that goes on after an interruption goes on there too: its id is in ``folder/wandb.json``. Numbers of steps
    that are done again come twice.
    """
    file = folder / "wandb.json"
    known = json.loads(file.read_text(encoding="utf-8"))["id"] if file.is_file() and done else None
    about = {"project": run.project, "group": run.group, "config": run.config}
    given = {key: value for key, value in about.items() if value}
    try:
        opened = package.init(dir=str(folder), id=known, resume="allow", name=run.name or folder.name, **given)
    except package.Error as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ConfigError(f"--use-wandb: {reason}: log in with wandb login, or set WANDB_MODE=offline") from error
    opened.define_metric("*", step_metric="step")
    file.write_text(json.dumps({"id": opened.id}), encoding="utf-8")
    return _Wandb(opened, package)


_OPEN = {"tensorboard": _tensorboard, "wandb": _wandb}
