"""Backbones from a config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.backbone.fpn import FPN, Top
from maskrcnn_benchmark.modeling.backbone.fused import FIRST, LAST, FusedBackbone, SwinFpn
from maskrcnn_benchmark.modeling.backbone.language import LanguageBackbone
from maskrcnn_benchmark.modeling.backbone.resnet import BASIC_DEPTHS, DEPTHS, BodyFpn, ResNet
from maskrcnn_benchmark.modeling.backbone.swin import SwinTransformer, TextFusion
from maskrcnn_benchmark.modeling.backbone.timm_body import PREFIX, build_timm_body
from maskrcnn_benchmark.modeling.backbone.trunk import RESNETS, SWIN, TIMM, build_trunk
from maskrcnn_benchmark.modeling.registry import Registry
from maskrcnn_benchmark.text.encoder import TEXT_MODELS, TextConfig, TextEncoder

BACKBONES: Registry[Callable[[Cfg], nn.Module]] = Registry("backbone", "MODEL.BACKBONE.CONV_BODY")
"""Builders of backbones: pixels (B, 3, H, W) -> list of maps (B, C, H_l, W_l)."""

SWIN_FPN = "SWINT-FPN-RETINANET"
FUSED_BLOCKS = {FIRST: 4, LAST: 2}  # stage -> how many of its last blocks attend to text


def build_backbone(cfg: Cfg) -> nn.Module:
    """The backbone of ``MODEL.BACKBONE.CONV_BODY``.

    Raises:
        ConfigError: there is none of that name.
    """
    return BACKBONES.chosen(cfg)(cfg)


@BACKBONES.register(SWIN_FPN)
def build_swin_fpn(cfg: Cfg) -> SwinFpn:
    """Swin and its pyramid, without text."""
    return _swin_fpn(cfg, None)


@BACKBONES.register(*(f"R-{layers}-FPN" for layers in DEPTHS))
def build_resnet_fpn(cfg: Cfg) -> BodyFpn:
    """ResNet and P2..P6, for detectors with a second stage."""
    body = _resnet(cfg)
    return BodyFpn(body, FPN(body.channels, cfg.MODEL.RESNETS.BACKBONE_OUT_CHANNELS, first=1, top="max pool"))


@BACKBONES.register(*(f"R-{layers}-FPN-RETINANET" for layers in DEPTHS))
def build_resnet_retinanet(cfg: Cfg) -> BodyFpn:
    """ResNet and P3..P7."""
    body = _resnet(cfg)
    top: Top = "P6P7 of C5" if cfg.MODEL.RETINANET.USE_C5 else "P6P7"
    return BodyFpn(body, FPN(body.channels[1:], cfg.MODEL.RESNETS.BACKBONE_OUT_CHANNELS, top=top))


@BACKBONES.register(*(f"{body}-FPN-P6P7" for body in (TIMM, SWIN, *RESNETS)))
def build_p6p7(cfg: Cfg) -> BodyFpn:
    """A body of DECOLA's and P3..P7, for CenterNet2."""
    body = build_trunk(cfg)
    channels: Sequence[int] = body.channels[-3:]  # type: ignore[assignment,index]
    return BodyFpn(body, FPN(channels, cfg.MODEL.BACKBONE.OUT_CHANNELS))


def build_mdetr_body(cfg: Cfg) -> nn.Module:
    """The body of MDETR: pixels -> maps at strides 4 to 32, whose widths are its ``channels``.

    Raises:
        ConfigError: ``MODEL.BACKBONE.CONV_BODY`` is neither a ResNet of torchvision's form nor a network of timm, or
            it cannot be dilated.
    """
    key = "MODEL.BACKBONE.CONV_BODY"
    name, dilated = cfg.MODEL.BACKBONE.CONV_BODY, cfg.MODEL.MDETR.DILATION
    layers = {f"R-{layers}-MDETR": layers for layers in (*BASIC_DEPTHS, *DEPTHS)}
    if dilated and layers.get(name) in BASIC_DEPTHS:
        source = cfg.source("MODEL.MDETR.DILATION")
        raise ConfigError(
            f"MODEL.MDETR.DILATION True ({source}): {name} has no blocks for it, use R-50-MDETR or deeper"
        )
    if name.startswith(PREFIX):
        return build_timm_body(name.removeprefix(PREFIX), cfg.source(key), dilated)
    if name not in layers:
        raise ConfigError(
            f"{key} {name!r} ({cfg.source(key)}): MDETR has {', '.join(layers)}, and timm_ with a name of timm's"
        )
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_CONV_BODY_AT
    if layers[name] in BASIC_DEPTHS:
        return ResNet(BASIC_DEPTHS[layers[name]], out_channels=64, block="basic", freeze_at=freeze_at, eps=1e-5)
    return ResNet(DEPTHS[layers[name]], stride_in_1x1=False, freeze_at=freeze_at, eps=1e-5, dilated=dilated)


