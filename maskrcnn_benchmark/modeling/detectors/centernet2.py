"""CenterNet2 (Zhou et al., https://arxiv.org/abs/2103.07461) with the class scores, the losses and the masks of Detic
(Zhou et al., ECCV 2022, https://github.com/facebookresearch/Detic), as DECOLA fine-tunes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from random import Random

import torch
from torch import Tensor, nn

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.assign.box_coder import BoxCoder
from maskrcnn_benchmark.modeling.assign.centernet import CenterAssigner
from maskrcnn_benchmark.modeling.backbone.build import build_backbone
from maskrcnn_benchmark.modeling.criterion.cascade import WEIGHED, CascadeCriterion, ImageLabels
from maskrcnn_benchmark.modeling.criterion.centernet import CenterCriterion
from maskrcnn_benchmark.modeling.criterion.lessons import image_labels
from maskrcnn_benchmark.modeling.criterion.rcnn import BoxCriterion, Sampling
from maskrcnn_benchmark.modeling.detectors import DETECTORS
from maskrcnn_benchmark.modeling.detectors.named import NamedDetector
from maskrcnn_benchmark.modeling.detectors.rcnn import ClosedDetector
from maskrcnn_benchmark.modeling.heads.cascade import (
    BoxLimits,
    Cascade,
    PlainPredictor,
    Predictor,
    RegionFeatures,
    ZeroShotPredictor,
)
from maskrcnn_benchmark.modeling.heads.centernet import GROUPS, CenterHead, CenterLimits, CenterProposals
from maskrcnn_benchmark.modeling.heads.class_tables import build_class_table
from maskrcnn_benchmark.modeling.heads.region_masks import RegionMaskHead, paste
from maskrcnn_benchmark.modeling.heads.roi_box import Pooler
from maskrcnn_benchmark.modeling.heads.select import Boxes
from maskrcnn_benchmark.modeling.heads.zero_shot import RegionClassifier, ZeroShotClassifier
from maskrcnn_benchmark.modeling.interface import ALONE, Batch, ImageState, Losses, Peers, TextState
from maskrcnn_benchmark.structures import Detections, ImageBatch, ImageMeta
from maskrcnn_benchmark.structures.boxes import clip


class CenterNet2(ClosedDetector, NamedDetector):
    """Proposals first, then three stages of what is in them. Labels count from 1.

    It finds its own classes, or, where class scores are by embeddings and masks are the same for all classes, others.

    Args:
        backbone: From pixels to P3..P7.
        proposal_generator: Of all levels.
        roi_heads: Of the finest three levels.
        num_classes: With the background, which is class 0.
        full_precision: All but the backbone computes in float32, also under autocast.
    """

    def __init__(
        self,
        backbone: nn.Module,
        proposal_generator: CenterProposals,
        roi_heads: Cascade,
        num_classes: int,
        full_precision: bool = True,
    ) -> None:
        super().__init__(backbone, num_classes)
        self.proposal_generator, self.roi_heads = proposal_generator, roi_heads
        self.full_precision = full_precision

    def forward(self, batch: Batch, peers: Peers = ALONE) -> Losses:
        """Losses of a batch, all of whose pictures have boxes, or all of them classes alone (``image_labels``).

        Args:
            batch: Geometry of its targets in pixels of the network's input; a picture may have no objects.
            peers: The processes that share the batch.

        Raises:
            DataError: a label that the network has no class for, or a batch of both kinds.
        """
        labelled = image_labels(batch.targets, self.num_classes - 1) is not None
        maps = self.encode_image(batch.images).features
        sizes = [meta.size for meta in batch.images.metas]
        with self._precision(maps[0]):
            first, proposals = self.proposal_generator.learn(maps, batch.targets, not labelled, peers)
            if labelled:
                second = self.roi_heads.learn_labels(maps, proposals, batch.targets, sizes)
            else:
                second = self.roi_heads.learn(maps, proposals, batch.targets, sizes, batch.rng or Random(0))
        return Losses(second | first)

    def weigh_classes(self, chance: Tensor) -> None:
        for module in self.modules():
            if isinstance(module, Predictor) and module.drawn:
                module.freq_weight.copy_(chance)

    def encode_image(self, images: ImageBatch) -> ImageState:
        state = super().encode_image(images)
        return replace(state, features=[x.float() for x in state.features]) if self.full_precision else state

    @property
    def takes_names(self) -> bool:
        heads = self.roi_heads
        by_name = all(isinstance(part, ZeroShotPredictor) for part in heads.predictors)
        return by_name and (heads.mask_head is None or heads.mask_head.num_masks == 1)

    @property
    def classifiers(self) -> list[ZeroShotClassifier]:
        return [part.cls_score for part in self.roi_heads.predictors if isinstance(part, ZeroShotPredictor)]

    @property
    def table(self) -> Tensor:
        return self.classifiers[0].rows[:-1]  # the last one is of the background

    def find(self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]], rows: Tensor | None = None) -> list[Boxes]:
        """See :class:`ClosedDetector`; of the classes of ``rows`` (K, E) instead, where they are given."""
        with self._precision(maps[0]):
            return self.roi_heads.detect(maps, self.proposal_generator.detect(maps), sizes, rows)

    def detect(self, image: ImageState, text: TextState | None = None) -> list[Detections]:
        """One result per picture, in pixels of the picture on disk, best first, with masks if there is a mask head.

        Args:
            image: B pictures.
            text: See :class:`NamedDetector`; None: its own classes.
        """
        return self._found(image) if text is None else NamedDetector.detect(self, image, text)

    def find_rows(
        self, image: ImageState, ids: Sequence[int], names: Mapping[int, str], rows: Tensor
    ) -> list[Detections]:
        if not len(ids):
            return [Detections.empty(meta) for meta in image.metas]
        labels = torch.tensor(ids, dtype=torch.int64)
        return [replace(part, labels=labels[part.labels - 1], names=names) for part in self._found(image, rows)]

    def _found(self, image: ImageState, rows: Tensor | None = None) -> list[Detections]:
        found = self.find(image.features, [meta.size for meta in image.metas], rows)
        with self._precision(image.features[0]):
            masks: Sequence[Tensor | None] = self.roi_heads.masks(image.features, found) or [None] * len(found)
        return [on_disk(*parts) for parts in zip(found, masks, image.metas, strict=True)]

    @contextmanager
    def _precision(self, x: Tensor) -> Iterator[None]:
        kind = x.device.type
        enabled = torch.is_autocast_enabled(kind) and not self.full_precision
        with torch.autocast(kind, enabled=enabled):
            yield


def on_disk(found: Boxes, masks: Tensor | None, meta: ImageMeta) -> Detections:
    """Detections of the network's input, the best first, and masks (K, S, S) in their boxes, as those of the picture on
    disk; boxes that are empty there are dropped."""
    whole = Detections.of_input(*found, meta)
    boxes = clip(whole.boxes, meta.orig_size)
    solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
    out = replace(whole, boxes=boxes)[solid]
    if masks is None:
        return out
    return replace(out, masks=paste(masks.cpu()[solid], out.boxes, meta.orig_size))


@DETECTORS.register("CenterNet2RCNN")
def build(cfg: Cfg) -> CenterNet2:
    """CenterNet2 with the heads of Detic.

    Raises:
        ConfigError: keys do not fit each other, or ask for what there is not.
    """
    key = "MODEL.BACKBONE.OUT_CHANNELS"
    if cfg.MODEL.BACKBONE.OUT_CHANNELS % GROUPS:
        raise ConfigError(f"{key} {cfg.peek(key)} ({cfg.source(key)}): CenterNet2 needs a multiple of {GROUPS}")
    return CenterNet2(
        build_backbone(cfg),
        build_proposals(cfg),
        build_cascade(cfg),
        cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1,
        full_precision=cfg.MODEL.BACKBONE.AMP_ONLY,
    )


def build_proposals(cfg: Cfg) -> CenterProposals:
    """The first stage."""
    center = cfg.MODEL.CENTERNET
    levels = len(center.FPN_STRIDES)
    if len(center.SOI) != levels:
        key = "MODEL.CENTERNET.SOI"
        raise ConfigError(f"{key} {center.SOI!r} ({cfg.source(key)}) must have {levels} ranges, as there are strides")
    criterion = CenterCriterion(
        CenterAssigner(center.SOI, center.HM_MIN_OVERLAP, center.MIN_RADIUS),
        alpha=center.HM_FOCAL_ALPHA,
        beta=center.HM_FOCAL_BETA,
        gamma=center.LOSS_GAMMA,
        clamp=center.SIGMOID_CLAMP,
        ignored_from=center.IGNORE_HIGH_FP,
        peak_weight=center.POS_WEIGHT,
        other_weight=center.NEG_WEIGHT,
        box_weight=center.REG_WEIGHT,
    )
    return CenterProposals(
        CenterHead(cfg.MODEL.BACKBONE.OUT_CHANNELS, center.NUM_BOX_CONVS, levels, center.PRIOR_PROB),
        criterion,
        center.FPN_STRIDES,
        center.INFERENCE_TH,
        train=CenterLimits(center.PRE_NMS_TOPK_TRAIN, center.POST_NMS_TOPK_TRAIN, center.NMS_TH_TRAIN),
        test=CenterLimits(center.PRE_NMS_TOPK_TEST, center.POST_NMS_TOPK_TEST, center.NMS_TH_TEST),
    )


def build_cascade(cfg: Cfg) -> Cascade:
    """The second stage, and the mask head where ``MODEL.MASK_ON`` asks for one."""
    heads, box, mask = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    _need(cfg, "MODEL.CLS_AGNOSTIC_BBOX_REG", True, "a stage has one box per proposal")
    _need(cfg, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True, "scores of classes do not depend on each other")
    criterion, channels = build_criterion(cfg), cfg.MODEL.BACKBONE.OUT_CHANNELS
    mask_pooler, mask_head = None, None
    if cfg.MODEL.MASK_ON:
        count = 1 if mask.CLS_AGNOSTIC_MASK else heads.NUM_CLASSES
        mask_pooler = build_pooler(cfg, mask.POOLER_RESOLUTION)
        mask_head = RegionMaskHead(channels, mask.NUM_CONV, mask.CONV_DIM, count)
    return Cascade(
        build_pooler(cfg, box.POOLER_RESOLUTION),
        [RegionFeatures(channels * box.POOLER_RESOLUTION**2, box.MLP_HEAD_DIM) for _ in criterion.stages],
        build_predictors(cfg, len(criterion.stages)),
        criterion,
        BoxLimits(
            threshold=heads.SCORE_THRESH,
            nms_threshold=heads.NMS,
            most=cfg.TEST.DETECTIONS_PER_IMG,
            times_proposal=box.MULT_PROPOSAL_SCORE,
            one_class=heads.ONE_CLASS_PER_PROPOSAL,
        ),
        mask_pooler,
        mask_head,
        heads.MASK_WEIGHT,
    )


def build_pooler(cfg: Cfg, resolution: int) -> Pooler:
    """As detectron2 pools, from the levels of the boxes."""
    box = cfg.MODEL.ROI_BOX_HEAD
    levels = (box.POOLER_SCALES, box.POOLER_SAMPLING_RATIO)
    return Pooler(resolution, *levels, plus_one=False, aligned=True, eps=1e-8)


def build_predictors(cfg: Cfg, stages: int) -> list[Predictor]:
    """From features to classes and boxes, one per stage; they share neither layers nor tables."""
    heads, box, zero_shot = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ZEROSHOT_CLS
    weigh = cfg.DATASETS.WITH_IMAGE_LABELS and cfg.MODEL.IMAGE_LABEL.LOSS == WEIGHED
    options = {"drawn": cfg.MODEL.FED_LOSS.ENABLED, "weigh": weigh}
    if not zero_shot.ENABLED:
        return [PlainPredictor(box.MLP_HEAD_DIM, heads.NUM_CLASSES, box.PRIOR_PROB, **options) for _ in range(stages)]
    table = build_class_table(cfg, heads.NUM_CLASSES)
    bias = zero_shot.BIAS_INIT or None
    return [
        ZeroShotPredictor(
            box.MLP_HEAD_DIM,
            RegionClassifier(table, box.MLP_HEAD_DIM, zero_shot.NORM_TEMP, bias, cosine=zero_shot.NORM_WEIGHT),
            **options,
        )
        for _ in range(stages)
    ]


def build_criterion(cfg: Cfg) -> CascadeCriterion:
    """The losses of the second stage."""
    heads, cascade, labels = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_CASCADE_HEAD, cfg.MODEL.IMAGE_LABEL
    if len(cascade.IOUS) != len(cascade.BBOX_REG_WEIGHTS):
        key = "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"
        raise ConfigError(
            f"{key} {cfg.peek(key)!r} ({cfg.source(key)}) must have a row for each of {cascade.IOUS} IOUS"
        )
    stages = [
        BoxCriterion(
            Sampling(iou, iou, heads.BATCH_SIZE_PER_IMAGE, heads.POSITIVE_FRACTION),
            BoxCoder(weights, plus_one=False),
            plus_one=False,
            beta=0,
        )
        for iou, weights in zip(cascade.IOUS, cascade.BBOX_REG_WEIGHTS, strict=True)
    ]
    rule = None
    if cfg.DATASETS.WITH_IMAGE_LABELS and not labels.LOSS and "image" in cfg.DATALOADER.DATASET_ANN:
        source = cfg.source("MODEL.IMAGE_LABEL.LOSS")
        raise ConfigError(f"MODEL.IMAGE_LABEL.LOSS '' ({source}): DATALOADER.DATASET_ANN has image, which needs a loss")
    if cfg.DATASETS.WITH_IMAGE_LABELS and labels.LOSS:
        if labels.LOSS == "image":
            _need(cfg, "MODEL.IMAGE_LABEL.ADD_IMAGE_BOX", True, "MODEL.IMAGE_LABEL.LOSS image learns from that box")
        picture_box = labels.IMAGE_BOX_SIZE if labels.ADD_IMAGE_BOX else None
        rule = ImageLabels(labels.LOSS, labels.WEIGHT, labels.NUM_PROPOSALS, picture_box)
    return CascadeCriterion(stages, cfg.MODEL.FED_LOSS.NUM_CLASSES, rule)


def _need(cfg: Cfg, key: str, value: object, why: str) -> None:
    given = reduce(getattr, key.split("."), cfg)
    if given != value:
        raise ConfigError(f"{key} {given!r} ({cfg.source(key)}) does not go with CenterNet2: {why}, set {value}")
