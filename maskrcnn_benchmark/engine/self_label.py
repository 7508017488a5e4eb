"""Boxes for pictures of which only the classes are known, found by DECOLA when it is asked for just these classes (Cho
and Krähenbühl, CVPR 2024, https://github.com/janghyuncho/DECOLA), or, off-line, by the baseline it is compared with.

A teacher has weights of its own, from a file: they are in no checkpoint of the student, and nothing trains them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from maskrcnn_benchmark.checkpoint.io import find_weights, load_weights
from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.engine.vocabulary import refuse_other_embeddings
from maskrcnn_benchmark.errors import ConfigError, WeightsError
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.criterion.lessons import image_labels
from maskrcnn_benchmark.modeling.detectors.decola import Decola
from maskrcnn_benchmark.modeling.detectors.deformable_detr import QueryDetector
from maskrcnn_benchmark.modeling.interface import Batch
from maskrcnn_benchmark.structures import ImageBatch, Target
from maskrcnn_benchmark.structures.boxes import cxcywh_to_xyxy

logger = logging.getLogger(__name__)

QUERIES = 300  # for each class, whatever the student has
SMALLEST = 1e-5  # side of a box that is one, of the picture's
WEIGHT = "MODEL.DECOLA.SELF_LABEL.TEACHER_WEIGHT"
ENABLED = "MODEL.DECOLA.SELF_LABEL.ENABLED"


@dataclass(frozen=True)
class Choice:
    """Which of a class' boxes is taken.

    Attributes:
        select: "max-score", or "max-size", the largest.
        min_area: Boxes are larger, of the picture's area; 0: of any size.
        min_score: And have at least this score.
    """

    select: str = "max-score"
    min_area: float = 0.0
    min_score: float = 0.0

    def best(self, scores: Tensor, boxes: Tensor) -> int | None:
        """The number of the box among (n,) scores and (n, 4) boxes as in QueryOutputs; None: no box will do."""
        areas = boxes[:, 2:].prod(-1)
        fit = scores >= self.min_score
        if self.min_area > 0:
            fit &= areas > self.min_area
        if not fit.any():
            return None
        place = int((scores if self.select == "max-score" else areas).masked_fill(~fit, -1).argmax())
        return place if bool((boxes[place, 2:] > SMALLEST).all()) else None


@dataclass(frozen=True)
class Found:
    """Boxes of a picture, at most one for each of its classes."""

    labels: Tensor  # (n,) int64 from 1, ascending
    boxes: Tensor  # (n, 4) xyxy, shares of the picture's sides; they may reach beyond them
    scores: Tensor  # (n,)


def choose(logits: Tensor, boxes: Tensor, owner: Tensor, labels: Sequence[Tensor], choice: Choice) -> list[Found]:
    """The box of each class of each of B pictures.

    Args:
        logits: (B, Q, 1).
        boxes: (B, Q, 4) as in QueryOutputs.
        owner: (Q,) int64 from 1, the class that each query was made for.
        labels: Per picture (K,) int64 from 1.
        choice: Which box is taken.
    """
    out = []
    for scores, own, asked in zip(logits[..., 0].float().sigmoid(), boxes.float(), labels, strict=True):
        chosen = []
        for label in asked.unique().tolist():
            rows = (owner == label).nonzero().squeeze(1)
            place = choice.best(scores[rows], own[rows])
            if place is not None:
                chosen.append((label, int(rows[place])))
        names, queries = (torch.tensor(part, dtype=torch.int64, device=own.device) for part in _columns(chosen))
        out.append(Found(names, cxcywh_to_xyxy(own[queries]), scores[queries]))
    return out


class Teacher:
    """Finds the boxes of a batch.

    Args:
        detector: Phase 1, whose queries are then for the classes of a batch, or the baseline, whose queries for
            objects of any class are judged by these classes. It stays in evaluation mode, and in no module.
        num_classes: That it knows.
        choice: Which box of a class is taken.
        digest: Of the file of its weights.
    """

    def __init__(self, detector: QueryDetector, num_classes: int, choice: Choice, digest: str = "") -> None:
        self.detector = detector.eval().requires_grad_(False)
        self.num_classes, self.choice, self.digest = num_classes, choice, digest

    @torch.no_grad()
    def find(self, images: ImageBatch, labels: Sequence[Tensor]) -> list[Found]:
        """Boxes of pictures; each is searched for the classes of all of them, which changes what phase 1 finds.

        Args:
            images: As the network gets them.
            labels: Per picture (K,) int64 from 1.
        """
        asked = torch.cat(list(labels)).unique()
        rows = self.detector.classifiers[0].rows[asked - 1]
        scene = self.detector.detr.encode(images)
        with self.detector.detr.precision(images.pixels):
            find = self.detector.find_prompted if isinstance(self.detector, Decola) else self.detector.find
            logits, boxes, owner = find(scene, rows)
        if owner is None:  # each query speaks of all classes: as many queries, one for each
            _, queries, classes = logits.shape
            owner = torch.arange(classes, device=logits.device).repeat(queries)
            logits, boxes = logits.flatten(1)[..., None], boxes.repeat_interleave(classes, dim=1)
        return choose(logits, boxes, asked[owner], labels, self.choice)

    def __call__(self, batch: Batch) -> Batch:
        """A batch whose pictures have boxes, where only their labels were known; any other as it is.

        Raises:
            DataError: a label that the network has no class for.
        """
        labels = image_labels(batch.targets, self.num_classes)
        if labels is None or not any(map(len, labels)):
            return batch
        found = self.find(batch.images, labels)
        return replace(batch, targets=[_boxed(*pair) for pair in zip(batch.targets, found, strict=True)])


def build_teacher(cfg: Cfg, device: torch.device) -> Teacher | None:
    """The teacher of an on-line phase 2; None where nothing asks for one.

    Raises:
        ConfigError: no file is named.
        WeightsError: it is not there, or its weights are of another network.
    """
    name = teacher_weights(cfg)
    return None if name is None else load_teacher(cfg, name, device)


def load_teacher(cfg: Cfg, name: str, device: torch.device) -> Teacher:
    """The network of a config as a teacher, with the weights of a file.

    Raises:
        WeightsError: it is not there, or its weights are of another network.
    """
    options = cfg.MODEL.DECOLA.SELF_LABEL
    wide = {"MODEL.DECOLA.QUERIES_PER_PROMPT": QUERIES, "MODEL.DECOLA.MULTI_CLASS_SECOND_STAGE": False}
    detector = build_detector(cfg.override(wide, "the teacher"))
    assert isinstance(detector, QueryDetector)
    report = load_weights(detector, _find(name))
    refuse_other_embeddings(cfg, detector, report)
    logger.info("boxes for image labels come from %s", report.path)
    choice = Choice(options.SELECT, options.MIN_AREA, options.MIN_SCORE)
    return Teacher(detector.to(device), cfg.MODEL.DEFORMABLE_DETR.NUM_CLASSES, choice, report.digest)


def check_teacher(cfg: Cfg) -> None:
    """That the weights of the teacher are there, where a config needs one.

    Raises:
        ConfigError, WeightsError: as :func:`build_teacher`.
    """
    if (name := teacher_weights(cfg)) is not None:
        logger.info("%s: boxes for image labels come from %s", WEIGHT, _find(name))


def _find(name: str) -> Path:
    """The file of the teacher.

    Raises:
        WeightsError: it is not there.
    """
    try:
        return find_weights(name)
    except WeightsError as error:
        raise WeightsError(f"{WEIGHT}, the teacher of on-line self-labelling: {error}") from None


def teacher_weights(cfg: Cfg) -> str | None:
    """The file of the teacher that a config needs; None: it needs none.

    Raises:
        ConfigError: it needs one, and names none, or says that there is none.
    """
    wanted = cfg.DATASETS.WITH_IMAGE_LABELS and "image" in cfg.DATALOADER.DATASET_ANN
    if cfg.MODEL.META_ARCHITECTURE != "DecolaDeformableDETR" or not wanted:
        return None
    if not cfg.MODEL.DECOLA.SELF_LABEL.ENABLED:
        raise ConfigError(
            f"{ENABLED} False ({cfg.source(ENABLED)}): DATALOADER.DATASET_ANN has image, pictures with labels only, "
            "which would be learnt as empty ones without a teacher's boxes: set it to True"
        )
    name: str = cfg.MODEL.DECOLA.SELF_LABEL.TEACHER_WEIGHT or cfg.MODEL.WEIGHT
    if not name:
        raise ConfigError(
            f"{WEIGHT} '' ({cfg.source(WEIGHT)}): DATASETS.TRAIN has pictures with labels only, whose boxes a trained "
            "phase 1 finds: give its weights there, or as MODEL.WEIGHT"
        )
    return name


def _columns(rows: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [first for first, _ in rows], [second for _, second in rows]


def _boxed(target: Target, found: Found) -> Target:
    height, width = target.meta.size
    sides = found.boxes.new_tensor([width, height, width, height])
    return replace(target, boxes=found.boxes * sides, labels=found.labels)
