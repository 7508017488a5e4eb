"""Stochastic depth (Huang et al., ECCV 2016, https://arxiv.org/abs/1603.09382)."""

from __future__ import annotations

import torch
from torch import Tensor


def drop_path(branch: Tensor, prob: float, training: bool) -> Tensor:
    """A residual branch (B, ...) without some of its pictures; those that stay are scaled by 1 / (1 - prob)."""
    if not training or prob == 0.0:
        return branch
    kept = torch.rand(len(branch), *(1,) * (branch.ndim - 1), device=branch.device) >= prob
    return branch * kept.to(branch.dtype) / (1 - prob)
