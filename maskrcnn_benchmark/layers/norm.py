"""Normalisation layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics and a fixed affine part: four buffers, nothing to learn.

    Computed in float32 at least, also under autocast; the result has the type of the input.

    Args:
        channels: Of the map.
        eps: Added to the variance: 0 in maskrcnn-benchmark, 1e-5 in torchvision and detectron2.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 0.0) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        with torch.autocast(x.device.type, enabled=False):
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            full = x.to(torch.promote_types(x.dtype, scale.dtype))
            return torch.addcmul(shift[:, None, None], full, scale[:, None, None]).to(x.dtype)
