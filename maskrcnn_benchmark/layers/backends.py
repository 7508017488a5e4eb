"""Which implementation of an operator runs: a table ``operator -> backends``, fastest first.

A backend is a module that calls :func:`register` for each operator it offers when it is imported. It is imported at the
first use of any operator. One that is not installed is left out, and so, with a warning, is one that does not work here
(built for another torch, say). A new backend needs one line in ``_MODULES``; no caller changes.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch

from maskrcnn_benchmark.errors import BackendError

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger(__name__)
_MODULES = ("_csrc_ops", "_torchvision_ops", "_torch_ops", "_torch_nms", "_torch_regions")  # of this package
_preferred: ContextVar[str | None] = ContextVar("preferred_backend", default=None)


@dataclass(frozen=True)
class _Entry:
    name: str
    function: Callable[..., Any]
    rank: Mapping[str, int]  # device type -> place in the queue, "" for any other device
    usable: Callable[[str], bool]  # on a device type

    def place(self, device: str) -> int:
        return self.rank.get(device, self.rank[""])


_table: dict[str, list[_Entry]] = {}
left_out: dict[str, str] = {}  # backend -> why it was not imported


def register(
    op: str, backend: str, rank: int | Mapping[str, int], usable: Callable[[str], bool] = lambda device: True
) -> Callable[[F], F]:
    """Decorator: offer a function as ``op``.

    Args:
        rank: The lowest one runs; a mapping gives one per device type.
        usable: Is asked before the first use on each type of device.
    """

    def add(function: F) -> F:
        ranks = {"": rank} if isinstance(rank, int) else rank
        _table.setdefault(op, []).append(_Entry(backend, function, ranks, usable))
        return function

    return add


@cache
def _load() -> None:
    for module in _MODULES:
        name = module.strip("_").removesuffix("_ops")
        try:
            importlib.import_module(f"{__package__}.{module}")
        except ModuleNotFoundError as error:  # not installed
            left_out[name] = str(error)
        except (BackendError, ImportError, RuntimeError, OSError, AttributeError) as error:
            left_out[name] = str(error)
            logger.warning("operators of %s are set aside: %s", name, error)


def _queue(op: str, device: str) -> list[_Entry]:
    _load()
    if op not in _table:
        raise ValueError(f"no operator called {op!r}; there are {', '.join(sorted(_table))}")
    usable = (entry for entry in _table[op] if entry.usable(device))
    return sorted(usable, key=lambda entry: entry.place(device))


def operators() -> tuple[str, ...]:
    """Names of all operators."""
    _load()
    return tuple(sorted(_table))


def implementations(name: str, device: torch.device | str = "cpu") -> dict[str, Callable[..., Any]]:
    """Operator -> function, for the operators that a backend can run here."""
    kind = torch.device(device).type
    return {op: entry.function for op in operators() for entry in _queue(op, kind) if entry.name == name}


def available_backends(op: str, device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Names of the implementations of ``op`` that can run here, the default first."""
    return tuple(entry.name for entry in _queue(op, torch.device(device).type))


def backend(op: str, device: torch.device | str = "cpu") -> str:
    """Name of the implementation that a call of ``op`` on ``device`` uses now."""
    return _pick(op, torch.device(device).type).name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Prefer one backend inside the block; operators that it does not offer keep their own."""
    _load()
    known = sorted({entry.name for entries in _table.values() for entry in entries})
    if name not in known:
        raise ValueError(f"no backend called {name!r} here; there are {', '.join(known)}")
    token = _preferred.set(name)
    try:
        yield
    finally:
        _preferred.reset(token)


def _pick(op: str, device: str) -> _Entry:
    queue = _queue(op, device)
    preferred = _preferred.get()
    return next((entry for entry in queue if entry.name == preferred), queue[0])


@torch.compiler.assume_constant_result
def _number(op: str, device: str) -> int:
    """Which entry runs; a number, because torch.compile keeps it as a constant of the graph."""
    entry = _pick(op, device)
    return _table[op].index(entry)


def call(op: str, device: torch.device, *args: Any) -> Any:
    """Run ``op`` with autocast off: these operators work in the precision of their inputs."""
    number = _number(op, device.type)
    function = _table[op][number].function
    if not torch.is_autocast_enabled(device.type):
        return function(*args)
    with torch.autocast(device.type, enabled=False):
        return function(*args)
