"""Every key there is, with its default."""

from __future__ import annotations

from maskrcnn_benchmark.config.defaults import grounding, shared
from maskrcnn_benchmark.config.node import Cfg

TRAINING_KEYS: tuple[str, ...] = (*shared.TRAINING_KEYS, *grounding.TRAINING_KEYS)
"""Keys, or groups of them, that only training reads: an evaluation need not say that it left them alone."""

KINDS: dict[str, str] = {**shared.KINDS, **grounding.KINDS}
"""Names of :mod:`~maskrcnn_benchmark.config.values` kinds for keys whose default does not tell their type."""

FREE_FORM = ("DATASETS.REGISTER",)
"""Groups whose entries a user names."""


def get_defaults() -> Cfg:
    """A new tree of defaults, not yet frozen."""
    cfg = Cfg({**shared.tree(), "MODEL": grounding.tree()})
    for key in FREE_FORM:
        group, _, name = key.rpartition(".")
        dict.__setitem__(cfg.peek(group), name, Cfg(new_allowed=True))
    cfg.__dict__["_kinds"] = KINDS
    return cfg
