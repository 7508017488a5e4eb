"""Losses of Faster R-CNN and RetinaNet, as maskrcnn-benchmark computes them and under its names.

Sums are divided by counts of this process alone; the gradients of several processes are averaged. All is computed in
float32 at least, also under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from maskrcnn_benchmark.layers.ops import sigmoid_focal_loss
from maskrcnn_benchmark.modeling.assign.box_coder import BoxCoder
from maskrcnn_benchmark.modeling.assign.matcher import BETWEEN, balanced_sample, match
from maskrcnn_benchmark.modeling.heads.anchors import inside
from maskrcnn_benchmark.structures import Target
from maskrcnn_benchmark.structures.boxes import iou

IGNORED = -1  # in place of a label: neither an object nor background


@dataclass(frozen=True)
class Sampling:
    """Which boxes are objects, and how many of a picture are trained on."""

    foreground: float  # IoU from which on a box is an object
    background: float  # IoU below which it is background
    count: int  # boxes of a picture
    positive_fraction: float  # most of them that may be objects


@dataclass(frozen=True)
class Sampled:
    """The boxes that one picture is trained on."""

    boxes: Tensor  # (S, 4) xyxy
    labels: Tensor  # (S,) int64, 0: background
    truth: Tensor  # (S, 4) xyxy of its object; of no meaning for background
    owner: Tensor  # (S,) int64, the number of its object; below 0 for background

    def __getitem__(self, keep: Tensor) -> Sampled:
        """The boxes that a bool mask (S,) or an index (M,) chooses."""
        return Sampled(self.boxes[keep], self.labels[keep], self.truth[keep], self.owner[keep])

    @classmethod
    def cat(cls, parts: Sequence[Sampled]) -> Sampled:
        """Those of several pictures."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