def build_fused(cfg: Cfg) -> FusedBackbone:
    """FIBER's backbone.

    Raises:
        ConfigError: its body is not a Swin, or has too few blocks.
    """
    body = cfg.MODEL.BACKBONE.CONV_BODY
    if body != SWIN_FPN:
        source = cfg.source("MODEL.BACKBONE.CONV_BODY")
        raise ConfigError(f"MODEL.BACKBONE.CONV_BODY {body!r} ({source}) cannot be fused with text: use {SWIN_FPN}")
    depths = cfg.MODEL.SWINT.DEPTHS
    if depths[FIRST] <= FUSED_BLOCKS[FIRST] or depths[LAST] != FUSED_BLOCKS[LAST]:
        raise ConfigError(
            f"MODEL.SWINT.DEPTHS {tuple(depths)} ({cfg.source('MODEL.SWINT.DEPTHS')}): a fused backbone needs more "
            f"than {FUSED_BLOCKS[FIRST]} blocks in its third stage and {FUSED_BLOCKS[LAST]} in its fourth"
        )
    text = text_config(cfg)
    first_blocks = {stage: depths[stage] - count for stage, count in FUSED_BLOCKS.items()}
    backbone = _swin_fpn(
        cfg, TextFusion(text.hidden, first_blocks, query_norm=cfg.MODEL.BACKBONE.FUSION_VERSION == "v3")
    )
    return FusedBackbone(backbone, TextEncoder(text), tunable=cfg.MODEL.DYHEAD.FUSE_CONFIG.ADD_LINEAR_LAYER)


def build_language(cfg: Cfg) -> LanguageBackbone:
    """GLIP's text backbone."""
    language = cfg.MODEL.LANGUAGE_BACKBONE
    return LanguageBackbone(
        TextEncoder(text_config(cfg)), language.N_LAYERS, language.USE_CHECKPOINT, language.MASK_SPECIAL
    )


def text_config(cfg: Cfg) -> TextConfig:
    """Sizes of the text encoder: those of ``MODEL_TYPE``, but for what the config sets itself."""
    language = cfg.MODEL.LANGUAGE_BACKBONE
    if language.MODEL_TYPE not in TEXT_MODELS:
        source, known = cfg.source("MODEL.LANGUAGE_BACKBONE.MODEL_TYPE"), ", ".join(sorted(TEXT_MODELS))
        raise ConfigError(
            f"MODEL.LANGUAGE_BACKBONE.MODEL_TYPE {language.MODEL_TYPE!r} ({source}) is not known: choose from {known}"
        )
    model = TEXT_MODELS[language.MODEL_TYPE]
    layers = language.NUM_LAYERS or model.layers
    image_dims = {}
    if model.image_dims:  # the last layers read the blocks that attend to them
        widths = [cfg.MODEL.SWINT.EMBED_DIM * 2**stage for stage, count in FUSED_BLOCKS.items() for _ in range(count)]
        image_dims = dict(zip(range(layers - len(widths), layers), widths, strict=True))
    return replace(
        model,
        hidden=language.LANG_DIM,
        layers=layers,
        heads=language.NUM_HEADS or model.heads,
        intermediate=language.INTERMEDIATE_SIZE or model.intermediate,
        vocab_size=language.VOCAB_SIZE or model.vocab_size,
        dropout=language.DROPOUT,
        image_dims=image_dims,
    )


def _swin_fpn(cfg: Cfg, text: TextFusion | None) -> SwinFpn:
    swin, backbone, fpn = cfg.MODEL.SWINT, cfg.MODEL.BACKBONE, cfg.MODEL.FPN
    body = SwinTransformer(
        embed_dim=swin.EMBED_DIM,
        depths=swin.DEPTHS,
        heads=swin.NUM_HEADS,
        window=swin.WINDOW_SIZE,
        drop_path=swin.DROP_PATH_RATE,
        text=text,
        checkpointing=backbone.USE_CHECKPOINT,
        freeze_at=backbone.FREEZE_CONV_BODY_AT,
    )
    drop_prob = fpn.DROP_PROB if fpn.DROP_BLOCK else 0.0
    return SwinFpn(body, FPN(body.channels, backbone.OUT_CHANNELS, drop_prob=drop_prob, drop_size=fpn.DROP_SIZE))


def _resnet(cfg: Cfg) -> ResNet:
    """The body of a name like R-50-FPN."""
    resnets, backbone = cfg.MODEL.RESNETS, cfg.MODEL.BACKBONE
    key = "MODEL.RESNETS.STAGE_WITH_DCN"
    if len(resnets.STAGE_WITH_DCN) != 4:
        raise ConfigError(f"{key} {cfg.peek(key)!r} ({cfg.source(key)}) must have 4 values, one per stage")
    return ResNet(
        DEPTHS[int(backbone.CONV_BODY.split("-")[1])],
        stem_channels=resnets.STEM_OUT_CHANNELS,
        width=resnets.WIDTH_PER_GROUP,
        out_channels=resnets.RES2_OUT_CHANNELS,
        groups=resnets.NUM_GROUPS,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        deform=resnets.STAGE_WITH_DCN,
        modulated=resnets.WITH_MODULATED_DCN,
        deformable_groups=resnets.DEFORMABLE_GROUPS,
        freeze_at=backbone.FREEZE_CONV_BODY_AT,
    )
