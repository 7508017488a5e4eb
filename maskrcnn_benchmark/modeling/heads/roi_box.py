"""Second stage of Faster R-CNN on a pyramid: what is in a proposal, and its box, as maskrcnn-benchmark computes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from maskrcnn_benchmark.layers.ops import roi_align
from maskrcnn_benchmark.modeling.criterion.rcnn import BoxCriterion, Sampled
from maskrcnn_benchmark.modeling.heads.rpn import Proposals, Size
from maskrcnn_benchmark.modeling.heads.select import Boxes, select
from maskrcnn_benchmark.structures import Target
from maskrcnn_benchmark.structures import boxes as geometry

LOGITS_AT_ONCE = 1 << 24
"""Scores or box deltas that are computed together, 64 MB in float32; more go part by part."""


class Pooler(nn.Module):
    """ROIAlign of each box on the level that fits its size (Lin et al., CVPR 2017, equation 1).

    Args:
        resolution: Cells per side of the result.
        scales: Of the levels, finest first, successive halves; coarser maps are not pooled from.
        sampling_ratio: Samples per cell and axis.
        canonical_size: Side in pixels of a box that belongs to ``canonical_level`` (whose scale is 1 / 2^level).
        canonical_level: See there.
        plus_one: Both border pixels count for the size of a box; they never do for ROIAlign.
        aligned: ROIAlign of detectron2, shifted by half a pixel; otherwise the first version.
        eps: Added to the size of a box, in units of the canonical one.
    """

    def __init__(
        self,
        resolution: int,
        scales: Sequence[float],
        sampling_ratio: int,
        canonical_size: float = 224,
        canonical_level: int = 4,
        plus_one: bool = True,
        aligned: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.aligned, self.eps = aligned, eps
        self.resolution, self.scales, self.sampling_ratio = resolution, tuple(scales), sampling_ratio
        self.canonical_size, self.canonical_level, self.plus_one = canonical_size, canonical_level, plus_one
        self.finest = round(-math.log2(self.scales[0]))

    def levels(self, boxes: Tensor) -> Tensor:
        """(R, 4) -> (R,) int64, 0 for the finest map."""
        side = geometry.area(boxes, self.plus_one).clamp(min=0).sqrt()
        level = torch.floor(self.canonical_level + torch.log2(side / self.canonical_size + self.eps))
        return (level - self.finest).clamp(0, len(self.scales) - 1).long()

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H_l, W_l) and B times (R_i, 4) xyxy -> (sum of R_i, C, resolution, resolution)."""
        pictures = torch.cat([part.new_full((len(part), 1), i) for i, part in enumerate(boxes)])
        rois = torch.cat((pictures, torch.cat(list(boxes))), dim=1)
        level = self.levels(rois[:, 1:])
        out = maps[0].new_zeros(len(rois), maps[0].shape[1], self.resolution, self.resolution)
        for number, scale in enumerate(self.scales):
            rows = (level == number).nonzero().squeeze(1)
            where = (self.resolution, scale, self.sampling_ratio, self.aligned)
            out[rows] = roi_align(maps[number], rois[rows], *where)
        return out


