"""Which anchors or proposals are trained on which objects: by IoU (Faster R-CNN), and a balanced draw of them."""

from __future__ import annotations

import torch
from torch import Tensor

BELOW, BETWEEN = -1, -2
"""In place of an object's number: the box is background; the box is neither."""


def match(overlap: Tensor, high: float, low: float, low_quality: bool = False) -> Tensor:
    """The best object of each box.

    Args:
        overlap: (G, P) IoU of G objects with P boxes; no object makes every box background.
        high: From this IoU on a box belongs to its best object (the first of equally good ones).
        low: Below it a box is background.
        low_quality: The boxes that overlap an object most belong to *their* best object, whatever the IoU, so that no
            object is left without a box. As in the original they may all prefer another object.

    Returns:
        (P,) int64, the number of an object, :data:`BELOW` or :data:`BETWEEN`.
    """
    if overlap.shape[0] == 0:
        return torch.full(overlap.shape[1:], BELOW, dtype=torch.int64, device=overlap.device)
    value, best = overlap.max(dim=0)
    matches = torch.where(value < low, BELOW, torch.where(value < high, BETWEEN, best))
    if low_quality and overlap.shape[1]:
        rescued = (overlap == overlap.max(dim=1, keepdim=True).values).any(dim=0)
        matches = torch.where(rescued, best, matches)
    return matches


def balanced_sample(labels: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """At most ``count`` boxes by chance, objects first.

    Draws from torch's generator on the device of ``labels``, a permutation of the positive and one of the negative
    boxes whatever is needed of them, as maskrcnn-benchmark does; the same seed makes the same choice.

    Args:
        labels: (N,) from 1 for objects, 0 for background, below 0 for what is left out.
        count: Boxes of both kinds.
        positive_fraction: Most of them that may be objects.

    Returns:
        Positive and negative places, int64, ascending.
    """
    positive = (labels >= 1).nonzero().squeeze(1)
    negative = (labels == 0).nonzero().squeeze(1)
    positives = min(len(positive), int(count * positive_fraction))
    negatives = min(len(negative), count - positives)
    chosen_positive = torch.randperm(len(positive), device=labels.device)[:positives]
    chosen_negative = torch.randperm(len(negative), device=labels.device)[:negatives]
    return positive[chosen_positive].sort().values, negative[chosen_negative].sort().values
