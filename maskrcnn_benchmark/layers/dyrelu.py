"""Dynamic ReLU (https://arxiv.org/abs/2003.10027), the version with two slopes and two intercepts per channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HardSigmoid(nn.Module):
    """relu6(x + 3) / 6."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu6(x + 3) / 6


class DyReLU(nn.Module):
    """max(a1 x + b1, a2 x + b2) with coefficients computed from the average of the map.

    Parameter names are the released ones: ``fc.0`` (C -> C / reduction) and ``fc.2`` (-> 4 C).
    """

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        hidden = channels // reduction
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, 4 * channels), HardSigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        centred = self.fc(x.mean((2, 3))) - 0.5
        slope1, shift1, slope2, shift2 = centred[:, :, None, None].chunk(4, dim=1)
        return torch.maximum(torch.addcmul(shift1, x, slope1 * 2 + 1), torch.addcmul(shift2, x, slope2 * 2))
