"""DyHead blocks: attention over scale, space and channel (Dai et al., CVPR 2021), as GLIP and FIBER train them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_benchmark.layers.deform import ModulatedDeformConv
from maskrcnn_benchmark.layers.dyrelu import DyReLU

COARSER, SAME, FINER = range(3)  # places in the list of convolutions, as released checkpoints number them
TAPS = 9  # of a 3x3 kernel: 18 channels of offsets (dy, dx per tap), then 9 of modulation


class NormedDeformConv(nn.Module):
    """Modulated deformable 3x3 convolution and GroupNorm."""

    def __init__(self, channels: int, stride: int, norm_groups: int):
        super().__init__()
        self.conv = ModulatedDeformConv(channels, channels, 3, stride=stride, padding=1)
        self.bn = nn.GroupNorm(norm_groups, channels)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor, flat_offset: bool = False) -> Tensor:
        return self.bn(self.conv(x, offset, mask, flat_offset=flat_offset))


class DyConv(nn.Module):
    """One block: every level becomes a weighted mean of itself and its neighbours, then goes through DyReLU.

    Offsets and modulation are computed on the level that is being made and serve all its branches. The branch from
    the coarser level therefore gets offsets of a larger map; the operator that the released weights were trained with
    reads them as flat memory with the strides of the coarse map, which ``flat_offset`` repeats.
    """

    def __init__(self, channels: int, norm_groups: int = 16):
        super().__init__()
        strides = {COARSER: 1, SAME: 1, FINER: 2}
        self.DyConv = nn.ModuleList(NormedDeformConv(channels, strides[i], norm_groups) for i in range(3))
        gate = nn.Conv2d(channels, 1, 1)
        nn.init.normal_(gate.weight, std=0.01)
        assert gate.bias is not None
        nn.init.zeros_(gate.bias)
        self.AttnConv = nn.Sequential(nn.AdaptiveAvgPool2d(1), gate, nn.ReLU(inplace=True))
        self.relu = DyReLU(channels)
        self.offset = nn.Conv2d(channels, 3 * TAPS, 3, padding=1)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Levels from fine to coarse, each (B, C, H_l, W_l), to levels of the same shapes."""
        return [self.relu(self._blend(self._branches(features, level))) for level in range(len(features))]

    def _branches(self, features: Sequence[Tensor], level: int) -> list[Tensor]:
        """What a level and its neighbours contribute to it, each (B, C, H_l, W_l)."""
        here = features[level]
        offset, modulation = self.offset(here).split((2 * TAPS, TAPS), dim=1)
        mask = modulation.sigmoid()
        branches = [self.DyConv[SAME](here, offset, mask)]
        if level > 0:
            branches.append(self.DyConv[FINER](features[level - 1], offset, mask))
        if level + 1 < len(features):
            coarse = self.DyConv[COARSER](features[level + 1], offset, mask, flat_offset=True)
            branches.append(F.interpolate(coarse, size=here.shape[-2:], mode="bilinear", align_corners=True))
        return branches

    def _blend(self, branches: Sequence[Tensor]) -> Tensor:
        """Mean of the branches, each weighted by a gate in [0.5, 1] that looks at its global average."""
        total = torch.zeros_like(branches[0])
        for branch in branches:
            gate = F.hardsigmoid(self.AttnConv(branch))  # relu6(x + 3) / 6
            total = torch.addcmul(total, branch, gate)
        return total / len(branches)
