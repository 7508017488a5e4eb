"""Which implementation of an operator runs: a table ``operator -> backends``, fastest first.

A backend is a module that calls :func:`register` for each operator it offers when it is imported. It is imported at the
first use of any operator, and is left out without an error when it cannot be (torchvision absent, or built for another
torch). A new backend needs one line in ``_MODULES``; no caller changes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

_MODULES = ("_torchvision_ops", "_torch_ops", "_torch_nms")  # of this package
_preferred: ContextVar[str | None] = ContextVar("preferred_backend", default=None)


@dataclass(frozen=True)
class _Entry:
    name: str
    function: Callable[..., Any]
    rank: Mapping[str, int]  # device type -> place in the queue, "" for any other device

    def place(self, device: str) -> int:
        return self.rank.get(device, self.rank[""])


_table: dict[str, list[_Entry]] = {}


def register(op: str, backend: str, rank: int | Mapping[str, int]) -> Callable[[F], F]:
    """Decorator: offer a function as ``op``. The lowest ``rank`` runs; a mapping gives one per device type."""

    def add(function: F) -> F:
        ranks = {"": rank} if isinstance(rank, int) else rank
        _table.setdefault(op, []).append(_Entry(backend, function, ranks))
        return function

    return add


@cache
def _load() -> None:
    for module in _MODULES:
        try:
            importlib.import_module(f"{__package__}.{module}")
        except (ImportError, RuntimeError, OSError, AttributeError):  # a missing or broken library is no error here
            continue


def _queue(op: str, device: str) -> list[_Entry]:
    _load()
    if op not in _table:
        raise ValueError(f"no operator called {op!r}; there are {', '.join(sorted(_table))}")
    return sorted(_table[op], key=lambda entry: entry.place(device))


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


def call(op: str, device: torch.device, *args: Any) -> Any:
    """Run ``op`` with autocast off: these operators work in the precision of their inputs."""
    function = _pick(op, device.type).function
    if not torch.is_autocast_enabled(device.type):
        return function(*args)
    with torch.autocast(device.type, enabled=False):
        return function(*args)
