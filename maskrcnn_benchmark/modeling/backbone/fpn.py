"""Feature pyramid (Lin et al., CVPR 2017) with the extra levels of RetinaNet or Faster R-CNN.

Names are those of maskrcnn-benchmark, GLIP and FIBER.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TopBlocks(nn.Module):
    """P6 and P7 of RetinaNet, from P5 or C5 (``in_channels``)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.p6 = _conv(in_channels, channels, 3, stride=2)
        self.p7 = _conv(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        p6 = self.p6(x)
        return [p6, self.p7(F.relu(p6))]


class MaxPoolTop(nn.Module):
    """P6 of Faster R-CNN: every other value of P5."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.max_pool2d(x, 1, stride=2)]


Top = Literal["P6P7", "P6P7 of C5", "max pool"]


class FPN(nn.Module):
    """From C3, C4, C5 (or C2 to C5) to maps of one width, and to coarser ones on top.

    Args:
        in_channels: Of C3, C4, C5 (any number of consecutive maps, finest first).
        channels: Of the pyramid.
        first: Number in the name of the finest map's layers; 2 where the body has a finer map that is left out.
        drop_prob: Share of places that DropBlock (Ghiasi et al., NeurIPS 2018) wipes out in training, on all maps but
            the coarsest; 0 for none.
        drop_size: Side of its blocks.
        top: What is put on top of P5: :class:`TopBlocks` made of P5, or of C5, or :class:`MaxPoolTop`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        first: int = 2,
        drop_prob: float = 0.0,
        drop_size: int = 3,
        top: Top = "P6P7",
    ) -> None:
        super().__init__()
        self.numbers = list(range(first, first + len(in_channels)))
        self.drop_prob, self.drop_size = drop_prob, drop_size
        for number, width in zip(self.numbers, in_channels, strict=True):
            self.add_module(f"fpn_inner{number}", _conv(width, channels, 1))
            self.add_module(f"fpn_layer{number}", _conv(channels, channels, 3))
        self.top_of_c5 = top == "P6P7 of C5"
        self.top_blocks: nn.Module = MaxPoolTop()
        if top != "max pool":
            self.top_blocks = TopBlocks(in_channels[-1] if self.top_of_c5 else channels, channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """C3, C4, C5 (B, C_i, H_i, W_i), finest first -> P3..P7, or P2..P6 with a map more and a level less on top."""
        return self.merge([self.lateral(level, x) for level, x in enumerate(maps)], maps[-1])

    def lateral(self, level: int, x: Tensor) -> Tensor:
        """The part of map number ``level`` (from 0) that needs no other map: (B, C, H, W)."""
        return self.get_submodule(f"fpn_inner{self.numbers[level]}")(x)

    def merge(self, laterals: Sequence[Tensor], coarsest: Tensor) -> list[Tensor]:
        """Laterals, finest first, and C5 -> P3..P7. A lateral of batch 1 serves for all the others."""
        *finer, inner = laterals
        levels = [self._layer(-1, inner)]
        for level, lateral in reversed(list(enumerate(finer))):
            inner = lateral + F.interpolate(inner, size=lateral.shape[-2:], mode="nearest")
            kept = drop_block(inner, self.drop_prob, self.drop_size) if self.training and self.drop_prob else inner
            levels.insert(0, self._layer(level, kept))
        return levels + self.top_blocks(coarsest if self.top_of_c5 else levels[-1])

    def _layer(self, level: int, x: Tensor) -> Tensor:
        return self.get_submodule(f"fpn_layer{self.numbers[level]}")(x)


def drop_block(x: Tensor, prob: float, size: int) -> Tensor:
    """Wipes out blocks of ``size`` x ``size`` in all channels of (B, C, H, W), and scales up what is left."""
    centres = (torch.rand(len(x), 1, *x.shape[-2:], device=x.device) < prob / size**2).to(x.dtype)
    hit = F.max_pool2d(centres, size, stride=1, padding=size // 2)[..., : x.shape[-2], : x.shape[-1]]
    keep = 1 - hit
    return x * keep * (keep.numel() / keep.sum())


def _conv(in_channels: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
