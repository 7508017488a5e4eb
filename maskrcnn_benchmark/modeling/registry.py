"""Names for the things that a config may choose."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import reduce
from typing import Generic, TypeVar

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names for things a config may choose. Filled at import time only; never holds state of a run."""

    def __init__(self, what: str, config_key: str):
        self.what, self.config_key = what, config_key
        self._items: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[T], T]:
        def add(item: T) -> T:
            for name in names:
                if name in self._items:
                    raise ValueError(f"{self.what} {name!r} is registered twice: {self._items[name]} and {item}")
                self._items[name] = item
            return item

        return add

    def chosen(self, cfg: Cfg) -> T:
        """What the config names.

        Raises:
            ConfigError: there is nothing of that name.
        """
        name = reduce(getattr, self.config_key.split("."), cfg)
        if name in self._items:
            return self._items[name]
        near = difflib.get_close_matches(name, self._items, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"{self.config_key} {name!r} ({cfg.source(self.config_key)}): there is no {self.what} of that name.{hint} "
            f"Choices: {', '.join(sorted(self._items))}"
        )
