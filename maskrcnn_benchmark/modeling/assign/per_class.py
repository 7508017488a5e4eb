"""One query for each object of a Deformable DETR (https://arxiv.org/abs/2010.04159), where every class is a question of
its own; and DECOLA's assignment (https://github.com/janghyuncho/DECOLA), where queries belong to classes and only those
of an object's class may have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from maskrcnn_benchmark.modeling.assign.hungarian import HOPELESS, Pairs
from maskrcnn_benchmark.modeling.heads.query_outputs import QueryOutputs
from maskrcnn_benchmark.structures import Target
from maskrcnn_benchmark.structures.boxes import cxcywh_to_xyxy, giou, xyxy_to_cxcywh

EPS = 1e-8  # keeps logarithms finite


@dataclass(frozen=True)
class Objects:
    """The n objects of a batch, picture by picture."""

    labels: Tensor  # (n,) int64 from 0
    boxes: Tensor  # (n, 4) cx, cy, w, h as shares of the picture's sides
    counts: tuple[int, ...]  # per picture

    @classmethod
    def of(cls, targets: Sequence[Target]) -> Objects:
        """Those of targets whose labels count from 1 and whose boxes are in pixels of the network's input."""
        boxes = [xyxy_to_cxcywh(t.boxes) / t.boxes.new_tensor([*reversed(t.meta.size)] * 2) for t in targets]
        labels = [target.labels - 1 for target in targets]
        return cls(torch.cat(labels), torch.cat(boxes), tuple(map(len, targets)))

    @property
    def classless(self) -> Objects:
        """The same as objects of one class."""
        return Objects(torch.zeros_like(self.labels), self.boxes, self.counts)


@dataclass(frozen=True)
class FocalMatcher:
    """Weights of what a pair costs: little where the query is sure of the object's class and its box is near."""

    class_cost: float = 2.0  # of the focal loss that the right answer saves
    box_cost: float = 5.0  # of the distance of boxes as cx, cy, w, h, summed
    giou_cost: float = 2.0  # of minus the generalised IoU
    alpha: float = 0.25  # of the focal loss, weight of the right answer
    gamma: float = 2.0

    @torch.no_grad()
    def __call__(self, outputs: QueryOutputs, objects: Objects, query_class: Tensor | None = None) -> Pairs:
        """The cheapest assignment in each picture.

        Args:
            outputs: Of the queries; C columns of classes, or one that speaks of the query's own class.
            objects: Of the same pictures.
            query_class: (Q,) int64, the class that each query belongs to; None: any query may have any object.

        Returns:
            Per picture in the order of the queries; with ``query_class`` class by class, the lowest first. An object
            without a partner left, or without a query of its class, has none.
        """
        labels = objects.labels.tolist()
        rows_of = None if query_class is None else _places(query_class)
        found: list[tuple[int, Tensor | None, Tensor, Tensor]] = []  # picture, queries, objects, cost
        first = 0
        for picture, count in enumerate(objects.counts):
            logits, boxes = outputs.logits[picture].float(), outputs.boxes[picture].float()
            for rows, own in _questions(labels[first : first + count], rows_of):
                mine = torch.tensor(own, dtype=torch.int64, device=logits.device) + first
                columns = objects.labels[mine] if rows is None else torch.zeros_like(mine)
                chosen = (logits, boxes) if rows is None else (logits[rows], boxes[rows])
                cost = self._costs(chosen[0][:, columns], chosen[1], objects.boxes[mine])
                found.append((picture, rows, mine, cost))
            first += count
        return _solve(found, outputs.logits.device)

    def _costs(self, logits: Tensor, boxes: Tensor, truth: Tensor) -> Tensor:
        """(Q, n) logits of each object's class, (Q, 4), (n, 4) -> (Q, n)."""
        p = logits.sigmoid()
        yes = self.alpha * (1 - p) ** self.gamma * -(p + EPS).log()
        no = (1 - self.alpha) * p**self.gamma * -(1 - p + EPS).log()
        distance = torch.cdist(boxes, truth, p=1)
        overlap = giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(truth))
        cost = self.box_cost * distance + self.class_cost * (yes - no) - self.giou_cost * overlap
        return cost.nan_to_num(nan=HOPELESS, posinf=HOPELESS, neginf=-HOPELESS)


def _places(query_class: Tensor) -> dict[int, Tensor]:
    """Class -> its queries, ascending."""
    order = query_class.argsort(stable=True)
    classes, counts = query_class[order].unique_consecutive(return_counts=True)
    return dict(zip(classes.tolist(), order.split(counts.tolist()), strict=True))


def _questions(labels: Sequence[int], rows_of: dict[int, Tensor] | None) -> list[tuple[Tensor | None, list[int]]]:
    """Queries (None: all) and objects of a picture that are assigned to each other."""
    if rows_of is None:
        return [(None, list(range(len(labels))))] if labels else []
    present = sorted(set(labels) & rows_of.keys())
    return [(rows_of[name], [place for place, label in enumerate(labels) if label == name]) for name in present]


def _solve(found: Sequence[tuple[int, Tensor | None, Tensor, Tensor]], device: torch.device) -> Pairs:
    """The pairs of all questions; costs come to the CPU only after all are on their way."""
    pictures, queries, targets = [], [], []
    for picture, rows, mine, cost in found:
        query, target = (torch.from_numpy(side).to(device) for side in linear_sum_assignment(cost.cpu().numpy()))
        queries.append(query if rows is None else rows[query])
        targets.append(mine[target])
        pictures.append(torch.full_like(query, picture))
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    return Pairs(*(torch.cat([nothing, *parts]) for parts in (pictures, queries, targets)))
