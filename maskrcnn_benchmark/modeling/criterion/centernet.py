"""Losses of CenterNet's proposals, as https://github.com/xingyizhou/CenterNet2 computes them and under its names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn_benchmark.modeling.assign.centernet import Cells, CenterAssigner
from maskrcnn_benchmark.modeling.interface import ALONE, Peers


class CenterCriterion:
    """Focal loss of the heat map, generalised IoU of the boxes.

    Args:
        assigner: From objects to targets.
        alpha: Weight of the peaks; the other cells have 1 - alpha.
        beta: How much less a warm cell counts as a mistake.
        gamma: How much less an answer counts the better it is.
        clamp: Scores are kept so far from 0 and 1.
        ignored_from: Other cells with a score from here on do not count; 0 or less: all do.
        peak_weight: Of the peaks' loss.
        other_weight: Of the other cells' loss.
        box_weight: Of the boxes' loss.
    """

    def __init__(
        self,
        assigner: CenterAssigner,
        alpha: float = 0.25,
        beta: float = 4,
        gamma: float = 2,
        clamp: float = 1e-4,
        ignored_from: float = -1,
        peak_weight: float = 1,
        other_weight: float = 1,
        box_weight: float = 2,
    ) -> None:
        self.assigner, self.clamp, self.ignored_from = assigner, clamp, ignored_from
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.peak_weight, self.other_weight, self.box_weight = peak_weight, other_weight, box_weight

    def __call__(
        self, logits: Tensor, reach: Tensor, cells: Cells, boxes: Sequence[Tensor], peers: Peers = ALONE
    ) -> dict[str, Tensor]:
        """Losses of B pictures.

        Args:
            logits: (B, M) of the heat map.
            reach: (B, M, 4) distances to left, top, right and bottom, in strides.
            cells: All M of them.
            boxes: B times (N_i, 4) xyxy, in pixels of the network's input.
            peers: The processes that share the batch; sums are divided by the mean of their counts.
        """
        targets = [self.assigner(cells, part) for part in boxes]
        peaks = torch.cat([logits[i, target.peaks] for i, target in enumerate(targets)])
        mine = torch.cat([reach[i, target.cells] for i, target in enumerate(targets)])
        counts = logits.new_tensor([len(peaks), len(mine)], dtype=torch.float32)
        num_peaks, num_boxes = peers.mean(counts).clamp(min=1)
        score = self._score(peaks)
        yes = -(score.log() * (1 - score) ** self.gamma).sum() * self.alpha
        no = self._others(logits, torch.stack([target.heat for target in targets])) * (1 - self.alpha)
        return {
            "loss_centernet_loc": box_loss(mine, torch.cat([t.boxes for t in targets])) / num_boxes * self.box_weight,
            "loss_centernet_agn_pos": self.peak_weight * yes / num_peaks,
            "loss_centernet_agn_neg": self.other_weight * no / num_peaks,
        }

    def _score(self, logits: Tensor) -> Tensor:
        return logits.float().sigmoid().clamp(self.clamp, 1 - self.clamp)

    def _others(self, logits: Tensor, heat: Tensor) -> Tensor:
        """Sum over all cells, which count the less the warmer they are."""
        score = self._score(logits)
        loss = -(1 - score).log() * score**self.gamma * (1 - heat) ** self.beta
        if self.ignored_from > 0:
            loss = loss * (score < self.ignored_from)
        return loss.sum()


def box_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Sum of 1 - GIoU of boxes around the same point, (R, 4) distances to left, top, right and bottom.

    One is added to intersection and union, and not to the hull.
    """
    found = found.float()
    shared = torch.minimum(found, wanted)
    hull = torch.maximum(found, wanted)
    both, whole = (_area(reach) for reach in (shared, hull))
    union = _area(found) + _area(wanted) - both
    giou = (both + 1) / (union + 1) - (whole - union) / whole
    return (1 - giou).sum()


def _area(reach: Tensor) -> Tensor:
    return (reach[:, 0] + reach[:, 2]) * (reach[:, 1] + reach[:, 3])