class BoxFeatures(nn.Module):
    """Two fully connected layers over what is pooled."""

    def __init__(self, pooler: Pooler, channels: int, width: int) -> None:
        super().__init__()
        self.pooler = pooler
        self.fc6 = nn.Linear(channels * pooler.resolution**2, width)
        self.fc7 = nn.Linear(width, width)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H_l, W_l) and B times (R_i, 4) xyxy -> (sum of R_i, width)."""
        x = self.pooler(maps, boxes).flatten(1)
        return F.relu(self.fc7(F.relu(self.fc6(x))))


@dataclass(frozen=True)
class Candidates:
    """Pairs of a proposal and a class."""

    rows: Tensor  # (K,) int64, the proposal
    labels: Tensor  # (K,) int64
    scores: Tensor  # (K,)
    deltas: Tensor  # (K, 4)


class BoxPredictor(nn.Module):
    """Classes and boxes of proposals.

    Memory does not grow with the number of classes times the number of proposals: scores are computed for at most
    :data:`LOGITS_AT_ONCE` pairs at a time, and boxes in training for the class of each object alone. With the 21,842
    classes of ImageNet-22k and 512 proposals in each of 8 pictures, a training step holds 0.2 GB of scores (three
    arrays of 64 MB: logits, the logarithms of their softmax, the gradient) instead of 1.1 GB, and 17 MB for the boxes
    of 1,024 objects instead of 1.4 GB and as much of gradient. The weights come on top: 22 million of the scores and
    89 million of the boxes (8 thousand with ``agnostic``), each with gradient and momentum, 1.3 GB in float32. Measured
    on a CPU with 4,096 proposals, 1,024 of them objects: 0.35 GB beside the weights and their gradients.

    Args:
        width: Of the features.
        num_classes: With the background, which is class 0.
        agnostic: One box per proposal, in columns 4 to 7 of 8; otherwise one per class.
    """

    def __init__(self, width: int, num_classes: int, agnostic: bool = False) -> None:
        super().__init__()
        self.num_classes, self.agnostic = num_classes, agnostic
        self.cls_score = nn.Linear(width, num_classes)
        self.bbox_pred = nn.Linear(width, 4 * (2 if agnostic else num_classes))
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, width) -> (R, num_classes) logits and (R, 4 * num_classes or 8) deltas."""
        return self.cls_score(x), self.bbox_pred(x)

    def class_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Sum of the cross-entropies of (R, width) features with (R,) labels."""
        parts = _parts(self.cls_score.out_features, x, labels)
        if len(parts) == 1:
            return self._cross_entropy(*parts[0])
        return torch.stack([checkpoint(self._cross_entropy, *part, use_reentrant=False) for part in parts]).sum()

    def _cross_entropy(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.cls_score(x).float(), labels, reduction="sum")

    def deltas_of(self, x: Tensor, labels: Tensor) -> Tensor:
        """(P, width) features and (P,) classes, none of them background -> (P, 4), the box of that class."""
        columns = torch.ones_like(labels) if self.agnostic else labels
        weight = self.bbox_pred.weight.unflatten(0, (-1, 4))[columns]
        bias = self.bbox_pred.bias.unflatten(0, (-1, 4))[columns]
        return torch.einsum("pd,pkd->pk", x, weight) + bias

    @torch.no_grad()
    def candidates(self, x: Tensor, threshold: float) -> Candidates:
        """Every pair with a score above the threshold, class after class, proposals of a class in their order."""
        rows, labels, scores, deltas, start = [], [], [], [], 0
        for (part,) in _parts(max(self.cls_score.out_features, self.bbox_pred.out_features), x):
            logits, boxes = self(part)
            prob = logits.float().softmax(1)[:, 1:]
            row, column = (prob > threshold).nonzero(as_tuple=True)
            column_of_box = torch.ones_like(column) if self.agnostic else column + 1
            rows.append(row + start)
            labels.append(column + 1)
            scores.append(prob[row, column])
            deltas.append(boxes.float().unflatten(1, (-1, 4))[row, column_of_box])
            start += len(part)
        order = torch.cat(labels).argsort(stable=True)
        return Candidates(*(torch.cat(parts)[order] for parts in (rows, labels, scores, deltas)))


class BoxHead(nn.Module):
    """Names as under ``roi_heads.box.`` of a checkpoint.

    Args:
        feature_extractor: From proposals to features.
        predictor: From features to classes and boxes.
        criterion: Of the training; its coder serves for detection too.
        threshold: Of a score; a pair of proposal and class must be above it.
        nms_threshold: IoU, class by class; 0 or less turns NMS off.
        max_detections: Per picture; ties with the last one are kept too. 0 or less keeps all.
    """

    def __init__(
        self,
        feature_extractor: BoxFeatures,
        predictor: BoxPredictor,
        criterion: BoxCriterion,
        threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.feature_extractor, self.predictor, self.criterion = feature_extractor, predictor, criterion
        self.threshold, self.nms_threshold, self.max_detections = threshold, nms_threshold, max_detections

    def learn(
        self, maps: Sequence[Tensor], proposals: Sequence[Proposals], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Losses of a draw of each picture's proposals and objects."""
        parts = [self.criterion.sample(p.boxes, target) for p, target in zip(proposals, targets, strict=True)]
        x = self.feature_extractor(maps, [part.boxes for part in parts])
        sampled = Sampled.cat(parts)
        objects = (sampled.labels > 0).nonzero().squeeze(1)
        deltas = self.predictor.deltas_of(x[objects], sampled.labels[objects])
        count = max(1, len(sampled.labels))
        return {
            "loss_classifier": self.predictor.class_loss(x, sampled.labels) / count,
            "loss_box_reg": self.criterion.box_loss(deltas, sampled[objects]) / count,
        }

    @torch.no_grad()
    def detect(self, maps: Sequence[Tensor], proposals: Sequence[Proposals], sizes: Sequence[Size]) -> list[Boxes]:
        """Per picture boxes in pixels of the network's input, scores and labels, class after class."""
        found = []
        for i, (part, size) in enumerate(zip(proposals, sizes, strict=True)):
            x = self.feature_extractor([level[i : i + 1] for level in maps], [part.boxes])
            seen = self.predictor.candidates(x, self.threshold)
            boxes = self.criterion.coder.decode(seen.deltas, part.boxes[seen.rows])
            boxes = geometry.clip(boxes, size, self.criterion.plus_one)
            chosen = (seen.scores, seen.labels, self.nms_threshold, self.max_detections, self.criterion.plus_one)
            found.append(select(boxes, *chosen))
        return found


class RoiHeads(nn.Module):
    """The heads that look at proposals; names as under ``roi_heads.`` of a checkpoint."""

    def __init__(self, box: BoxHead) -> None:
        super().__init__()
        self.box = box


def _parts(columns: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Tensors of R rows, so few of them at a time that so many numbers for each fit."""
    rows = max(1, LOGITS_AT_ONCE // columns)
    return list(zip(*(tensor.split(rows) for tensor in tensors), strict=True))
