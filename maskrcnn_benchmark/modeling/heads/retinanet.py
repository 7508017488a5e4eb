"""RetinaNet (Lin et al., ICCV 2017): classes and boxes at every cell, as maskrcnn-benchmark computes it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maskrcnn_benchmark.modeling.criterion.rcnn import RetinaNetCriterion
from maskrcnn_benchmark.modeling.heads.anchors import AnchorGenerator
from maskrcnn_benchmark.modeling.heads.outputs import cell_rows
from maskrcnn_benchmark.modeling.heads.rpn import Size
from maskrcnn_benchmark.modeling.heads.select import Boxes, select
from maskrcnn_benchmark.structures import Target
from maskrcnn_benchmark.structures import boxes as geometry


class RetinaNetHead(nn.Module):
    """Two towers of convolutions, the same layers for every level.

    Args:
        channels: Of the maps.
        num_classes: Without the background.
        num_per_cell: Anchors.
        num_convs: In each tower.
        prior: Score of everything before the training.
    """

    def __init__(self, channels: int, num_classes: int, num_per_cell: int, num_convs: int = 4, prior: float = 0.01):
        super().__init__()
        self.num_classes = num_classes
        self.cls_tower = _tower(channels, num_convs)
        self.bbox_tower = _tower(channels, num_convs)
        self.cls_logits = _conv(channels, num_per_cell * num_classes)
        self.bbox_pred = _conv(channels, num_per_cell * 4)
        assert self.cls_logits.bias is not None
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - prior) / prior))

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level (B, C, H, W) -> per level (B, A * classes, H, W) logits and (B, A * 4, H, W) deltas."""
        logits = [self.cls_logits(self.cls_tower(x)) for x in maps]
        return logits, [self.bbox_pred(self.bbox_tower(x)) for x in maps]


class RetinaNetModule(nn.Module):
    """Names as under ``rpn.`` of a checkpoint.

    Args:
        head: Of all levels.
        anchor_generator: Its buffers are used as they are.
        criterion: Of the training; its coder serves for detection too.
        threshold: Of a score; a pair of anchor and class must be above it.
        pre_nms_top_n: Pairs per level.
        nms_threshold: IoU, class by class over all levels; 0 or less turns NMS off.
        max_detections: Per picture; ties with the last one are kept too. 0 or less keeps all.
    """

    def __init__(
        self,
        head: RetinaNetHead,
        anchor_generator: AnchorGenerator,
        criterion: RetinaNetCriterion,
        threshold: float = 0.05,
        pre_nms_top_n: int = 1000,
        nms_threshold: float = 0.4,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.head, self.anchor_generator, self.criterion = head, anchor_generator, criterion
        self.threshold, self.pre_nms_top_n = threshold, pre_nms_top_n
        self.nms_threshold, self.max_detections = nms_threshold, max_detections

    def learn(self, maps: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Losses of all anchors."""
        logits, deltas, anchors = self._run(maps)
        rows = torch.cat([cell_rows(x, self.head.num_classes) for x in logits], dim=1)
        return self.criterion(rows, torch.cat([cell_rows(x, 4) for x in deltas], dim=1), torch.cat(anchors), targets)

    @torch.no_grad()
    def detect(self, maps: Sequence[Tensor], sizes: Sequence[Size]) -> list[Boxes]:
        """Per picture boxes in pixels of the network's input, scores and labels, class after class."""
        logits, deltas, anchors = self._run(maps)
        found = []
        for i, size in enumerate(sizes):
            levels = [
                self._level(x[i : i + 1], d[i : i + 1], a, size)
                for x, d, a in zip(logits, deltas, anchors, strict=True)
            ]
            boxes, scores, labels = (torch.cat(parts) for parts in zip(*levels, strict=True))
            order = labels.argsort(stable=True)
            chosen = (self.nms_threshold, self.max_detections, self.criterion.plus_one)
            found.append(select(boxes[order], scores[order], labels[order], *chosen))
        return found

    def _run(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        logits, deltas = self.head(maps)
        return logits, deltas, self.anchor_generator([(x.shape[-2], x.shape[-1]) for x in maps])

    def _level(self, logits: Tensor, deltas: Tensor, anchors: Tensor, size: Size) -> Boxes:
        """The best pairs of one level of one picture; the order of pairs is that of ``topk``."""
        scores = cell_rows(logits, self.head.num_classes)[0].float().sigmoid()
        place, column = (scores > self.threshold).nonzero(as_tuple=True)
        values, best = scores[place, column].topk(min(len(place), self.pre_nms_top_n), sorted=False)
        place, column = place[best], column[best]
        boxes = self.criterion.coder.decode(cell_rows(deltas, 4)[0][place].float(), anchors[place])
        boxes = geometry.clip(boxes, size, self.criterion.plus_one)
        keep = geometry.large_enough(boxes, 0, self.criterion.plus_one)
        return boxes[keep], values[keep], column[keep] + 1


def _tower(channels: int, num_convs: int) -> nn.Sequential:
    return nn.Sequential(*(layer for _ in range(num_convs) for layer in (_conv(channels, channels), nn.ReLU())))


def _conv(in_channels: int, channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
