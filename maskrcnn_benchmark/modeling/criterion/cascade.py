"""Losses of CenterNet2's second stage as Detic has them (https://github.com/facebookresearch/Detic), under its names.

Sums are divided by counts of this process alone. All is computed in float32 at least, also under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F

from maskrcnn_benchmark.modeling.criterion.federated import draw_classes
from maskrcnn_benchmark.modeling.criterion.rcnn import BoxCriterion, Sampled
from maskrcnn_benchmark.modeling.criterion.weak import SELECT, image_label_loss
from maskrcnn_benchmark.structures import Target
from maskrcnn_benchmark.structures.boxes import area, clip

WEIGHED = (
    "wsddn"  # what the loss is called whose proposals are weighed against each other (Bilen and Vedaldi, CVPR 2016)
)
ALMOST = 1e-10  # scores of a picture are kept so far from 0 and 1


@dataclass(frozen=True)
class ImageLabels:
    """How pictures are trained on whose classes are known, and not where they are.

    Attributes:
        loss: A name in :data:`SELECT`, or :data:`WEIGHED`.
        weight: In the total.
        proposals: The best so many of a picture are chosen from.
        picture_box: Sides of one more proposal, the middle of the picture, as a share of its own; None: there is none.
    """

    loss: str = "max_size"
    weight: float = 0.1
    proposals: int = 128
    picture_box: float | None = None

    def choose(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Of proposals (P, 4), best first, those that the first stage looks at."""
        chosen = clip(boxes[: self.proposals], size)
        if self.picture_box is None:
            return chosen
        height, width = size
        margin = (1 - self.picture_box) / 2
        low, high = (width * margin, height * margin), (width * (1 - margin), height * (1 - margin))
        return torch.cat((chosen, chosen.new_tensor([[*low, *high]])))

    def __call__(
        self, logits: Sequence[Tensor], boxes: Sequence[Tensor], targets: Sequence[Target], weighed: Sequence[Tensor]
    ) -> Tensor:
        """Mean over B pictures of a stage's losses.

        Args:
            logits: B times (R_i, C + 1).
            boxes: B times (R_i, 4).
            targets: Their ``image_labels`` count from 1.
            weighed: B times (R_i, C + 1), of the branch that weighs proposals; none where there is no such branch.
        """
        total = logits[0].sum() * 0
        for i, (rows, part, target) in enumerate(zip(logits, boxes, targets, strict=True)):
            if not len(rows) or target.image_labels is None:
                continue
            columns = target.image_labels - 1
            if self.loss == WEIGHED:
                total = total + weighed_loss(rows.float(), weighed[i].float(), columns)
            else:
                areas = area(part)[: max(1, len(part) - 1)]  # the last one is never the largest, as in the original
                total = total + image_label_loss(rows.float(), areas, columns, SELECT[self.loss])
        return total / len(logits) * self.weight


def weighed_loss(logits: Tensor, weights: Tensor, columns: Tensor) -> Tensor:
    """Mean over K labels of how far the picture's scores, (R, C + 1) added up by their weights, are from each."""
    if not len(columns):
        return (logits.sum() + weights.sum()) * 0
    scores = (logits.sigmoid() * weights.softmax(0)).sum(0).clamp(ALMOST, 1 - ALMOST)
    wanted = F.one_hot(columns, len(scores)).to(scores)
    return F.binary_cross_entropy(scores.expand_as(wanted), wanted)


@dataclass(frozen=True)
class CascadeCriterion:
    """Which boxes each stage is trained on, and the losses of their classes.

    Attributes:
        stages: Of the boxes; the first one also says how many proposals of a picture are drawn.
        classes: That a step is trained on, where predictors say how often each is drawn.
        image_labels: None: pictures without boxes are not trained on.
    """

    stages: Sequence[BoxCriterion]
    classes: int = 50
    image_labels: ImageLabels | None = None

    def columns(self, labels: Tensor, weights: Tensor, rng: Random) -> Tensor:
        """(m,) int64 from 0, the classes that count where the labels (R,) are there; background counts as one."""
        background = int((labels == 0).any())
        return draw_classes(labels[labels > 0] - 1, weights.cpu(), self.classes - background, rng)

    @staticmethod
    def class_loss(logits: Tensor, labels: Tensor, columns: Tensor) -> Tensor:
        """Binary cross-entropy of (R, m) logits of some classes, summed over them, mean over (R,) labels from 1."""
        wanted = (labels[:, None] - 1 == columns).to(torch.float32)
        return F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="sum") / max(1, len(labels))

    def box_loss(self, stage: int, deltas: Tensor, sampled: Sampled) -> Tensor:
        """L1 of the (R, 4) deltas of the boxes that have an object, added up and divided by the number of all."""
        objects = sampled.labels > 0
        return self.stages[stage].box_loss(deltas[objects], sampled[objects]) / max(1, len(deltas))
