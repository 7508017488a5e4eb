"""Backbones from a config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.backbone.fpn import FPN
from maskrcnn_benchmark.modeling.backbone.fused import FIRST, LAST, FusedBackbone, SwinFpn
from maskrcnn_benchmark.modeling.backbone.language import LanguageBackbone
from maskrcnn_benchmark.modeling.backbone.swin import SwinTransformer, TextFusion
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
