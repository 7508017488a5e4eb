"""Deformable convolution as a layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from maskrcnn_benchmark.layers.ops import deform_conv2d


class ModulatedDeformConv(nn.Module):
    """Deformable convolution v2 whose offsets and mask are computed by the caller (https://arxiv.org/abs/1811.11168).

    The weight is kept in channels_last memory order, in which the convolution reads it without a copy.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        super().__init__()
        self.stride, self.padding, self.dilation = stride, padding, dilation
        shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, memory_format=torch.channels_last))
        bound = 1 / math.sqrt(in_channels * kernel_size**2)
        nn.init.uniform_(self.weight, -bound, bound)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None, flat_offset: bool = False) -> Tensor:
        """(N, C, H, W), (N, G * 2 * K, Ho, Wo), (N, G * K, Ho, Wo) -> (N, O, Ho, Wo); see ``ops.deform_conv2d``."""
        return deform_conv2d(
            x,
            offset,
            mask,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            flat_offset=flat_offset,
        )