class RpnCriterion:
    """Objectness and boxes of a draw of anchors.

    Args:
        sampling: Of anchors; those that overlap an object most are objects whatever their IoU.
        margin: Pixels that an anchor may reach beyond its picture; others are not trained. Below 0 all are.
        plus_one: Both border pixels count.
        beta: Where the smooth L1 loss becomes linear.
    """

    def __init__(self, sampling: Sampling, margin: float = 0, plus_one: bool = True, beta: float = 1.0 / 9) -> None:
        self.sampling, self.margin, self.plus_one, self.beta = sampling, margin, plus_one, beta
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0), plus_one)

    def __call__(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            logits: (B, N).
            deltas: (B, N, 4).
            anchors: (N, 4) xyxy.
            sizes: Per picture (h, w) without padding.
            targets: Boxes in pixels of the network's input.
        """
        positive_logits, negative_logits, errors = [], [], []
        for row, boxes, size, target in zip(logits, deltas, sizes, targets, strict=True):
            labels, matches = self.label(anchors, size, target)
            positive, negative = balanced_sample(labels, self.sampling.count, self.sampling.positive_fraction)
            truth = target.boxes[matches[positive]].to(anchors.dtype)
            errors.append(boxes[positive].float() - self.coder.encode(truth, anchors[positive]))
            positive_logits.append(row[positive].float())
            negative_logits.append(row[negative].float())
        yes, no = torch.cat(positive_logits), torch.cat(negative_logits)
        count = max(1, len(yes) + len(no))
        objectness = F.softplus(-yes).sum() + F.softplus(no).sum()
        return {
            "loss_objectness": objectness / count,
            "loss_rpn_box_reg": smooth_l1(torch.cat(errors), self.beta) / count,
        }

    @torch.no_grad()
    def label(self, anchors: Tensor, size: tuple[int, int], target: Target) -> tuple[Tensor, Tensor]:
        """(N,) 1 for objects, 0 for background, :data:`IGNORED` for others; and (N,) the object of each."""
        overlap = iou(target.boxes.to(anchors.dtype), anchors, self.plus_one)
        matches = match(overlap, self.sampling.foreground, self.sampling.background, low_quality=True)
        labels = (matches >= 0).long()
        labels[(matches == BETWEEN) | ~inside(anchors, size, self.margin)] = IGNORED
        return labels, matches


class BoxCriterion:
    """Which proposals the second stage is trained on, and the loss of its boxes.

    Args:
        sampling: Of proposals.
        coder: Of the boxes.
        plus_one: Both border pixels count.
        beta: Where the smooth L1 loss becomes linear.
    """

    def __init__(self, sampling: Sampling, coder: BoxCoder, plus_one: bool = True, beta: float = 1.0) -> None:
        self.sampling, self.coder, self.plus_one, self.beta = sampling, coder, plus_one, beta

    @torch.no_grad()
    def sample(self, proposals: Tensor, target: Target) -> Sampled:
        """A draw of a picture's proposals (P, 4) and objects, in this order."""
        all_of_them = self.label(torch.cat((proposals, target.boxes.to(proposals.dtype))), target)
        positive, negative = balanced_sample(all_of_them.labels, self.sampling.count, self.sampling.positive_fraction)
        return all_of_them[torch.cat((positive, negative)).sort().values]

    @torch.no_grad()
    def label(self, boxes: Tensor, target: Target) -> Sampled:
        """All of a picture's boxes (P, 4); those that are neither object nor background are :data:`IGNORED`."""
        truth = target.boxes.to(boxes.dtype)
        matches = match(iou(truth, boxes, self.plus_one), self.sampling.foreground, self.sampling.background)
        owned = truth[matches.clamp(min=0)] if len(truth) else boxes
        return Sampled(boxes, labels_of(matches, target), owned, matches)

    def box_loss(self, deltas: Tensor, sampled: Sampled) -> Tensor:
        """Sum over P sampled objects, whose (P, 4) deltas are given."""
        return smooth_l1(deltas.float() - self.coder.encode(sampled.truth, sampled.boxes), self.beta)


class RetinaNetCriterion:
    """Focal loss of all anchors, and boxes of those that have an object.

    Args:
        foreground: IoU from which on an anchor is an object; so are those that overlap an object most.
        background: IoU below which it is background.
        coder: Of the boxes.
        alpha: Of the focal loss, weight of the ones.
        gamma: Of the focal loss, how much less an answer counts the better it is.
        beta: Where the smooth L1 loss becomes linear.
        box_divisor: What the loss of the boxes is divided by, beside their number.
        plus_one: Both border pixels count.
    """

    def __init__(
        self,
        foreground: float,
        background: float,
        coder: BoxCoder,
        alpha: float = 0.25,
        gamma: float = 2.0,
        beta: float = 0.11,
        box_divisor: float = 4.0,
        plus_one: bool = True,
    ) -> None:
        self.foreground, self.background, self.coder, self.plus_one = foreground, background, coder, plus_one
        self.alpha, self.gamma, self.beta, self.box_divisor = alpha, gamma, beta, box_divisor

    def __call__(self, logits: Tensor, deltas: Tensor, anchors: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """(B, N, C) logits, (B, N, 4) deltas and (N, 4) anchors -> losses."""
        labels, errors = [], []
        for row, target in zip(deltas, targets, strict=True):
            truth = target.boxes.to(anchors.dtype)
            matches = match(iou(truth, anchors, self.plus_one), self.foreground, self.background, low_quality=True)
            labels.append(labels_of(matches, target))
            positive = (labels[-1] > 0).nonzero().squeeze(1)
            errors.append(row[positive].float() - self.coder.encode(truth[matches[positive]], anchors[positive]))
        count = sum(map(len, errors))
        focal = sigmoid_focal_loss(logits.float().flatten(0, 1), torch.cat(labels), self.gamma, self.alpha)
        return {
            "loss_retina_cls": focal.sum() / (count + len(targets)),
            "loss_retina_reg": smooth_l1(torch.cat(errors), self.beta) / max(1.0, count * self.box_divisor),
        }


def labels_of(matches: Tensor, target: Target) -> Tensor:
    """(N,) int64 label of each box: its object's, 0 for background, :data:`IGNORED` between."""
    background = target.labels.new_zeros(1)
    labels = torch.cat((background, target.labels))[matches.clamp(min=-1) + 1]
    return labels.masked_fill(matches == BETWEEN, IGNORED)


def smooth_l1(error: Tensor, beta: float) -> Tensor:
    """Sum over all elements: 0.5 e^2 / beta up to |e| = beta, |e| - 0.5 beta beyond."""
    return F.smooth_l1_loss(error, torch.zeros_like(error), reduction="sum", beta=beta)
