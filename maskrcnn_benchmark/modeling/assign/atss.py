"""Which anchor learns which object: adaptive training sample selection (ATSS, https://arxiv.org/abs/1912.02424)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn_benchmark.structures import boxes as geometry

MIN_INSIDE = 0.01  # pixels by which an anchor's centre must lie inside an object


@torch.no_grad()
def atss_assign(
    anchors_per_level: Sequence[Tensor], boxes: Tensor, topk: int = 9, plus_one: bool = True, per_cell: int = 1
) -> Tensor:
    """Match anchors to objects of one picture.

    On every level the ``topk * per_cell`` anchors nearest to an object's centre are candidates; those whose IoU reaches
    the mean plus the standard deviation over the object's candidates, and whose centre lies inside the object, are
    positive. An anchor that several objects claim goes to the one of the highest IoU (the first of equals).

    Args:
        anchors_per_level: (A_l, 4) xyxy. boxes: (G, 4) xyxy of the same frame.
        per_cell: anchors per cell.

    Returns:
        (A,) int64 index of the object, -1 for background.
    """
    anchors = torch.cat(list(anchors_per_level))
    if len(boxes) == 0:
        return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    centres = (anchors[:, 2:] + anchors[:, :2]) / 2
    middles = (boxes[:, 2:] + boxes[:, :2]) / 2
    distance = (centres[:, None] - middles).pow(2).sum(-1).sqrt()  # (A, G)
    candidates = _nearest(distance, [len(level) for level in anchors_per_level], topk * per_cell)

    overlap = geometry.iou(anchors, boxes, plus_one)
    of_candidates = overlap.gather(0, candidates)  # (K, G)
    threshold = of_candidates.mean(0) + of_candidates.std(0)
    points = centres[candidates]  # (K, G, 2)
    inside = torch.cat((points - boxes[:, :2], boxes[:, 2:] - points), dim=-1).amin(-1) > MIN_INSIDE
    positive = (of_candidates >= threshold) & inside

    claims = torch.full_like(overlap, -torch.inf)
    claims.scatter_(0, candidates, of_candidates.masked_fill(~positive, -torch.inf))
    best, match = claims.max(dim=1)
    return match.masked_fill(best == -torch.inf, -1)


def _nearest(distance: Tensor, level_sizes: Sequence[int], count: int) -> Tensor:
    """Rows of the ``count`` smallest distances of each column on each level: (A, G) -> (K, G)."""
    picked, start = [], 0
    for part in torch.split(distance, list(level_sizes)):
        picked.append(part.topk(min(count, len(part)), dim=0, largest=False).indices + start)
        start += len(part)
    return torch.cat(picked)


def centerness_targets(points: Tensor, boxes: Tensor) -> Tensor:
    """How central each point (N, 2) x, y lies in its own box (N, 4): 1 in the middle, 0 at a side (N,).

    The points must lie inside (FCOS, https://arxiv.org/abs/1904.01355).
    """
    near, far = points - boxes[:, :2], boxes[:, 2:] - points
    return (torch.minimum(near, far) / torch.maximum(near, far)).prod(dim=1).sqrt()
