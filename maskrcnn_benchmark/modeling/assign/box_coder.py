"""Boxes as offsets from anchors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)  # keeps exp() finite; the largest growth of an anchor


class BoxCoder:
    """Centre shifts in units of the anchor's sides and log scales, times ``weights`` (R-CNN).

    Args:
        weights: of x, y, width, height.
        plus_one: sides count both border pixels (x2 - x1 + 1), as in maskrcnn-benchmark.
    """

    def __init__(self, weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0), plus_one: bool = True):
        self.weights = weights
        self.extra = float(plus_one)

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """(N, 4) xyxy boxes and their anchors (N, 4) -> (N, 4) deltas."""
        side, anchor_side = (b[:, 2:] - b[:, :2] + self.extra for b in (boxes, anchors))
        centre, anchor_centre = ((b[:, 2:] + b[:, :2]) / 2 for b in (boxes, anchors))
        weights = boxes.new_tensor(self.weights)
        shift = weights[:2] * (centre - anchor_centre) / anchor_side
        scale = weights[2:] * torch.log(side / anchor_side)
        return torch.cat((shift, scale), dim=1)

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """(N, 4) deltas and their anchors (N, 4) -> (N, 4) xyxy boxes; log scales are limited to log(1000 / 16)."""
        anchors = anchors.to(deltas.dtype)
        anchor_side = anchors[:, 2:] - anchors[:, :2] + self.extra
        anchor_centre = (anchors[:, 2:] + anchors[:, :2]) / 2
        deltas = deltas / deltas.new_tensor(self.weights)
        centre = deltas[:, :2] * anchor_side + anchor_centre
        reach = 0.5 * (deltas[:, 2:].clamp(max=MAX_LOG_SCALE).exp() * anchor_side - self.extra)
        return torch.cat((centre - reach, centre + reach), dim=1)
