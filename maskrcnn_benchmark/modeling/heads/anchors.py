"""Anchors: boxes of fixed sizes at every cell of every level (Faster R-CNN, as maskrcnn-benchmark lays them)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AnchorGenerator(nn.Module):
    """Anchors of each pyramid level, in pixels of the network's input with both border pixels counted.

    ``cell_anchors.{i}`` are buffers because released checkpoints hold them.

    Args:
        sizes: side in pixels of a square anchor, per level.
        strides: pixels between cells, per level.
        aspect_ratios: height / width.
        scales_per_octave: anchors per size, growing by ``octave ** (1 / scales_per_octave)``.
    """

    def __init__(
        self,
        sizes: Sequence[float] = (64, 128, 256, 512, 1024),
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        aspect_ratios: Sequence[float] = (1.0,),
        scales_per_octave: int = 1,
        octave: float = 2.0,
    ):
        super().__init__()
        if len(sizes) != len(strides):
            raise ValueError(f"one anchor size per level: {len(sizes)} sizes for {len(strides)} strides")
        self.strides = tuple(strides)
        self.num_per_cell = len(aspect_ratios) * scales_per_octave
        growth = [octave ** (i / scales_per_octave) for i in range(scales_per_octave)]
        self.cell_anchors = nn.Module()
        for level, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
            boxes = _cell_anchors([size * factor for factor in growth], stride, aspect_ratios)
            self.cell_anchors.register_buffer(str(level), boxes)

    def forward(self, feature_sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """(h, w) of the map of each level -> per level (h * w * num_per_cell, 4) xyxy, cell by cell in row order."""
        if len(feature_sizes) != len(self.strides):
            raise ValueError(f"{len(feature_sizes)} feature maps for {len(self.strides)} levels of anchors")
        out = []
        for base, stride, (height, width) in zip(self.cell_anchors.buffers(), self.strides, feature_sizes, strict=True):
            y = torch.arange(height, device=base.device, dtype=base.dtype) * stride
            x = torch.arange(width, device=base.device, dtype=base.dtype) * stride
            rows, columns = torch.meshgrid(y, x, indexing="ij")
            shift = torch.stack((columns, rows, columns, rows), dim=-1).view(-1, 1, 4)
            out.append((shift + base).view(-1, 4))
        return out


def inside(anchors: Tensor, size: tuple[int, int], margin: float) -> Tensor:
    """(N,) bool: which anchors (N, 4) reach at most ``margin`` pixels beyond a picture (h, w); below 0 all may."""
    if margin < 0:
        return torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
    height, width = size
    low = (anchors[:, :2] >= -margin).all(1)
    return low & (anchors[:, 2] < width + margin) & (anchors[:, 3] < height + margin)


def _cell_anchors(sizes: Sequence[float], stride: int, aspect_ratios: Sequence[float]) -> Tensor:
    """(len(aspect_ratios) * len(sizes), 4) anchors of the cell at the origin.

    Sides are those of a cell-sized box of the given ratio, rounded to pixels, times size / stride; so they are exact
    for ratio 1 and slightly off for others, as in the released models.
    """
    centre = (stride - 1) / 2
    boxes = []
    for ratio in aspect_ratios:
        width = round((stride * stride / ratio) ** 0.5)
        height = round(width * ratio)
        for size in sizes:
            reach_x, reach_y = (width * (size / stride) - 1) / 2, (height * (size / stride) - 1) / 2
            boxes.append((centre - reach_x, centre - reach_y, centre + reach_x, centre + reach_y))
    return torch.tensor(boxes, dtype=torch.float64).float()
