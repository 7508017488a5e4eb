"""Detection of a closed list of classes: Faster R-CNN (Ren et al., NeurIPS 2015) with a feature pyramid, and RetinaNet
(Lin et al., ICCV 2017), as in https://github.com/facebookresearch/maskrcnn-benchmark.

Boxes count both border pixels, ROIAlign is the first version, and frozen batch normalisation has no epsilon.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.modeling.assign.box_coder import BoxCoder
from maskrcnn_benchmark.modeling.backbone.build import build_backbone
from maskrcnn_benchmark.modeling.criterion.rcnn import BoxCriterion, RetinaNetCriterion, RpnCriterion, Sampling
from maskrcnn_benchmark.modeling.detectors import DETECTORS
from maskrcnn_benchmark.modeling.heads.anchors import AnchorGenerator
from maskrcnn_benchmark.modeling.heads.retinanet import RetinaNetHead, RetinaNetModule
from maskrcnn_benchmark.modeling.heads.roi_box import BoxFeatures, BoxHead, BoxPredictor, Pooler, RoiHeads
from maskrcnn_benchmark.modeling.heads.rpn import ProposalLimits, RegionProposalNetwork, RpnHead
from maskrcnn_benchmark.modeling.heads.select import Boxes
from maskrcnn_benchmark.modeling.interface import ALONE, Batch, Detector, ImageState, Losses, Peers, TextState
from maskrcnn_benchmark.structures import Detections, ImageBatch, Target


class ClosedDetector(Detector):
    """What Faster R-CNN and RetinaNet share. Labels count from 1; the data set says what they are called.

    Args:
        backbone: From pixels to a pyramid.
        num_classes: With the background, which is class 0.
    """

    reads_text = False

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes

    def learn(self, maps: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Losses of a batch whose pyramid is given."""
        raise NotImplementedError

    def find(self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Boxes]:
        """Per picture boxes in pixels of the network's input, scores and labels, class after class."""
        raise NotImplementedError

    def forward(self, batch: Batch, peers: Peers = ALONE) -> Losses:
        """Losses of a batch; each process divides by its own counts, so ``peers`` are not asked.

        Args:
            batch: Boxes of its targets in pixels of the network's input; a picture may have none.
            peers: The processes that share the batch.

        Raises:
            DataError: a label that the network has no class for.
        """
        for target in batch.targets:
            self._check(target)
        return Losses(self.learn(self.backbone(batch.images.pixels), batch))

    def encode_image(self, images: ImageBatch) -> ImageState:
        height, width = images.pixels.shape[-2:]
        return ImageState(images.metas, (height, width), self.backbone(images.pixels))

    def detect(self, image: ImageState, text: TextState | None = None) -> list[Detections]:
        """One result per picture, in pixels of the picture on disk, best first.

        Args:
            image: B pictures.
            text: None; the classes are fixed.
        """
        if text is not None:
            raise ValueError("a detector of a closed list of classes takes no text")
        found = self.find(image.features, [meta.size for meta in image.metas])
        return [Detections.of_input(*boxes, meta) for boxes, meta in zip(found, image.metas, strict=True)]

    def _check(self, target: Target) -> None:
        if len(target) and not 1 <= (worst := _farthest(target.labels)) < self.num_classes:
            where = target.meta.file or f"picture {target.meta.image_id}"
            raise DataError(
                f"{where}: label {worst} of an object, but the config has {self.num_classes} classes with the "
                f"background (NUM_CLASSES): labels go from 1 to {self.num_classes - 1}"
            )


