"""Every key there is, with its default."""

from __future__ import annotations

from typing import Any

from maskrcnn_benchmark.config.defaults import decola, grounding, mdetr, rcnn, shared
from maskrcnn_benchmark.config.node import Cfg

TRAINING_KEYS: tuple[str, ...] = (
    *shared.TRAINING_KEYS,
    *grounding.TRAINING_KEYS,
    *mdetr.TRAINING_KEYS,
    *decola.TRAINING_KEYS,
)
"""Keys, or groups of them, that only training reads: an evaluation need not say that it left them alone."""

KINDS: dict[str, str] = {**shared.KINDS, **grounding.KINDS, **decola.KINDS}
"""Names of :mod:`~maskrcnn_benchmark.config.values` kinds for keys whose default does not tell their type."""

FREE_FORM = ("DATASETS.REGISTER",)
"""Groups whose entries a user names."""

NOT_OF: dict[str, tuple[str, ...]] = {
    "GeneralizedVLRCNN": (*rcnn.LIVE, *decola.LIVE),
    **dict.fromkeys(("GeneralizedRCNN", "MDETR", "MDETR_SEGM"), decola.LIVE),
    **dict.fromkeys(decola.ARCHITECTURES, ("MODEL.RESNETS", "MODEL.RPN", "MODEL.RETINANET", "MODEL.RETINANET_ON")),
}
"""Keys, or groups of them, that nothing of a ``MODEL.META_ARCHITECTURE`` reads; its released files set some of them."""

DEFAULTS_OF: dict[str, dict[str, object]] = decola.DEFAULTS_OF
"""Defaults of a ``MODEL.META_ARCHITECTURE`` that are not those of the others."""


def get_defaults() -> Cfg:
    """A new tree of defaults, not yet frozen."""
    model = _together(_together(grounding.tree(), rcnn.tree()), mdetr.tree())
    cfg = Cfg(_together({**shared.tree(), "MODEL": model}, decola.tree()))
    for key in FREE_FORM:
        group, _, name = key.rpartition(".")
        dict.__setitem__(cfg.peek(group), name, Cfg(new_allowed=True))
    cfg.__dict__["_kinds"] = KINDS
    return cfg


def _together(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two trees as one; a group may have keys from both, a key only one default."""
    both = [name for name in second if name in first]
    if twice := [name for name in both if not (isinstance(first[name], dict) and isinstance(second[name], dict))]:
        raise ValueError(f"keys with two defaults: {', '.join(twice)}")
    return {**first, **second, **{name: _together(first[name], second[name]) for name in both}}
