"""What two-stage Deformable DETRs are asked in a step of their training, and what counts of their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

import torch
from torch import Tensor

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.modeling.assign.per_class import FocalMatcher
from maskrcnn_benchmark.modeling.criterion.decola import BaselineCriterion, DecolaCriterion, StageCriterion, Weights
from maskrcnn_benchmark.modeling.criterion.federated import FederatedClasses
from maskrcnn_benchmark.modeling.heads.query_outputs import DeformableOutputs
from maskrcnn_benchmark.modeling.interface import Batch, Losses, Peers
from maskrcnn_benchmark.structures import ImageBatch, Target


class Ask(Protocol):
    """From B pictures to all that losses ask for; see ``QueryDetector.ask``."""

    def __call__(self, images: ImageBatch, classes: Tensor | None = None) -> DeformableOutputs: ...


class Lesson(Protocol):
    """A step: what the network is asked, and the losses of its answer."""

    @property
    def federated(self) -> FederatedClasses | None:
        """Draws the classes of a step; None: all count."""
        ...

    def __call__(self, ask: Ask, batch: Batch, peers: Peers) -> Losses: ...


@dataclass(frozen=True)
class DecolaLesson:
    """Both phases of DECOLA.

    Phase 1 asks for the classes that the pictures of the batch have, all of them in every picture; where there are
    none, for one by chance. Phase 2 asks for objects of any class, and draws the classes that their scores are trained
    on, once for all layers; where a teacher has found the boxes, all classes count.

    Args:
        num_classes: That the network knows.
        criterion: Losses.
        federated: Draws classes; None: all count.
        general: How often objects of any class are asked for: 0 in phase 1, 1 in phase 2.
    """

    num_classes: int
    criterion: DecolaCriterion = field(default_factory=DecolaCriterion)
    federated: FederatedClasses | None = None
    general: float = 0.0

    def __call__(self, ask: Ask, batch: Batch, peers: Peers) -> Losses:
        """See :class:`Lesson`; boxes of pictures that have image labels are taken for a teacher's."""
        rng, targets = batch.rng or Random(0), batch.targets
        weak = image_labels(targets, self.num_classes) is not None
        present = torch.cat([target.labels - 1 for target in targets])
        asked = None if self._general(rng, batch.images.pixels, peers) else union_or_one(present, self.num_classes, rng)
        outputs = ask(batch.images, asked)
        counted = None
        if self.federated is not None and not weak and outputs.layers[-1].logits.shape[-1] > 1:
            counted = self.federated(present, self.num_classes, rng)
        return self.criterion(outputs, targets, counted, weak, peers)

    def _general(self, rng: Random, like: Tensor, peers: Peers) -> bool:
        """What this step asks for, the same in all processes."""
        if self.general in (0, 1):
            return self.general == 1
        return bool(peers.gather(like.new_tensor([rng.random()], dtype=torch.float64))[0].item() < self.general)


@dataclass(frozen=True)
class BaselineLesson:
    """BoxSup and Detic: objects of any class are asked for, and every loss draws its own classes.

    Args:
        num_classes: That the network knows.
        criterion: Losses.
        federated: Draws classes; None: all count.
    """

    num_classes: int
    criterion: BaselineCriterion = field(default_factory=BaselineCriterion)
    federated: FederatedClasses | None = None

    def __call__(self, ask: Ask, batch: Batch, peers: Peers) -> Losses:
        """See :class:`Lesson`."""
        rng, federated = batch.rng or Random(0), self.federated
        labels = image_labels(batch.targets, self.num_classes)
        columns = None if labels is None else [own - 1 for own in labels]
        outputs = ask(batch.images)

        def draw(present: Tensor) -> Tensor | None:
            return None if federated is None else federated(present, self.num_classes, rng)

        return self.criterion(outputs, batch.targets, draw, columns, peers)


def image_labels(targets: Sequence[Target], num_classes: int) -> list[Tensor] | None:
    """The classes (K,) from 1 of pictures that only have such labels; None: they have boxes.

    Raises:
        DataError: there are pictures of both kinds, or a class that the network does not know.
    """
    labelled = [target.image_labels for target in targets if target.image_labels is not None]
    if labelled and len(labelled) < len(targets):
        raise DataError(
            f"{_where(targets[0])}: pictures with boxes and pictures with labels only are in one batch: set "
            "DATALOADER.SAMPLER multi_dataset"
        )
    for target in targets:
        labels = target.labels if target.image_labels is None else target.image_labels
        wrong = labels[(labels < 1) | (labels > num_classes)]
        if len(wrong):
            what = "of an object" if target.image_labels is None else "of the picture"
            raise DataError(
                f"{_where(target)}: label {int(wrong[0])} {what}, but the detector knows classes 1 to {num_classes} "
                "(NUM_CLASSES): take the picture out of the annotations, or train with the vocabulary that they are for"
            )
    return labelled or None


def union_or_one(present: Tensor, num_classes: int, rng: Random) -> Tensor:
    """What a batch is asked for: its classes, ascending; where there are none, one by chance.

    Args:
        present: (n,) int64 from 0; one may come more than once.
        num_classes: Classes there are.
        rng: What the draw follows from.
    """
    there = present.unique()
    return there if len(there) else there.new_tensor([rng.randrange(num_classes)])


def build_decola_lesson(cfg: Cfg) -> DecolaLesson:
    """That of ``MODEL.DECOLA``."""
    decola = cfg.MODEL.DECOLA
    criterion = DecolaCriterion(
        _stage(cfg, decola.LOSS_WITHIN_IMAGE),
        _weights(cfg),
        cfg.MODEL.DEFORMABLE_DETR.DEEP_SUPERVISION,
        decola.SELF_LABEL.BOX_LOSS,
    )
    count = cfg.MODEL.DEFORMABLE_DETR.NUM_CLASSES
    return DecolaLesson(count, criterion, build_federated(cfg), decola.PROB_OBJECT_PROMPT)


def build_baseline_lesson(cfg: Cfg) -> BaselineLesson:
    """That of ``MODEL.DEFORMABLE_DETR``; its image-label loss is always that of the largest box, as in the original."""
    criterion = BaselineCriterion(
        _stage(cfg, False),
        _weights(cfg),
        cfg.MODEL.DEFORMABLE_DETR.DEEP_SUPERVISION,
        cfg.DATASETS.WITH_IMAGE_LABELS,
        cfg.MODEL.IMAGE_LABEL.WEIGHT,
    )
    return BaselineLesson(cfg.MODEL.DEFORMABLE_DETR.NUM_CLASSES, criterion, build_federated(cfg))


def build_federated(cfg: Cfg) -> FederatedClasses | None:
    """What draws the classes of a step; None: all count."""
    fed = cfg.MODEL.FED_LOSS
    return FederatedClasses(fed.NUM_CLASSES) if fed.ENABLED else None


def _weights(cfg: Cfg) -> Weights:
    loss = cfg.MODEL.DEFORMABLE_DETR.LOSS
    return Weights(loss.CLS, loss.L1, loss.GIOU)


def _stage(cfg: Cfg, within_picture: bool) -> StageCriterion:
    loss = cfg.MODEL.DEFORMABLE_DETR.LOSS
    matcher = FocalMatcher(loss.CLS, loss.L1, loss.GIOU, loss.FOCAL_ALPHA)
    return StageCriterion(matcher, loss.FOCAL_ALPHA, within_picture)


def _where(target: Target) -> str:
    return target.meta.file or f"picture {target.meta.image_id}"
