"""One query for each object: the cheapest assignment, as in DETR (https://arxiv.org/abs/2005.12872) and MDETR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from maskrcnn_benchmark.structures.boxes import cxcywh_to_xyxy, giou

HOPELESS = 1e6  # cost in place of one that is not a number: the loss, not the assignment, tells of it


@dataclass(frozen=True)
class Pairs:
    """M queries of a batch and their objects, picture by picture."""

    picture: Tensor  # (M,) int64
    query: Tensor  # (M,) int64
    target: Tensor  # (M,) int64, number among the objects of all pictures

    def __len__(self) -> int:
        return len(self.query)


@dataclass(frozen=True)
class HungarianMatcher:
    """Weights of what a pair costs: little when the query speaks of the object's tokens and its box is near."""

    class_cost: float = 1.0  # of minus the probability of the object's tokens, summed
    box_cost: float = 5.0  # of the distance of boxes as cx, cy, w, h, summed
    giou_cost: float = 2.0  # of minus the generalised IoU

    @torch.no_grad()
    def __call__(
        self, logits: Tensor, boxes: Tensor, tokens: Tensor, targets: Tensor, counts: Sequence[int]
    ) -> list[Pairs]:
        """The assignment of each decoder layer by itself.

        Args:
            logits: (N, B, Q, C).
            boxes: (N, B, Q, 4) cx, cy, w, h as shares of the picture's sides.
            tokens: (n, C), 1 at tokens of each of the n objects of the batch.
            targets: (n, 4), their boxes.
            counts: Objects of each of the B pictures.

        Returns:
            The pairs of each of the N layers; each object has one as long as there are queries.
        """
        layers = len(logits)
        costs = [
            self._costs(logits[:, i], boxes[:, i], own_tokens, own_boxes).cpu().numpy()
            for i, (own_tokens, own_boxes) in enumerate(zip(tokens.split(counts), targets.split(counts), strict=True))
        ]
        firsts = [sum(counts[:i]) for i in range(len(counts))]
        out = []
        for layer in range(layers):
            found = [linear_sum_assignment(cost[layer]) for cost in costs]
            rows = [
                (torch.full((len(query),), i), torch.from_numpy(query), torch.from_numpy(target) + firsts[i])
                for i, (query, target) in enumerate(found)
            ]
            out.append(Pairs(*(torch.cat(part).to(logits.device) for part in zip(*rows, strict=True))))
        return out

    def _costs(self, logits: Tensor, boxes: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
        """(N, Q, C), (N, Q, 4), (n, C), (n, 4) -> (N, Q, n) of one picture."""
        spoken = logits.softmax(-1) @ tokens.t()
        distance = torch.cdist(boxes.flatten(0, 1), targets, p=1).view_as(spoken)
        overlap = giou(cxcywh_to_xyxy(boxes.flatten(0, 1)), cxcywh_to_xyxy(targets)).view_as(spoken)
        cost = self.box_cost * distance - self.class_cost * spoken - self.giou_cost * overlap
        return cost.nan_to_num(nan=HOPELESS, posinf=HOPELESS, neginf=-HOPELESS)
