"""Region proposal network of Faster R-CNN (Ren et al., NeurIPS 2015) on a pyramid, as maskrcnn-benchmark computes it.

Boxes are xyxy in pixels of the network's input, with both border pixels counted where ``plus_one`` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_benchmark.layers.ops import nms
from maskrcnn_benchmark.modeling.assign.box_coder import BoxCoder
from maskrcnn_benchmark.modeling.criterion.rcnn import RpnCriterion
from maskrcnn_benchmark.modeling.heads.anchors import AnchorGenerator
from maskrcnn_benchmark.modeling.heads.outputs import cell_rows
from maskrcnn_benchmark.structures import Target
from maskrcnn_benchmark.structures import boxes as geometry

Size = tuple[int, int]  # (h, w) of a picture in the network's input, without padding


@dataclass(frozen=True)
class Proposals:
    """Boxes of one picture that may hold an object."""

    boxes: Tensor  # (P, 4)
    scores: Tensor  # (P,) 0..1

    def __getitem__(self, keep: Tensor) -> Proposals:
        """The proposals that a bool mask (P,) or an index (M,) chooses."""
        return Proposals(self.boxes[keep], self.scores[keep])


@dataclass(frozen=True)
class ProposalLimits:
    """How many proposals go on."""

    before_nms: int  # per level and picture
    after_nms: int  # per level and picture
    total: int  # over all levels


class RpnHead(nn.Module):
    """One convolution and two outputs per anchor, the same layers for every level."""

    def __init__(self, channels: int, num_per_cell: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.cls_logits = nn.Conv2d(channels, num_per_cell, 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * num_per_cell, 1)
        for layer in (self.conv, self.cls_logits, self.bbox_pred):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level (B, C, H, W) -> per level (B, A, H, W) objectness logits, and (B, 4 A, H, W) box deltas."""
        hidden = [F.relu(self.conv(x)) for x in maps]
        return [self.cls_logits(x) for x in hidden], [self.bbox_pred(x) for x in hidden]


class RegionProposalNetwork(nn.Module):
    """Proposals for the second stage; names as under ``rpn.`` of a checkpoint.

    Args:
        head: Of all levels.
        anchor_generator: Its buffers are used as they are.
        criterion: Of the training.
        train: Limits in training.
        test: Limits in detection, where the total is per picture.
        per_batch: The total of a training is that of all pictures of the batch together, so that a picture may be left
            without proposals, as in the original; otherwise of each.
        nms_threshold: IoU; 0 or less turns NMS off, and ``after_nms`` with it.
        min_size: Narrower and lower proposals are dropped, in pixels.
        plus_one: Both border pixels count.
    """

    def __init__(
        self,
        head: RpnHead,
        anchor_generator: AnchorGenerator,
        criterion: RpnCriterion,
        train: ProposalLimits,
        test: ProposalLimits,
        per_batch: bool = True,
        nms_threshold: float = 0.7,
        min_size: float = 0,
        plus_one: bool = True,
    ) -> None:
        super().__init__()
        self.head, self.anchor_generator, self.criterion = head, anchor_generator, criterion
        self.limits = {"train": train, "test": test}
        self.per_batch, self.nms_threshold, self.min_size, self.plus_one = per_batch, nms_threshold, min_size, plus_one
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0), plus_one)

    def detect(self, maps: Sequence[Tensor], sizes: Sequence[Size]) -> list[Proposals]:
        """The proposals of each picture, best first."""
        logits, deltas = self.head(maps)
        limits = self.limits["test"]
        found = self.propose(logits, deltas, self._anchors(maps), sizes, limits)
        return [best_of_picture(proposals, limits.total) for proposals in found]

    def learn(
        self, maps: Sequence[Tensor], sizes: Sequence[Size], targets: Sequence[Target]
    ) -> tuple[dict[str, Tensor], list[Proposals]]:
        """Losses, and the proposals that the second stage is trained on, without the objects themselves."""
        logits, deltas = self.head(maps)
        anchors, limits = self._anchors(maps), self.limits["train"]
        found = self.propose(logits, deltas, anchors, sizes, limits)
        if self.per_batch:
            found = best_of_batch(found, limits.total)
        else:
            found = [best_of_picture(proposals, limits.total) for proposals in found]
        flat_logits = torch.cat([cell_rows(x, 1).squeeze(2) for x in logits], dim=1)
        flat_deltas = torch.cat([cell_rows(x, 4) for x in deltas], dim=1)
        return self.criterion(flat_logits, flat_deltas, torch.cat(anchors), sizes, targets), found

    def _anchors(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return self.anchor_generator([(x.shape[-2], x.shape[-1]) for x in maps])

    @torch.no_grad()
    def propose(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        sizes: Sequence[Size],
        limits: ProposalLimits,
    ) -> list[Proposals]:
        """What is left of each picture after NMS on each level; level after level, best first on each."""
        levels = [self._level(*level, sizes, limits) for level in zip(logits, deltas, anchors, strict=True)]
        return [
            Proposals(torch.cat([p.boxes for p in parts]), torch.cat([p.scores for p in parts]))
            for parts in zip(*levels, strict=True)
        ]

    def _level(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, sizes: Sequence[Size], limits: ProposalLimits
    ) -> list[Proposals]:
        scores = cell_rows(logits, 1).squeeze(2).float().sigmoid()
        scores, places = scores.sort(dim=1, descending=True, stable=True)  # equal ones by place, on every machine
        rows = cell_rows(deltas, 4)
        found = []
        for i, size in enumerate(sizes):
            best = places[i, : limits.before_nms]
            boxes = geometry.clip(self.coder.decode(rows[i, best].float(), anchors[best]), size, self.plus_one)
            keep = geometry.large_enough(boxes, self.min_size, self.plus_one)
            proposals = Proposals(boxes, scores[i, : limits.before_nms])[keep]
            if self.nms_threshold > 0:
                kept = nms(proposals.boxes, proposals.scores, self.nms_threshold, self.plus_one, sort="index")
                proposals = proposals[kept[: limits.after_nms]]
            found.append(proposals)
        return found


def best_of_picture(proposals: Proposals, count: int) -> Proposals:
    """The ``count`` best, best first."""
    return proposals[proposals.scores.argsort(descending=True, stable=True)[:count]]


def best_of_batch(batch: Sequence[Proposals], count: int) -> list[Proposals]:
    """The ``count`` best of all pictures together; each picture's keep their order."""
    scores = torch.cat([proposals.scores for proposals in batch])
    keep = torch.zeros_like(scores, dtype=torch.bool)
    keep[scores.argsort(descending=True, stable=True)[:count]] = True
    parts = keep.split([len(proposals.scores) for proposals in batch])
    return [proposals[part] for proposals, part in zip(batch, parts, strict=True)]
