"""Losses of two-stage Deformable DETRs: DECOLA (Cho and Krähenbühl, CVPR 2024, https://github.com/janghyuncho/DECOLA),
and the open-vocabulary baselines that it is measured against; each under its name there.

Sums are divided by the number of objects, averaged over all processes. All is computed in float32 at least, also under
autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from maskrcnn_benchmark.layers.losses import sigmoid_focal_loss
from maskrcnn_benchmark.modeling.assign.hungarian import Pairs
from maskrcnn_benchmark.modeling.assign.per_class import FocalMatcher, Objects
from maskrcnn_benchmark.modeling.criterion.weak import SELECT, image_labels_loss
from maskrcnn_benchmark.modeling.heads.query_outputs import DeformableOutputs, QueryOutputs
from maskrcnn_benchmark.modeling.interface import ALONE, Losses, Peers
from maskrcnn_benchmark.structures import Target
from maskrcnn_benchmark.structures.boxes import cxcywh_to_xyxy, giou_of_pairs

WEAK = "_weak_data"  # ending of the losses of boxes that a teacher found
BOXES = ("loss_bbox", "loss_giou")

Draw = Callable[[Tensor], "Tensor | None"]
"""Classes that are there (n,), from 0 -> classes that count in a loss (m,); None: all."""


@dataclass(frozen=True)
class Weights:
    """What each kind of loss is multiplied with in the total."""

    loss_ce: float = 2.0
    loss_bbox: float = 5.0
    loss_giou: float = 2.0


@dataclass(frozen=True)
class StageCriterion:
    """Losses of one stage: of the candidates, or of the queries after one decoder layer.

    Args:
        matcher: Says which query has which object.
        alpha: Of the focal loss, weight of the ones.
        within_picture: Queries of a class that their picture has no object of do not count.
    """

    matcher: FocalMatcher = field(default_factory=FocalMatcher)
    alpha: float = 0.25
    within_picture: bool = False

    def __call__(
        self,
        outputs: QueryOutputs,
        objects: Objects,
        count: Tensor,
        classes: Tensor | None = None,
        query_class: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Pairs]:
        """Losses, and the pairs they come from.

        Args:
            outputs: Of the queries.
            objects: Of the same pictures.
            count: What sums are divided by.
            classes: (m,) int64, columns of the logits that count; None: all.
            query_class: (Q,) int64, where each query speaks of its own class alone.
        """
        pairs = self.matcher(outputs, objects, query_class)
        logits, boxes = outputs.logits.float(), outputs.boxes.float()
        labels = objects.labels[pairs.target] if query_class is None else torch.zeros_like(pairs.target)
        counted = torch.arange(logits.shape[-1], device=logits.device) if classes is None else classes
        chosen = logits if classes is None else logits[..., classes]
        wanted = torch.zeros_like(chosen)
        wanted[pairs.picture, pairs.query] = (labels[:, None] == counted).to(chosen)
        focal = sigmoid_focal_loss(chosen, wanted, self.alpha)
        if self.within_picture and query_class is not None:
            focal = focal * _own_classes(objects, query_class)[..., None]
        own, true = boxes[pairs.picture, pairs.query], objects.boxes[pairs.target]
        overlap = giou_of_pairs(cxcywh_to_xyxy(own), cxcywh_to_xyxy(true))
        sums = {"loss_ce": focal.sum(), "loss_bbox": (own - true).abs().sum(), "loss_giou": (1 - overlap).sum()}
        return {name: value / count for name, value in sums.items()}, pairs


@dataclass(frozen=True)
class DecolaCriterion:
    """Losses of DECOLA's both phases.

    Args:
        stage: Of a single stage.
        weights: Of the losses, the same for all stages.
        every_layer: Whether earlier decoder layers have losses too, named ``loss_ce_0`` and so on.
        weak_boxes: Whether boxes that a teacher found are learnt, or only their classes.
    """

    stage: StageCriterion = field(default_factory=StageCriterion)
    weights: Weights = field(default_factory=Weights)
    every_layer: bool = True
    weak_boxes: bool = True

    def __call__(
        self,
        outputs: DeformableOutputs,
        targets: Sequence[Target],
        classes: Tensor | None = None,
        weak: bool = False,
        peers: Peers = ALONE,
    ) -> Losses:
        """Losses of a batch; those of boxes by hand and of boxes by a teacher both have their names in every batch.

        Where queries belong to classes, so do their objects, in both stages. Where they do not, the first stage learns
        whether there is an object, and ``class_error`` tells what percentage of objects the last layer takes for
        another class.

        Args:
            outputs: Of the network.
            targets: Boxes in pixels of the network's input.
            classes: (m,) int64 from 0, the only ones that count where queries have scores of all classes.
            weak: The boxes are a teacher's.
            peers: The processes that share the batch.
        """
        with torch.autocast(outputs.first_stage.logits.device.type, enabled=False):
            objects = Objects.of(targets)
            count = objects_per_process(objects, peers)
            terms: dict[str, Tensor] = {}
            metrics: dict[str, Tensor] = {}
            for ending, layer in layers_of(outputs, self.every_layer):
                own = outputs.query_class if layer.logits.shape[-1] == 1 else None
                found, pairs = self.stage(layer, objects, count, None if own is not None else classes, own)
                terms |= _named(found, ending)
                if not ending and outputs.query_class is None:
                    metrics["class_error"] = class_error(layer, objects, pairs)
            owner = outputs.first_stage_class
            candidates = objects.classless if owner is None else objects
            terms |= _named(self.stage(outputs.first_stage, candidates, count, query_class=owner)[0], "_enc")
        return self._both(terms, metrics, weak)

    def _both(self, terms: dict[str, Tensor], metrics: dict[str, Tensor], weak: bool) -> Losses:
        """The losses under the names of their kind of boxes, and zeros under those of the other kind."""
        zero = next(iter(terms.values())).new_zeros(())
        nothing = dict.fromkeys(terms, zero)
        by_hand, by_teacher = (nothing, terms) if weak else (terms, nothing)
        weights = {name: getattr(self.weights, _kind(name)) for name in terms}
        weak_weights = {
            f"{name}{WEAK}": 0.0 if _kind(name) in BOXES and not self.weak_boxes else weight
            for name, weight in weights.items()
        }
        everything = {**by_hand, **{f"{name}{WEAK}": value for name, value in by_teacher.items()}}
        return Losses(everything, {**weights, **weak_weights}, metrics)


@dataclass(frozen=True)
class BaselineCriterion:
    """Losses of the open-vocabulary Deformable DETR, and Detic's of pictures that only have labels.

    Its first stage has a score per class, but only the first one learns of objects, whatever their class.

    Args:
        stage: Of a single stage.
        weights: Of the losses, the same for all stages.
        every_layer: Whether earlier decoder layers have losses too, named ``loss_ce_0`` and so on.
        image_labels: Whether there are pictures that only have labels; of those ``loss_image`` is learnt, and that
            there are no objects, as in the original.
        image_weight: Of that loss.
    """

    stage: StageCriterion = field(default_factory=StageCriterion)
    weights: Weights = field(default_factory=Weights)
    every_layer: bool = True
    image_labels: bool = False
    image_weight: float = 0.1

    def __call__(
        self,
        outputs: DeformableOutputs,
        targets: Sequence[Target],
        draw: Draw,
        labels: Sequence[Tensor] | None = None,
        peers: Peers = ALONE,
    ) -> Losses:
        """Losses of a batch.

        Args:
            outputs: Of the network.
            targets: Boxes in pixels of the network's input.
            draw: Which classes count, asked anew for every layer and for the first stage.
            labels: Per picture (K,) int64 from 0; None: boxes are known instead.
            peers: The processes that share the batch.
        """
        with torch.autocast(outputs.first_stage.logits.device.type, enabled=False):
            objects = Objects.of(targets)
            count = objects_per_process(objects, peers)
            terms: dict[str, Tensor] = {}
            metrics: dict[str, Tensor] = {}
            for ending, layer in layers_of(outputs, self.every_layer):
                found, pairs = self.stage(layer, objects, count, draw(objects.labels))
                terms |= _named(found, ending)
                if not ending:
                    metrics["class_error"] = class_error(layer, objects, pairs)
            candidates = objects.classless
            counted = draw(candidates.labels.new_zeros(1))
            if counted is not None:  # as released, the first stage has the classes of LVIS, whatever the vocabulary
                counted = counted[counted < outputs.first_stage.logits.shape[-1]]
            terms |= _named(self.stage(outputs.first_stage, candidates, count, counted)[0], "_enc")
            if self.image_labels:
                terms["loss_image"] = self._labels(outputs, labels)
        weights = {name: getattr(self.weights, _kind(name)) for name in terms if name != "loss_image"}
        return Losses(terms, {**weights, "loss_image": self.image_weight}, metrics)

    def _labels(self, outputs: DeformableOutputs, labels: Sequence[Tensor] | None) -> Tensor:
        if labels is None:
            return outputs.first_stage.boxes.new_zeros((), dtype=torch.float32)
        select = SELECT["max_size"]  # as released, whatever the rule of the other detectors is
        layers = [
            image_labels_loss(o.logits.float(), o.boxes[..., 2:].prod(-1), labels, select) for o in outputs.layers
        ]
        return torch.stack(layers).sum()


def objects_per_process(objects: Objects, peers: Peers) -> Tensor:
    """What sums are divided by: the mean over the processes, at least 1."""
    return peers.mean(objects.boxes.new_tensor(float(len(objects.labels)))).clamp(min=1)


def layers_of(outputs: DeformableOutputs, every_layer: bool) -> list[tuple[str, QueryOutputs]]:
    """Ending of the names, and answers, of each layer that has losses: the last one first."""
    earlier = [(f"_{number}", layer) for number, layer in enumerate(outputs.layers[:-1])]
    return [("", outputs.layers[-1]), *(earlier if every_layer else [])]


def class_error(outputs: QueryOutputs, objects: Objects, pairs: Pairs) -> Tensor:
    """Percentage of objects that their query takes for another class; 100 without objects."""
    guess = outputs.logits.detach()[pairs.picture, pairs.query].argmax(-1)
    right = (guess == objects.labels[pairs.target]).sum() / max(1, len(pairs))
    return 100 - 100 * right


def _own_classes(objects: Objects, query_class: Tensor) -> Tensor:
    """(B, Q) bool: the picture has an object of the query's class."""
    return torch.stack([torch.isin(query_class, labels) for labels in objects.labels.split(objects.counts)])


def _named(found: dict[str, Tensor], ending: str) -> dict[str, Tensor]:
    return {f"{name}{ending}": value for name, value in found.items()}


def _kind(name: str) -> str:
    """The attribute of :class:`Weights` for a name with or without an ending."""
    return "_".join(name.split("_")[:2])
