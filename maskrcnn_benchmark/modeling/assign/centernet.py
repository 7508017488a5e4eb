"""What CenterNet's proposals are trained on (Zhou et al., https://arxiv.org/abs/2103.07461): a heat map with a peak in
the cell of each object's centre, and boxes around it. As https://github.com/xingyizhou/CenterNet2 computes it.

Cells are those of all levels of a picture, level after level. Each has a location, in pixels of the network's input:
column and row times the stride of its level, and half a stride more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_benchmark.structures.boxes import area

FAINTEST = 1e-4  # of the heat map; less counts as nothing


@dataclass(frozen=True)
class Cells:
    """The M cells of all levels."""

    locations: Tensor  # (M, 2) float32 x, y in pixels of the network's input
    strides: Tensor  # (M,) float32
    first: tuple[int, ...]  # number of each level's first cell
    sizes: tuple[tuple[int, int], ...]  # (h, w) of each level

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device) -> Cells:
        """Those of levels with (h, w) cells each."""
        parts, steps, first = [], [], [0]
        for (height, width), stride in zip(sizes, strides, strict=True):
            y, x = (torch.arange(side, device=device) * stride + stride // 2 for side in (height, width))
            places = torch.stack((x.repeat(height), y.repeat_interleave(width)), dim=1).float()
            parts.append(places)
            steps.append(places.new_full((len(places),), stride))
            first.append(first[-1] + len(places))
        return cls(torch.cat(parts), torch.cat(steps), tuple(first[:-1]), tuple(sizes))

    def levels(self) -> list[tuple[Tensor, Tensor]]:
        """Per level its locations (M_l, 2) and strides (M_l,)."""
        counts = [height * width for height, width in self.sizes]
        return list(zip(self.locations.split(counts), self.strides.split(counts), strict=True))


@dataclass(frozen=True)
class CellTargets:
    """What the M cells of a picture are to say."""

    heat: Tensor  # (M,) 0..1
    peaks: Tensor  # (P,) int64, cells that hold the centre of an object; of two objects a cell comes twice
    cells: Tensor  # (R,) int64, cells that a box is learnt from
    boxes: Tensor  # (R, 4) float32: distances to left, top, right and bottom, in strides of the cell's level


@dataclass(frozen=True)
class CenterAssigner:
    """From objects to targets.

    Attributes:
        ranges: Per level, the smallest and largest object that is its own, both included; its size is half a diagonal.
        overlap: IoU with the object that a box around a warm cell still has.
        min_radius: Of the warm part around a centre, pixels.
    """

    ranges: Sequence[tuple[float, float]]
    overlap: float = 0.8
    min_radius: float = 4

    @torch.no_grad()
    def __call__(self, cells: Cells, boxes: Tensor) -> CellTargets:
        """Targets of a picture with N objects, (N, 4) xyxy in pixels of the network's input."""
        count = len(cells.locations)
        if not len(boxes):
            none = torch.zeros(0, dtype=torch.int64, device=boxes.device)
            return CellTargets(cells.locations.new_zeros(count), none, none, boxes.new_zeros(0, 4))
        boxes = boxes.float()
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        stride = cells.strides[:, None, None]
        nearest = (centres / stride).trunc() * stride + stride / 2  # (M, N, 2) location of each centre's cell
        away = cells.locations[:, None] - nearest
        distance = ((cells.locations[:, None] - centres) ** 2).sum(2).masked_fill((away == 0).all(2), 0)
        distance = distance / self._radius(boxes) ** 2
        heat = (-distance.amin(1)).exp()
        reach = torch.cat((cells.locations[:, None] - boxes[:, :2], boxes[:, 2:] - cells.locations[:, None]), dim=2)
        learns = (away.abs() <= stride).all(2) & (reach > 0).all(2) & self._cared(cells, boxes)
        cell = learns.any(1).nonzero().squeeze(1)
        owner = distance[cell].masked_fill(~learns[cell], torch.inf).argmin(1)
        return CellTargets(
            heat.masked_fill(heat < FAINTEST, 0),
            self._peaks(cells, boxes, centres),
            cell,
            reach[cell, owner] / cells.strides[cell, None],
        )

    def _radius(self, boxes: Tensor) -> Tensor:
        """(N,) of the warm part around each centre."""
        share = (1 - self.overlap) / (1 + self.overlap)
        return (2 * area(boxes)).sqrt().mul(share).clamp(min=self.min_radius)

    def _owned(self, boxes: Tensor) -> Tensor:
        """(L, N) bool, which objects are a level's own."""
        size = (boxes[:, 2:] - boxes[:, :2]).square().sum(1).sqrt() / 2
        low, high = boxes.new_tensor(self.ranges).T[..., None]
        return (size >= low) & (size <= high)

    def _cared(self, cells: Cells, boxes: Tensor) -> Tensor:
        """(M, N) bool, the same for the cells of each level."""
        counts = torch.tensor([height * width for height, width in cells.sizes], device=boxes.device)
        return self._owned(boxes).repeat_interleave(counts, dim=0)

    def _peaks(self, cells: Cells, boxes: Tensor, centres: Tensor) -> Tensor:
        """(P,) the cell of each object's centre on each of its levels."""
        peaks = []
        for own, first, (height, width) in zip(self._owned(boxes), cells.first, cells.sizes, strict=True):
            place = (centres[own] / cells.strides[first]).long()
            x, y = place[:, 0].clamp(0, width - 1), place[:, 1].clamp(0, height - 1)
            peaks.append(first + y * width + x)
        return torch.cat(peaks)
