"""Detection by words: GLIP (Li et al., CVPR 2022) and FIBER (Dou et al., NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.backbone.build import build_backbone, build_fused, build_language, text_config
from maskrcnn_benchmark.modeling.backbone.fused import FusedBackbone
from maskrcnn_benchmark.modeling.backbone.language import LanguageBackbone, LanguageFeatures, make_tunable
from maskrcnn_benchmark.modeling.criterion.build import build_criterion, loss_weights
from maskrcnn_benchmark.modeling.detectors import DETECTORS
from maskrcnn_benchmark.modeling.heads.anchors import AnchorGenerator
from maskrcnn_benchmark.modeling.heads.atss_decode import AtssDecode
from maskrcnn_benchmark.modeling.heads.vldyhead import GroundingRPN, VLDyHead
from maskrcnn_benchmark.modeling.heads.word_heads import FeatureResizer
from maskrcnn_benchmark.modeling.interface import ALONE, Batch, Detector, ImageState, Losses, Peers, TextState
from maskrcnn_benchmark.structures import Detections, ImageBatch, ImageMeta, Prompt, TextBatch
from maskrcnn_benchmark.text.encoder import BertLayer


class GroundingDetector(Detector):
    """What FIBER and GLIP share: from fused features of pictures and text to detections."""

    rpn: GroundingRPN
    decode: AtssDecode

    def fuse(self, image: ImageState, text: TextState) -> tuple[list[Tensor], LanguageFeatures]:
        """P3..P7 (B, C, H_l, W_l), and the text that the head reads."""
        raise NotImplementedError

    def forward(self, batch: Batch, peers: Peers = ALONE) -> Losses:
        """Losses of a batch with a prompt for each picture.

        Args:
            batch: Its targets have ``positive_map``; their boxes are in pixels of the network's input.
            peers: The processes that share the batch.
        """
        if batch.text is None or len(batch.text) != len(batch.images):
            prompts = "no text" if batch.text is None else f"{len(batch.text)} prompts"
            raise ValueError(f"{prompts} for {len(batch.images)} pictures: training needs a prompt for each")
        features, language = self.fuse(self.encode_image(batch.images), self.encode_text(batch.text))
        return self.rpn.learn(features, language, batch, peers)

    def detect(self, image: ImageState, text: TextState) -> list[Detections]:
        """One result per picture, in pixels of the picture on disk, best first.

        Args:
            image: B pictures.
            text: One prompt for all of them, or B prompts, one for each.
        """
        batch, prompts = len(image.metas), text.text.prompts
        if len(prompts) not in (1, batch):
            raise ValueError(f"{len(prompts)} prompts for {batch} pictures: give one, or one for each")
        entities = list(text.text.entity_tokens)
        tokens = None
        if self.decode.score_agg != "ONEHOT":  # which counts tokens from the start of the text
            tokens = _needed_tokens(entities)
            entities = [mask[:, tokens] for mask in entities]
        features, language = self.fuse(image, text)
        outputs, anchors = self.rpn(features, language, tokens)
        repeat = batch // len(prompts)
        found = self.decode(
            outputs,
            anchors,
            [meta.size for meta in image.metas],
            entities * repeat,
            [prompt.ids for prompt in prompts] * repeat,
        )
        return [
            _on_original(boxes, scores, labels, meta, prompt)
            for (boxes, scores, labels), meta, prompt in zip(found, image.metas, prompts * repeat, strict=True)
        ]


class FiberDetector(GroundingDetector):
    """FIBER: Swin and RoBERTa look at each other in their last layers; the head sees pictures only.

    Everything before the first fused layer is computed once per picture and once per prompt.
    """

    def __init__(self, fusion_backbone: FusedBackbone, rpn: GroundingRPN, decode: AtssDecode):
        super().__init__()
        self.fusion_backbone = fusion_backbone
        self.rpn = rpn
        self.decode = decode

    def encode_image(self, images: ImageBatch) -> ImageState:
        features = self.fusion_backbone.encode_image(images.pixels)
        return _image_state(images, features)

    def encode_text(self, text: TextBatch) -> TextState:
        return TextState(text, self.fusion_backbone.encode_text(text.input_ids, text.attention_mask))

    def fuse(self, image: ImageState, text: TextState) -> tuple[list[Tensor], LanguageFeatures]:
        return self.fusion_backbone.fuse(image.features, text.features)


class GlipDetector(GroundingDetector):
    """GLIP: Swin and BERT work apart; fusion, if any, happens in the head's tower.

    The pyramid is computed once per picture and BERT once per prompt.
    """

    def __init__(self, backbone: nn.Module, language_backbone: LanguageBackbone, rpn: GroundingRPN, decode: AtssDecode):
        super().__init__()
        self.backbone = backbone
        self.language_backbone = language_backbone
        self.rpn = rpn
        self.decode = decode

    def encode_image(self, images: ImageBatch) -> ImageState:
        return _image_state(images, self.backbone(images.pixels))

    def encode_text(self, text: TextBatch) -> TextState:
        return TextState(text, self.rpn.tune(self.language_backbone(text.input_ids, text.attention_mask)))

    def fuse(self, image: ImageState, text: TextState) -> tuple[list[Tensor], LanguageFeatures]:
        return image.features, text.features


def _image_state(images: ImageBatch, features: object) -> ImageState:
    height, width = images.pixels.shape[-2:]
    return ImageState(images.metas, (height, width), features)


def _needed_tokens(entity_tokens: Sequence[Tensor]) -> Tensor:
    """(M,) positions that belong to an entity of any prompt: no other word logit can change a detection."""
    return torch.stack([tokens.any(0) for tokens in entity_tokens]).any(0).nonzero().squeeze(1)


def _on_original(boxes: Tensor, scores: Tensor, labels: Tensor, meta: ImageMeta, prompt: Prompt) -> Detections:
    names = {label: prompt.name(entity) for entity, label in enumerate(prompt.ids)}
    return Detections.of_input(boxes, scores, labels, meta, names)


@DETECTORS.register("GeneralizedVLRCNN")
def build(cfg: Cfg) -> FiberDetector | GlipDetector:
    """FIBER where ``MODEL.SWINT.VERSION`` is "fusion", else GLIP."""
    rpn, decode = build_rpn(cfg), build_decode(cfg)
    if cfg.MODEL.SWINT.VERSION == "fusion":
        return FiberDetector(build_fused(cfg), rpn, decode)
    return GlipDetector(build_backbone(cfg), build_language(cfg), rpn, decode)


def build_rpn(cfg: Cfg) -> GroundingRPN:
    """The head and the anchors."""
    dyhead, language, rpn = cfg.MODEL.DYHEAD, cfg.MODEL.LANGUAGE_BACKBONE, cfg.MODEL.RPN
    _check_head(cfg)
    fusion = dyhead.FUSE_CONFIG.EARLY_FUSE_ON
    text, losses = text_config(cfg), loss_weights(cfg)
    head = VLDyHead(
        channels=dyhead.CHANNELS,
        num_convs=dyhead.NUM_CONVS,
        text_dim=language.LANG_DIM,
        num_classes=dyhead.NUM_CLASSES - 1,
        norm_groups=cfg.MODEL.GROUP_NORM.NUM_GROUPS,
        log_scale=dyhead.LOG_SCALE,
        prior=dyhead.PRIOR_PROB,
        text_layer=partial(BertLayer, text, clamp=True) if fusion else None,
        fused_text=dyhead.FUSE_CONFIG.USE_FUSED_FEATURES_DOT_PRODUCT,
        losses=tuple(losses),
        num_tokens=language.MAX_QUERY_LEN,
        align_width=dyhead.FUSE_CONFIG.CONTRASTIVE_HIDDEN_DIM if "loss_contrastive_align" in losses else 0,
        vocab_size=text.vocab_size,
        text_eps=text.eps,
        checkpointing=dyhead.USE_CHECKPOINT,
    )
    anchors = AnchorGenerator(rpn.ANCHOR_SIZES, rpn.ANCHOR_STRIDE, rpn.ASPECT_RATIOS, rpn.SCALES_PER_OCTAVE)
    in_backbone = cfg.MODEL.SWINT.VERSION == "fusion"  # where FIBER has its tunable layer
    tunable = make_tunable(language.LANG_DIM) if dyhead.FUSE_CONFIG.ADD_LINEAR_LAYER and not in_backbone else None
    resizer = FeatureResizer(language.LANG_DIM, dyhead.CHANNELS) if "loss_contrastive_align" in losses else None
    return GroundingRPN(head, anchors, tunable, build_criterion(cfg), resizer)


def build_decode(cfg: Cfg) -> AtssDecode:
    """From raw outputs to boxes, by the settings of ``MODEL.ATSS``."""
    atss = cfg.MODEL.ATSS
    columns = cfg.TEST.MDETR_STYLE_AGGREGATE_CLASS_NUM
    return AtssDecode(
        score_agg=cfg.MODEL.DYHEAD.SCORE_AGG,
        threshold=atss.INFERENCE_TH,
        pre_nms_top_n=atss.PRE_NMS_TOP_N,
        nms_threshold=atss.NMS_TH,
        max_detections=atss.DETECTIONS_PER_IMG,
        table_columns=columns if columns > 0 else None,
    )


def _check_head(cfg: Cfg) -> None:
    """Refuses settings that this head does not have."""
    dyhead = cfg.MODEL.DYHEAD
    fuse = dyhead.FUSE_CONFIG
    wanted: list[tuple[str, object, object]] = [("MODEL.RPN_ARCHITECTURE", cfg.MODEL.RPN_ARCHITECTURE, "VLDYHEAD")]
    wanted += [("MODEL.DYHEAD.CHANNELS", dyhead.CHANNELS, cfg.MODEL.BACKBONE.OUT_CHANNELS)]
    if fuse.USE_CONTRASTIVE_ALIGN_LOSS or not fuse.USE_TOKEN_LOSS:  # one way to compare words, and not both
        dot_product = ("MODEL.DYHEAD.FUSE_CONFIG.USE_DOT_PRODUCT_TOKEN_LOSS", fuse.USE_DOT_PRODUCT_TOKEN_LOSS)
        wanted += [(*dot_product, not fuse.USE_CONTRASTIVE_ALIGN_LOSS)]
    if fuse.EARLY_FUSE_ON:
        wanted += [("MODEL.DYHEAD.FUSE_CONFIG.TYPE", fuse.TYPE, "MHA-B")]
    if fuse.EARLY_FUSE_ON or fuse.USE_CONTRASTIVE_ALIGN_LOSS:
        wanted += [("MODEL.DYHEAD.FUSE_CONFIG.JOINT_EMB_SIZE", fuse.JOINT_EMB_SIZE, dyhead.CHANNELS)]
    for key, value, only in wanted:
        if value != only:
            raise ConfigError(f"{key} {value!r} ({cfg.source(key)}) is not supported here: set it to {only!r}")
