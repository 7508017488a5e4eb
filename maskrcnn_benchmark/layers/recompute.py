"""Activation checkpointing: less memory for more time, with the same results."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recomputed(module: nn.Module, wanted: bool) -> Callable[..., Any]:
    """A module to be called: what is inside is computed again in the backward pass, with the same dropout.

    Where it is not ``wanted``, or nothing is learnt, the module itself.
    """
    if not (wanted and module.training and torch.is_grad_enabled()):
        return module
    context = copy_context()  # the backward pass may run elsewhere: the backends chosen here are to be those there

    def run(*args: Any) -> Any:
        return context.copy().run(module, *args)

    return partial(checkpoint, run, use_reentrant=False)
