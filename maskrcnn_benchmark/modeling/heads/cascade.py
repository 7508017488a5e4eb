"""Second stage of CenterNet2 and Detic: three heads in a row, each on the boxes of the one before (Cai and Vasconcelos,
CVPR 2018), as https://github.com/facebookresearch/Detic and detectron2 compute it and under their names.

Boxes are xyxy in pixels of the network's input; sides do not count a border pixel twice. Labels count from 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_benchmark.layers.ops import batched_nms
from maskrcnn_benchmark.modeling.criterion.cascade import CascadeCriterion
from maskrcnn_benchmark.modeling.criterion.rcnn import Sampled
from maskrcnn_benchmark.modeling.heads.region_masks import RegionMaskHead, mask_loss
from maskrcnn_benchmark.modeling.heads.roi_box import Pooler
from maskrcnn_benchmark.modeling.heads.rpn import Proposals, Size
from maskrcnn_benchmark.modeling.heads.select import Boxes
from maskrcnn_benchmark.modeling.heads.zero_shot import RegionClassifier
from maskrcnn_benchmark.structures import Target
from maskrcnn_benchmark.structures import boxes as geometry


class RegionFeatures(nn.Module):
    """Two fully connected layers over what is pooled."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.fc1 = _linear(inputs, width)
        self.fc2 = _linear(width, width)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, S, S) -> (R, width)."""
        return F.relu(self.fc2(F.relu(self.fc1(pooled.flatten(1)))))


class Predictor(nn.Module):
    """Classes and one box of each proposal; the last column of the classes is the background.

    Args:
        width: Of the features.
        num_classes: Without the background.
        drawn: Whether a step draws its classes; how often each of them is drawn is a buffer, all the same at first.
        weigh: Whether there is a branch that weighs the proposals of a picture against each other for each class.
    """

    freq_weight: Tensor
    bbox_pred: nn.Module

    def __init__(self, width: int, num_classes: int, drawn: bool, weigh: bool) -> None:
        super().__init__()
        self.num_classes, self.drawn = num_classes, drawn
        if drawn:
            self.register_buffer("freq_weight", torch.ones(num_classes))
        self.prop_score = _two_layers(width, num_classes + 1) if weigh else None

    def scores(self, x: Tensor, columns: Tensor | None = None) -> Tensor:
        """(R, width) -> (R, C + 1) logits, or (R, m) of the given classes, int64 from 0."""
        raise NotImplementedError

    def scores_of(self, x: Tensor, rows: Tensor) -> Tensor:
        """(R, width), embeddings (K, E) of unit length -> (R, K + 1) logits of other classes, and of the background."""
        raise ValueError("a predictor with a weight for each class has no scores of others")

    def deltas(self, x: Tensor) -> Tensor:
        """(R, width) -> (R, 4), see BoxCoder."""
        return self.bbox_pred(x)


class PlainPredictor(Predictor):
    """A weight of its own for each class.

    Args:
        width: Of the features.
        num_classes: Without the background.
        prior: Score of a class before any training.
        drawn: See :class:`Predictor`.
        weigh: Likewise.
    """

    def __init__(self, width: int, num_classes: int, prior: float, drawn: bool = False, weigh: bool = False) -> None:
        super().__init__(width, num_classes, drawn, weigh)
        self.cls_score = nn.Linear(width, num_classes + 1)
        self.bbox_pred = nn.Linear(width, 4)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior) / prior))
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.bbox_pred.bias)

    def scores(self, x: Tensor, columns: Tensor | None = None) -> Tensor:
        if columns is None:
            return self.cls_score(x)
        return F.linear(x, self.cls_score.weight[columns], self.cls_score.bias[columns])


class ZeroShotPredictor(Predictor):
    """Classes by their names.

    Args:
        width: Of the features.
        classifier: Of features of that width.
        drawn: See :class:`Predictor`.
        weigh: Likewise.
    """

    def __init__(self, width: int, classifier: RegionClassifier, drawn: bool = False, weigh: bool = False) -> None:
        super().__init__(width, len(classifier.rows) - 1, drawn, weigh)
        self.cls_score = classifier
        self.bbox_pred = _two_layers(width, 4)

    def scores(self, x: Tensor, columns: Tensor | None = None) -> Tensor:
        rows = self.cls_score.rows
        return self.cls_score(x, rows if columns is None else rows[columns])

    def scores_of(self, x: Tensor, rows: Tensor) -> Tensor:
        return self.cls_score(x, torch.cat((rows, self.cls_score.rows[-1:])))


@dataclass(frozen=True)
class BoxLimits:
    """Which boxes are detections.

    Attributes:
        threshold: Of a score; a pair of proposal and class must be above it.
        nms_threshold: IoU, class by class.
        most: Per picture.
        times_proposal: Scores are the root of the class score times the proposal's.
        one_class: A proposal is of its best class alone.
    """

    threshold: float = 0.02
    nms_threshold: float = 0.5
    most: int = 300
    times_proposal: bool = True
    one_class: bool = False


class Cascade(nn.Module):
    """Heads in a row; names as under ``roi_heads.`` of a checkpoint.

    Args:
        pooler: Of all box heads.
        box_head: From what is pooled to features, one per stage.
        box_predictor: From features to classes and boxes, one per stage.
        criterion: Of the training; its coders serve for detection too.
        limits: What counts as a detection.
        mask_pooler: Of the mask head.
        mask_head: None: boxes are all that is found.
        mask_weight: Of its loss.
    """

    def __init__(
        self,
        pooler: Pooler,
        box_head: Sequence[RegionFeatures],
        box_predictor: Sequence[Predictor],
        criterion: CascadeCriterion,
        limits: BoxLimits,
        mask_pooler: Pooler | None = None,
        mask_head: RegionMaskHead | None = None,
        mask_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.box_pooler, self.mask_pooler = pooler, mask_pooler
        self.box_head, self.box_predictor = nn.ModuleList(box_head), nn.ModuleList(box_predictor)
        self.mask_head, self.mask_weight = mask_head, mask_weight
        self.criterion, self.limits = criterion, limits

    @property
    def predictors(self) -> list[Predictor]:
        """One per stage."""
        return list(self.box_predictor)  # type: ignore[arg-type]

    def features(self, stage: int, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Maps and B times (R_i, 4) -> (sum of R_i, width); each stage sends back its share of the gradient."""
        pooled = self.box_pooler(maps, boxes)
        if pooled.requires_grad:
            pooled.register_hook(lambda grad: grad / len(self.box_head))
        return self.box_head[stage](pooled)

    @torch.no_grad()
    def refine(
        self, stage: int, deltas: Tensor, boxes: Sequence[Tensor], sizes: Sequence[Size], keep_empty: bool = True
    ) -> list[Tensor]:
        """The boxes (R_i, 4) of the next stage, clipped to their pictures; those left empty may be dropped."""
        moved = (
            self.criterion.stages[stage]
            .coder.decode(deltas.float(), torch.cat(list(boxes)))
            .split([len(part) for part in boxes])
        )
        clipped = [geometry.clip(part, size) for part, size in zip(moved, sizes, strict=True)]
        if keep_empty:
            return clipped
        return [part[(part[:, 2:] > part[:, :2]).all(1)] for part in clipped]

    def learn(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Proposals],
        targets: Sequence[Target],
        sizes: Sequence[Size],
        rng: Random,
    ) -> dict[str, Tensor]:
        """Losses of all stages, of a draw of each picture's proposals and objects.

        Args:
            maps: The pyramid.
            proposals: Of each picture.
            targets: Of each picture; ``polygons`` are what masks are learnt from.
            sizes: (h, w) of each picture, without padding.
            rng: What the draw of classes follows from.
        """
        losses: dict[str, Tensor] = {}
        first = [self.criterion.stages[0].sample(p.boxes, t) for p, t in zip(proposals, targets, strict=True)]
        parts = first
        for stage, predictor in enumerate(self.predictors):
            boxes = [part.boxes for part in parts]
            x = self.features(stage, maps, boxes)
            sampled, deltas = Sampled.cat(parts), predictor.deltas(x)
            if predictor.drawn:
                columns = self.criterion.columns(sampled.labels, predictor.freq_weight, rng)
            else:
                columns = torch.arange(predictor.num_classes, device=x.device)
            logits = predictor.scores(x, columns)
            losses[f"loss_cls_stage{stage}"] = self.criterion.class_loss(logits, sampled.labels, columns)
            losses[f"loss_box_reg_stage{stage}"] = self.criterion.box_loss(stage, deltas, sampled)
            if self.criterion.image_labels is not None:
                losses[f"image_loss_stage{stage}"] = nothing(x, predictor.prop_score)
            if stage + 1 < len(self.box_head):
                boxes = self.refine(stage, deltas, boxes, sizes, keep_empty=False)
                label = self.criterion.stages[stage + 1].label
                parts = [label(*pair) for pair in zip(boxes, targets, strict=True)]
        return losses | self._mask_loss(maps, first, targets)

    def learn_labels(
        self, maps: Sequence[Tensor], proposals: Sequence[Proposals], targets: Sequence[Target], sizes: Sequence[Size]
    ) -> dict[str, Tensor]:
        """Losses of pictures of which only the classes are known; those of boxes and masks are 0.

        Args:
            maps: The pyramid.
            proposals: Of each picture, best first.
            targets: Of each picture, with ``image_labels``.
            sizes: (h, w) of each picture, without padding.
        """
        rule = self.criterion.image_labels
        if rule is None:
            raise ValueError("a cascade without a loss for image labels cannot be trained on them")
        losses: dict[str, Tensor] = {}
        boxes = [rule.choose(p.boxes, size) for p, size in zip(proposals, sizes, strict=True)]
        for stage, predictor in enumerate(self.predictors):
            x = self.features(stage, maps, boxes)
            counts = [len(part) for part in boxes]
            weighed = () if predictor.prop_score is None else predictor.prop_score(x).split(counts)
            loss = rule(predictor.scores(x).split(counts), boxes, targets, weighed)
            losses[f"image_loss_stage{stage}"] = loss
            losses[f"loss_cls_stage{stage}"] = torch.zeros_like(loss)
            losses[f"loss_box_reg_stage{stage}"] = nothing(x, predictor.bbox_pred)
            boxes = self.refine(stage, predictor.deltas(x.detach()), boxes, sizes, keep_empty=False)
        if self.mask_head is not None:
            losses["loss_mask"] = nothing(maps[0], self.mask_head)
        return losses

    def _mask_loss(
        self, maps: Sequence[Tensor], sampled: Sequence[Sampled], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Of the boxes that have an object with an outline."""
        if self.mask_head is None or self.mask_pooler is None:
            return {}
        shapes = [target.polygons or ((),) * len(target) for target in targets]
        if not any(any(outlines) for outlines in shapes):
            return {"loss_mask": nothing(maps[0], self.mask_head)}
        parts = []
        for part, outlines in zip(sampled, shapes, strict=True):
            drawn = torch.tensor([bool(outline) for outline in (*outlines, ())], device=part.owner.device)
            parts.append(part[(part.labels > 0) & drawn[part.owner.clamp(min=-1)]])
        boxes = [part.boxes for part in parts]
        logits = self.mask_head(self.mask_pooler(maps, boxes), torch.cat([part.labels for part in parts]))
        return {"loss_mask": mask_loss(logits, boxes, [part.owner for part in parts], shapes) * self.mask_weight}

    @torch.no_grad()
    def masks(self, maps: Sequence[Tensor], found: Sequence[Boxes]) -> list[Tensor] | None:
        """Per picture (K, S, S) probabilities for its K detections; None: there is no mask head."""
        if self.mask_head is None or self.mask_pooler is None:
            return None
        boxes, labels = [part[0] for part in found], torch.cat([part[2] for part in found])
        logits = self.mask_head(self.mask_pooler(maps, boxes), labels)
        return list(logits.float().sigmoid().split([len(part) for part in boxes]))

    @torch.no_grad()
    def detect(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Proposals],
        sizes: Sequence[Size],
        rows: Tensor | None = None,
    ) -> list[Boxes]:
        """Per picture boxes clipped to it, scores and labels, best first; of the classes of ``rows`` (K, E), if any."""
        boxes = [part.boxes for part in proposals]
        total = torch.zeros((), device=maps[0].device)
        for stage, predictor in enumerate(self.predictors):
            x = self.features(stage, maps, boxes)
            logits = predictor.scores(x) if rows is None else predictor.scores_of(x, rows)
            total = total + logits.float().sigmoid()
            boxes = self.refine(stage, predictor.deltas(x), boxes, sizes)
        scores = (total / len(self.box_head)).split([len(part) for part in boxes])
        return [self._choose(*rows) for rows in zip(boxes, scores, proposals, strict=True)]

    def _choose(self, boxes: Tensor, scores: Tensor, proposals: Proposals) -> Boxes:
        """The detections of a picture from (R, 4) boxes and (R, C + 1) scores."""
        if self.limits.times_proposal:
            scores = (scores * proposals.scores[:, None]).sqrt()
        scores = scores[:, :-1]
        if self.limits.one_class:
            scores = scores * (scores == scores.amax(1, keepdim=True))
        row, column = (scores > self.limits.threshold).nonzero(as_tuple=True)
        found = (boxes[row], scores[row, column], column + 1)
        keep = batched_nms(*found, self.limits.nms_threshold)[: self.limits.most]
        return found[0][keep], found[1][keep], found[2][keep]


def nothing(like: Tensor, module: nn.Module | None) -> Tensor:
    """A loss of 0 that all parameters of a module have part in, so that several processes can wait for each other."""
    zero = like.new_zeros((), dtype=torch.float32)
    return zero if module is None else zero + sum(parameter.sum() * 0 for parameter in module.parameters())


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    nn.init.zeros_(layer.bias)
    return layer


def _two_layers(width: int, outputs: int) -> nn.Sequential:
    last = nn.Linear(width, outputs)
    nn.init.normal_(last.weight, std=0.001)
    nn.init.zeros_(last.bias)
    return nn.Sequential(_linear(width, width), nn.ReLU(), last)
