"""A factor that is learnt, as the levels of a pyramid have one each."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """A learnt factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale
