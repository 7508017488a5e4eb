"""Proposals of CenterNet2: a heat map of centres, of any class, and a box for each cell
(Zhou et al., https://arxiv.org/abs/2103.07461, https://github.com/xingyizhou/CenterNet2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_benchmark.layers.ops import nms
from maskrcnn_benchmark.layers.scale import Scale
from maskrcnn_benchmark.modeling.assign.centernet import Cells
from maskrcnn_benchmark.modeling.criterion.centernet import CenterCriterion
from maskrcnn_benchmark.modeling.heads.outputs import cell_rows
from maskrcnn_benchmark.modeling.heads.rpn import Proposals
from maskrcnn_benchmark.modeling.interface import ALONE, Peers
from maskrcnn_benchmark.structures import Target

GROUPS = 32  # of the normalisation
THINNEST = 0.01  # pixels; proposals are at least so wide and high
FIRST_REACH = 8.0  # strides from a cell to each side of its box, before any training


@dataclass(frozen=True)
class CenterLimits:
    """How many proposals go on."""

    before_nms: int  # per level and picture
    after_nms: int  # per picture; ties with the last one are kept too
    nms_threshold: float  # IoU


class CenterHead(nn.Module):
    """The layers, shared by all levels but for a factor; names as under ``proposal_generator.centernet_head.``.

    Args:
        channels: Of the pyramid; a multiple of 32.
        convs: In front of the two outputs.
        levels: Of the pyramid.
        prior: Score of a cell before any training.
    """

    def __init__(self, channels: int, convs: int = 4, levels: int = 5, prior: float = 0.01) -> None:
        super().__init__()
        tower: list[nn.Module] = []
        for _ in range(convs):
            tower += [_conv(channels, channels), nn.GroupNorm(GROUPS, channels), nn.ReLU()]
        self.bbox_tower = nn.Sequential(*tower)
        self.bbox_pred = _conv(channels, 4, FIRST_REACH)
        self.scales = nn.ModuleList(Scale() for _ in range(levels))
        self.agn_hm = _conv(channels, 1, -math.log((1 - prior) / prior))

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level (B, C, H, W) -> per level (B, 1, H, W) logits, and (B, 4, H, W) distances, in strides."""
        hidden = [self.bbox_tower(x) for x in maps]
        reach = [F.relu(scale(self.bbox_pred(x))) for scale, x in zip(self.scales, hidden, strict=True)]
        return [self.agn_hm(x) for x in hidden], reach


class CenterProposals(nn.Module):
    """Proposals for the second stage; names as under ``proposal_generator.`` of a checkpoint.

    Args:
        head: Of all levels.
        criterion: Of the training.
        strides: Of the levels.
        threshold: Of a cell's heat; a proposal must be above it.
        train: Limits in training.
        test: Limits in detection.
    """

    def __init__(
        self,
        head: CenterHead,
        criterion: CenterCriterion,
        strides: Sequence[int],
        threshold: float,
        train: CenterLimits,
        test: CenterLimits,
    ) -> None:
        super().__init__()
        self.centernet_head, self.criterion = head, criterion
        self.strides, self.threshold = tuple(strides), threshold
        self.limits = {"train": train, "test": test}

    def detect(self, maps: Sequence[Tensor]) -> list[Proposals]:
        """The proposals of each picture, best first; they may reach beyond it."""
        logits, reach = self.centernet_head(maps)
        return self.propose(logits, reach, self.limits["test"])

    def learn(
        self, maps: Sequence[Tensor], targets: Sequence[Target], boxes_known: bool = True, peers: Peers = ALONE
    ) -> tuple[dict[str, Tensor], list[Proposals]]:
        """Losses, and the proposals that the second stage is trained on.

        Args:
            maps: The pyramid.
            targets: Of each picture.
            boxes_known: Off where only the classes of the pictures are: all losses are 0.
            peers: The processes that share the batch.
        """
        logits, reach = self.centernet_head(maps)
        proposals = self.propose(logits, reach, self.limits["train"])
        flat = torch.cat([cell_rows(x, 1).squeeze(2) for x in logits], dim=1)
        sides = torch.cat([cell_rows(x, 4) for x in reach], dim=1)
        cells = self._cells(logits)
        boxes = [target.boxes if boxes_known else target.boxes[:0] for target in targets]
        losses = self.criterion(flat, sides, cells, boxes, peers)
        return {name: loss if boxes_known else loss * 0 for name, loss in losses.items()}, proposals

    @torch.no_grad()
    def propose(self, logits: Sequence[Tensor], reach: Sequence[Tensor], limits: CenterLimits) -> list[Proposals]:
        """Per picture what is left after NMS over all levels together, best first."""
        levels = []
        for heat, sides, cells in zip(logits, reach, self._cells(logits).levels(), strict=True):
            levels.append(self._level(cell_rows(heat, 1).squeeze(2), cell_rows(sides, 4), cells, limits))
        found = []
        for parts in zip(*levels, strict=True):
            boxes, scores = (torch.cat(rows) for rows in zip(*parts, strict=True))
            kept = nms(boxes, scores, limits.nms_threshold)
            if len(kept) > limits.after_nms:
                kept = kept[scores[kept] >= scores[kept[limits.after_nms - 1]]]
            found.append(Proposals(boxes[kept], scores[kept]))
        return found

    def _level(
        self, logits: Tensor, reach: Tensor, cells: tuple[Tensor, Tensor], limits: CenterLimits
    ) -> list[tuple[Tensor, Tensor]]:
        """Per picture boxes and scores of the best cells of a level."""
        found = []
        places, strides = cells
        for heat, sides in zip(logits.float().sigmoid(), reach.float(), strict=True):
            warm = (heat > self.threshold).nonzero().squeeze(1)
            best = warm[heat[warm].sort(descending=True, stable=True).indices[: limits.before_nms]]
            pixels = sides[best] * strides[best, None]
            low, high = places[best] - pixels[:, :2], places[best] + pixels[:, 2:]
            boxes = torch.cat((low, torch.maximum(high, low + THINNEST)), dim=1)
            found.append((boxes, heat[best].sqrt()))
        return found

    def _cells(self, maps: Sequence[Tensor]) -> Cells:
        return Cells.of([(x.shape[-2], x.shape[-1]) for x in maps], self.strides, maps[0].device)


def _conv(in_channels: int, channels: int, bias: float = 0.0) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, bias)
    return conv
