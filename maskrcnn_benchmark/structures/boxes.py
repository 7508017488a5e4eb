"""Geometry of boxes: functions on (N, 4) tensors, xyxy in pixels unless a name says otherwise.

``plus_one`` counts both border pixels (width = x2 - x1 + 1), as maskrcnn-benchmark does on all of its data.
"""

from __future__ import annotations

import torch
from torch import Tensor


def area(boxes: Tensor, plus_one: bool = False) -> Tensor:
    """(..., 4) -> (...)."""
    side = boxes[..., 2:] - boxes[..., :2] + float(plus_one)
    return side[..., 0] * side[..., 1]


def intersection(a: Tensor, b: Tensor, plus_one: bool = False) -> Tensor:
    """(N, 4), (M, 4) -> (N, M) pixels."""
    low = torch.maximum(a[:, None, :2], b[:, :2])
    high = torch.minimum(a[:, None, 2:], b[:, 2:])
    side = (high - low + float(plus_one)).clamp(min=0)
    return side[..., 0] * side[..., 1]


def iou(a: Tensor, b: Tensor, plus_one: bool = False) -> Tensor:
    """Intersection over union of every pair: (N, 4), (M, 4) -> (N, M)."""
    shared = intersection(a, b, plus_one)
    return shared / (area(a, plus_one)[:, None] + area(b, plus_one) - shared)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of every pair (https://arxiv.org/abs/1902.09630): (N, 4), (M, 4) -> (N, M) in -1..1."""
    shared = intersection(a, b)
    union = area(a)[:, None] + area(b) - shared
    low = torch.minimum(a[:, None, :2], b[:, :2])
    high = torch.maximum(a[:, None, 2:], b[:, 2:])
    hull = area(torch.cat((low, high), dim=-1))
    return shared / union - (hull - union) / hull


def giou_of_pairs(a: Tensor, b: Tensor) -> Tensor:
    """As :func:`giou`, of each box and the one in the same row: (N, 4), (N, 4) -> (N,)."""
    side = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    shared = side[:, 0] * side[:, 1]
    union = area(a) + area(b) - shared
    hull = area(torch.cat((torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:])), dim=1))
    return shared / union - (hull - union) / hull


def clip(boxes: Tensor, size: tuple[int, int], plus_one: bool = False) -> Tensor:
    """Move corners into a picture of ``size`` (h, w): 0..w and 0..h, or 0..w - 1 and 0..h - 1 with ``plus_one``."""
    height, width = (side - int(plus_one) for side in size)
    x = boxes[..., 0::2].clamp(0, width)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def large_enough(boxes: Tensor, min_size: float, plus_one: bool = False) -> Tensor:
    """(N,) bool: both sides are at least ``min_size`` (False where a coordinate is NaN)."""
    side = boxes[:, 2:] - boxes[:, :2] + float(plus_one)
    return (side >= min_size).all(dim=1)


def xyxy_to_xywh(boxes: Tensor, plus_one: bool = False) -> Tensor:
    return torch.cat((boxes[..., :2], boxes[..., 2:] - boxes[..., :2] + float(plus_one)), dim=-1)


def xywh_to_xyxy(boxes: Tensor, plus_one: bool = False) -> Tensor:
    """With ``plus_one`` a side of less than one pixel still covers one, as maskrcnn-benchmark reads COCO boxes."""
    side = boxes[..., 2:]
    side = (side - 1).clamp(min=0) if plus_one else side
    return torch.cat((boxes[..., :2], boxes[..., :2] + side), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def rescale(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Corners in a picture of ``size`` (h, w) after it is resized: multiplied by the ratios of the sides."""
    ratios = [new_size[1] / size[1], new_size[0] / size[0]]
    return boxes * boxes.new_tensor(ratios).repeat(2)


def flip_left_right(boxes: Tensor, width: int, plus_one: bool = False) -> Tensor:
    """Corners after a picture of that width is mirrored."""
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    return torch.stack((width - x2 - int(plus_one), y1, width - x1 - int(plus_one), y2), dim=-1)


def flip_top_bottom(boxes: Tensor, height: int, plus_one: bool = False) -> Tensor:
    """Corners after a picture of that height is turned upside down."""
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    return torch.stack((x1, height - y2 - int(plus_one), x2, height - y1 - int(plus_one)), dim=-1)