class FasterRCNN(ClosedDetector):
    """Proposals first, then what is in them."""

    def __init__(self, backbone: nn.Module, rpn: RegionProposalNetwork, roi_heads: RoiHeads, num_classes: int) -> None:
        super().__init__(backbone, num_classes)
        self.rpn = rpn
        self.roi_heads = roi_heads

    def learn(self, maps: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        sizes = [meta.size for meta in batch.images.metas]
        first, proposals = self.rpn.learn(maps, sizes, batch.targets)
        return {**self.roi_heads.box.learn(maps, proposals, batch.targets), **first}

    def find(self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Boxes]:
        return self.roi_heads.box.detect(maps, self.rpn.detect(maps, sizes), sizes)


class RetinaNet(ClosedDetector):
    """Everything in one stage."""

    def __init__(self, backbone: nn.Module, rpn: RetinaNetModule, num_classes: int) -> None:
        super().__init__(backbone, num_classes)
        self.rpn = rpn

    def learn(self, maps: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        return self.rpn.learn(maps, batch.targets)

    def find(self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Boxes]:
        return self.rpn.detect(maps, sizes)


def _farthest(labels: Tensor) -> int:
    """The smallest label if it is below 1, else the largest."""
    low, high = labels.aminmax()
    return int(low) if low < 1 else int(high)


@DETECTORS.register("GeneralizedRCNN")
def build(cfg: Cfg) -> FasterRCNN | RetinaNet:
    """RetinaNet where ``MODEL.RETINANET_ON`` says so, else Faster R-CNN."""
    if cfg.MODEL.RETINANET_ON:
        _check_levels(cfg, 5, "MODEL.RETINANET.ANCHOR_STRIDES", "MODEL.RETINANET.ANCHOR_SIZES")
        _check_body(cfg, "-FPN-RETINANET")
        return RetinaNet(build_backbone(cfg), build_retinanet(cfg), cfg.MODEL.RETINANET.NUM_CLASSES)
    _check_levels(cfg, 5, "MODEL.RPN.ANCHOR_STRIDE", "MODEL.RPN.ANCHOR_SIZES")
    _check_levels(cfg, 4, "MODEL.ROI_BOX_HEAD.POOLER_SCALES")
    _check_body(cfg, "-FPN")
    roi_heads = RoiHeads(build_box_head(cfg))
    return FasterRCNN(build_backbone(cfg), build_rpn(cfg), roi_heads, cfg.MODEL.ROI_BOX_HEAD.NUM_CLASSES)


def build_rpn(cfg: Cfg) -> RegionProposalNetwork:
    """The first stage."""
    rpn = cfg.MODEL.RPN
    anchors = AnchorGenerator(rpn.ANCHOR_SIZES, rpn.ANCHOR_STRIDE, rpn.ASPECT_RATIOS)
    sampling = Sampling(rpn.FG_IOU_THRESHOLD, rpn.BG_IOU_THRESHOLD, rpn.BATCH_SIZE_PER_IMAGE, rpn.POSITIVE_FRACTION)
    return RegionProposalNetwork(
        RpnHead(cfg.MODEL.RESNETS.BACKBONE_OUT_CHANNELS, anchors.num_per_cell),
        anchors,
        RpnCriterion(sampling, margin=rpn.STRADDLE_THRESH),
        train=ProposalLimits(rpn.PRE_NMS_TOP_N_TRAIN, rpn.POST_NMS_TOP_N_TRAIN, rpn.FPN_POST_NMS_TOP_N_TRAIN),
        test=ProposalLimits(rpn.PRE_NMS_TOP_N_TEST, rpn.POST_NMS_TOP_N_TEST, rpn.FPN_POST_NMS_TOP_N_TEST),
        per_batch=rpn.FPN_POST_NMS_PER_BATCH,
        nms_threshold=rpn.NMS_THRESH,
        min_size=rpn.MIN_SIZE,
    )


def build_box_head(cfg: Cfg) -> BoxHead:
    """The second stage."""
    heads, box = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
    if len(heads.BBOX_REG_WEIGHTS) != 4:
        key = "MODEL.ROI_HEADS.BBOX_REG_WEIGHTS"
        raise ConfigError(f"{key} {heads.BBOX_REG_WEIGHTS!r} ({cfg.source(key)}) must have 4 values: x, y, w, h")
    sampling = Sampling(
        heads.FG_IOU_THRESHOLD, heads.BG_IOU_THRESHOLD, heads.BATCH_SIZE_PER_IMAGE, heads.POSITIVE_FRACTION
    )
    pooler = Pooler(box.POOLER_RESOLUTION, box.POOLER_SCALES, box.POOLER_SAMPLING_RATIO)
    return BoxHead(
        BoxFeatures(pooler, cfg.MODEL.RESNETS.BACKBONE_OUT_CHANNELS, box.MLP_HEAD_DIM),
        BoxPredictor(box.MLP_HEAD_DIM, box.NUM_CLASSES, cfg.MODEL.CLS_AGNOSTIC_BBOX_REG),
        BoxCriterion(sampling, BoxCoder(heads.BBOX_REG_WEIGHTS)),
        threshold=heads.SCORE_THRESH,
        nms_threshold=heads.NMS,
        max_detections=heads.DETECTIONS_PER_IMG,
    )


def build_retinanet(cfg: Cfg) -> RetinaNetModule:
    """The only stage."""
    retinanet = cfg.MODEL.RETINANET
    anchors = AnchorGenerator(
        retinanet.ANCHOR_SIZES,
        retinanet.ANCHOR_STRIDES,
        retinanet.ASPECT_RATIOS,
        retinanet.SCALES_PER_OCTAVE,
        retinanet.OCTAVE,
    )
    head = RetinaNetHead(
        cfg.MODEL.RESNETS.BACKBONE_OUT_CHANNELS,
        retinanet.NUM_CLASSES - 1,
        anchors.num_per_cell,
        retinanet.NUM_CONVS,
        retinanet.PRIOR_PROB,
    )
    criterion = RetinaNetCriterion(
        retinanet.FG_IOU_THRESHOLD,
        retinanet.BG_IOU_THRESHOLD,
        BoxCoder((10.0, 10.0, 5.0, 5.0)),
        alpha=retinanet.LOSS_ALPHA,
        gamma=retinanet.LOSS_GAMMA,
        beta=retinanet.BBOX_REG_BETA,
        box_divisor=retinanet.BBOX_REG_WEIGHT,
    )
    return RetinaNetModule(
        head,
        anchors,
        criterion,
        threshold=retinanet.INFERENCE_TH,
        pre_nms_top_n=retinanet.PRE_NMS_TOP_N,
        nms_threshold=retinanet.NMS_TH,
        max_detections=cfg.TEST.DETECTIONS_PER_IMG,
    )


def _check_levels(cfg: Cfg, count: int, *keys: str) -> None:
    """Refuses a list that has not one value per level of the pyramid."""
    for name in keys:
        if len(cfg.peek(name)) != count:
            raise ConfigError(
                f"{name} {cfg.peek(name)!r} ({cfg.source(name)}) must have {count} values, one per level: only "
                "networks with a pyramid are offered"
            )


def _check_body(cfg: Cfg, ending: str) -> None:
    """Refuses a backbone whose pyramid is that of the other detector."""
    key = "MODEL.BACKBONE.CONV_BODY"
    body = cfg.peek(key)
    if body.startswith("R-") and not body.endswith(ending):
        raise ConfigError(
            f"{key} {body!r} ({cfg.source(key)}) does not go with MODEL.RETINANET_ON {cfg.MODEL.RETINANET_ON} "
            f"({cfg.source('MODEL.RETINANET_ON')}): use a name like R-50{ending}"
        )
