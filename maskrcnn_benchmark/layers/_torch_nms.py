"""Non-maximum suppression in torch alone, without a loop over boxes. Imported by ``backends`` only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maskrcnn_benchmark.layers.backends import register
from maskrcnn_benchmark.structures.boxes import area

BLOCK = 512  # boxes decided at a time; bounds the memory at BLOCK * N overlaps


@register("nms", "torch", 20)
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, plus_one: bool) -> Tensor:
    """Decide the best BLOCK boxes left, drop what they suppress, repeat."""
    left = scores.argsort(descending=True, stable=True)
    kept = []
    while len(left):
        block = left[:BLOCK]
        over = _iou(boxes[block], boxes[left], plus_one) > iou_threshold
        keep = _resolve(over[:, : len(block)].triu(1))
        kept.append(block[keep])
        left = left[len(block) :][~over[keep, len(block) :].any(0)]
    return torch.cat(kept)


@register("batched_nms", "torch", 20)
def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, plus_one: bool) -> Tensor:
    return nms_by_label(nms, boxes, scores, labels, iou_threshold, plus_one)


@register("soft_nms", "torch", 20)
def soft_nms(boxes: Tensor, scores: Tensor, score_threshold: float, sigma: float) -> tuple[Tensor, Tensor]:
    index = torch.arange(len(boxes), device=boxes.device)
    kept, decayed = [index[:0]], [scores[:0]]
    while len(index):
        best = scores.argmax()
        kept.append(index[best, None])
        decayed.append(scores[best, None])
        overlap = _iou(boxes[best, None], boxes, plus_one=True)[0].nan_to_num(0)
        scores = scores * (-overlap * overlap / sigma).exp()
        left = ~(scores < score_threshold)
        left[best] = False
        boxes, scores, index = boxes[left], scores[left], index[left]
    return torch.cat(kept), torch.cat(decayed)


def nms_by_label(
    nms: Callable[[Tensor, Tensor, float, bool], Tensor],
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou_threshold: float,
    plus_one: bool,
) -> Tensor:
    """Class-aware NMS by any class-blind one: a pass per label present, over boxes sorted by label once."""
    order = labels.argsort(stable=True)
    boxes, scores = boxes[order], scores[order]
    kept, start = [], 0
    for count in torch.unique_consecutive(labels[order], return_counts=True)[1].tolist():
        part = slice(start, start + count)
        kept.append(nms(boxes[part], scores[part], iou_threshold, plus_one) + start)
        start += count
    return order[torch.cat(kept)]


def _iou(a: Tensor, b: Tensor, plus_one: bool) -> Tensor:
    """(R, 4), (C, 4) -> (R, C); ``structures.boxes.iou`` with less memory traffic."""
    extra = float(plus_one)
    a = a.unsqueeze(1)
    wide = (torch.minimum(a[..., 2], b[:, 2]) - torch.maximum(a[..., 0], b[:, 0])).add_(extra).clamp_(min=0)
    high = (torch.minimum(a[..., 3], b[:, 3]) - torch.maximum(a[..., 1], b[:, 1])).add_(extra).clamp_(min=0)
    shared = wide.mul_(high)
    return shared / (area(a, plus_one) + area(b, plus_one) - shared)


def _resolve(over: Tensor) -> Tensor:
    """Which boxes a greedy pass keeps, given who would suppress whom (row before column): (B, B) bool -> (B,) bool.

    Repeats "kept unless a kept one suppresses it" until nothing changes; the k-th round is right for every chain of
    length k, so the fixed point is the greedy result (Cluster-NMS, https://arxiv.org/abs/2005.03572).
    """
    keep = torch.ones(len(over), dtype=torch.bool, device=over.device)
    while True:
        again = ~(over & keep[:, None]).any(0)
        if torch.equal(again, keep):
            return keep
        keep = again
