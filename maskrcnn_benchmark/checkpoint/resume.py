"""Checkpoints of a training: written so that a crash at any moment leaves a whole one, and checked when read.

A folder holds ``model_0000040.pth`` (the state after 40 steps, in the form of released checkpoints: ``model``,
``optimizer``, ``scheduler``, ``iteration``, ...), beside each a ``.json`` with its sha256, ``model_best.pth`` and
``model_final.pth`` where there are such, and ``last_checkpoint``, a text file with the name of the newest. Each file
gets its name only when it is whole and on the disk, its ``.json`` before it, and ``last_checkpoint`` after both.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskrcnn_benchmark.checkpoint.io import file_digest
from maskrcnn_benchmark.checkpoint.unpickle import load_torch
from maskrcnn_benchmark.errors import WeightsError

logger = logging.getLogger(__name__)

POINTER = "last_checkpoint"
NUMBERED = re.compile(r"model_(\d{7,})\.pth")
PARTIAL = ".partial"


def save(
    state: Mapping[str, Any], folder: Path, step: int, *, keep: int = 0, best: bool = False, final: bool = False
) -> Path | None:
    """Write the state of a training; for one of its processes.

    Args:
        state: Tensors, numbers, text, None, and lists, tuples and dicts of them; ``model`` is a state dict.
        folder: Where the checkpoints of this training are.
        step: Steps done.
        keep: How many of the newest to keep; 0: all. The best and the final one stay.
        best: Also make it ``model_best.pth``.
        final: Also make it ``model_final.pth``.

    Returns:
        The file; None where it could not be written (the disk is full, ...): the log says so, earlier ones are whole.

    Raises:
        TypeError: the state holds something else, which could not be read again.
    """
    check_plain(state)
    path = folder / name_of(step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f".*{PARTIAL}"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        _write_checkpoint(state, path, step)
        for name in ("model_best.pth",) * best + ("model_final.pth",) * final:
            _also(path, folder / name)
        _write(folder / POINTER, lambda file: file.write_text(path.name, encoding="utf-8"))
        _prune(folder, step, keep)
    except (OSError, RuntimeError) as error:  # torch turns some errors of the disk into RuntimeError
        logger.warning("checkpoint %s could not be written (%s): earlier ones stay", path, _first_line(error))
        return None
    return path


def name_of(step: int) -> str:
    """What the checkpoint after so many steps is called."""
    return f"model_{step:07d}.pth"


def load_latest(folder: Path) -> dict[str, Any] | None:
    """The newest state in a folder that is whole; None where there has been no checkpoint.

    Damaged files are told of and passed over.

    Raises:
        WeightsError: there are checkpoints, and not one of them is whole.
    """
    path = find_latest(folder)
    return None if path is None else load_state(path)


def find_latest(folder: Path) -> Path | None:
    """The file that :func:`load_latest` reads."""
    damaged: list[str] = []
    for path in _newest_first(folder):
        problem = damage(path)
        if not problem:
            if damaged:
                logger.warning("going on from %s instead, which is whole", path)
            return path
        logger.warning("%s: %s", path, problem)
        damaged.append(path.name)
    if damaged:
        raise WeightsError(
            f"{folder}: no whole checkpoint to go on from (damaged: {', '.join(damaged)}); choose another OUTPUT_DIR, "
            "or empty this one"
        )
    return None


def load_state(path: Path) -> dict[str, Any]:
    """The state in a file, on the CPU; nothing in it is run.

    Raises:
        WeightsError: it cannot be read, or holds no training.
    """
    state = load_torch(path)
    if not isinstance(state, dict) or "iteration" not in state:
        raise WeightsError(f"{path}: holds no state of a training: give it as MODEL.WEIGHT to start from its weights")
    return state


def damage(path: Path) -> str:
    """What is wrong with a checkpoint, compared with its manifest; empty when nothing is."""
    if not path.is_file():
        return "is not there"
    try:
        manifest = json.loads(_manifest(path).read_text(encoding="utf-8"))
        size, digest = int(manifest["bytes"]), str(manifest["sha256"])
    except FileNotFoundError:
        return f"has no {_manifest(path).name} beside it to check it with"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {_manifest(path).name} cannot be read"
    if path.stat().st_size != size:
        return f"has {path.stat().st_size} bytes instead of {size}: it was cut short"
    return "" if file_digest(path) == digest else "is not what was written (its sha256 differs)"


def check_plain(value: Any, where: str = "state") -> None:
    """Refuse what a reader that runs no code cannot read.

    Raises:
        TypeError: names the place and the type.
    """
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if type(key) not in (int, str):
                raise TypeError(f"{where}: a key of type {type(key).__name__} cannot go into a checkpoint")
            check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            check_plain(item, f"{where}[{i}]")
    else:
        raise TypeError(f"{where}: a {type(value).__name__} cannot go into a checkpoint")


def _manifest(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write_checkpoint(state: Mapping[str, Any], path: Path, step: int) -> None:
    def describe(temporary: Path) -> None:
        facts = {"step": step, "bytes": temporary.stat().st_size, "sha256": file_digest(temporary)}
        _write(_manifest(path), lambda file: file.write_text(json.dumps(facts), encoding="utf-8"))

    _write(path, lambda file: torch.save(dict(state), file), describe)


def _write(path: Path, fill: Callable[[Path], object], when_whole: Callable[[Path], None] = lambda _: None) -> None:
    """Make a file: fill another one, put it on the disk, and give it the name."""
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    try:
        fill(temporary)
        _to_disk(temporary)
        when_whole(temporary)
        os.replace(temporary, path)
        _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would outlast a power cut."""
    if path.is_dir() and os.name == "nt":  # which has no such call for folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _also(path: Path, name: Path) -> None:
    """Give a checkpoint a second name: a link where the file system has them, else a copy."""

    def fill(temporary: Path) -> None:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)

    _manifest(name).unlink(missing_ok=True)  # that of the file before must not stand beside this one
    _write(name, fill)
    _write(_manifest(name), lambda file: shutil.copyfile(_manifest(path), file))


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of each checkpoint, in order."""
    found = ((NUMBERED.fullmatch(path.name), path) for path in folder.glob("model_*.pth"))
    return sorted((int(match[1]), path) for match, path in found if match)


def _newest_first(folder: Path) -> Iterator[Path]:
    pointer = folder / POINTER
    named = None
    if pointer.is_file():
        name = pointer.read_text(encoding="utf-8", errors="replace").strip()
        named = folder / Path(name).name if NUMBERED.fullmatch(Path(name).name) else None
        if named is None:
            logger.warning("%s: names %r, which is no checkpoint of a training", pointer, name[:100])
        else:
            yield named
    for _, path in reversed(_numbered(folder)):
        if path != named:
            yield path


def _prune(folder: Path, step: int, keep: int) -> None:
    """Delete all but the newest ``keep`` up to ``step``; later ones are of a training that was gone back on."""
    numbered = [path for done, path in _numbered(folder) if done <= step]
    for path in numbered[:-keep] if keep else []:
        path.unlink(missing_ok=True)
        _manifest(path).unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
