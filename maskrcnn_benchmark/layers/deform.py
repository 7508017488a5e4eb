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


class DeformConvBlock(nn.Module):
    """Deformable convolution that computes its own offsets, as in the stages of a deformable ResNet.

    Modulated (v2, https://arxiv.org/abs/1811.11168) or not (v1, https://arxiv.org/abs/1703.06211).

    Args:
        groups: Of the convolution.
        deformable_groups: Groups of input channels with offsets of their own.
        modulated: Whether each sample has a weight between 0 and 1 besides.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        modulated: bool = True,
    ):
        super().__init__()
        taps = deformable_groups * kernel_size**2
        self.split = (2 * taps, taps) if modulated else (2 * taps,)
        self.offset = nn.Conv2d(in_channels, sum(self.split), kernel_size, stride, padding)
        nn.init.kaiming_uniform_(self.offset.weight, a=1)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)
        self.conv = ModulatedDeformConv(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, Ho, Wo)."""
        offset, *mask = self.offset(x).split(self.split, dim=1)
        return self.conv(x, offset, mask[0].sigmoid() if mask else None)
