"""Backbones of DECOLA and of the detectors it is measured against, without a pyramid: those of detectron2 and Detic.

Frozen batch normalisation has detectron2's epsilon, and ResNets have their strides in the 3x3 convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.backbone.resnet import DEPTHS, ResNet
from maskrcnn_benchmark.modeling.backbone.swin import SwinTransformer

EPS = 1e-5
KEY, SIZE, NETWORK = "MODEL.BACKBONE.CONV_BODY", "MODEL.SWINT.SIZE", "MODEL.TIMM.BASE_NAME"
SWIN, TIMM, RESNETS = "SWIN", "TIMM-R50-IN21K", {f"R-{layers}": layers for layers in DEPTHS}
NETWORKS = {"resnet50_in21k": 50, "resnet50": 50}  # of timm -> layers


class SwinSize(NamedTuple):
    """Of a released Swin Transformer."""

    width: int
    depths: Sequence[int]
    heads: Sequence[int]
    window: int
    drop_path: float


SWINS = {
    "T": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 0.2),
    "S": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24), 7, 0.2),
    "B": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 7, 0.3),
    "B-22k": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 7, 0.3),
    "B-22k-384": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 12, 0.3),
    "L-22k": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 7, 0.3),
    "L-22k-384": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 12, 0.3),
}


class TimmResNet(nn.Module):
    """A ResNet whose names begin with ``base.``, as where Detic takes it from timm."""

    def __init__(self, base: ResNet) -> None:
        super().__init__()
        self.base, self.channels = base, base.channels

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised pixels -> C2..C5, (B, C_l, H_l, W_l)."""
        maps: list[Tensor] = self.base(pixels)
        return maps


def build_trunk(cfg: Cfg) -> nn.Module:
    """The backbone of ``MODEL.BACKBONE.CONV_BODY``, up to a hyphen and FPN: pixels -> maps, whose widths are its
    ``channels``, the last three at strides 8, 16 and 32.

    Raises:
        ConfigError: there is none of that name.
    """
    name = cfg.MODEL.BACKBONE.CONV_BODY.partition("-FPN")[0]
    if name == SWIN:
        return build_swin(cfg)
    if name == TIMM:
        network = cfg.MODEL.TIMM.BASE_NAME
        if network not in NETWORKS:
            raise ConfigError(f"{NETWORK} {network!r} ({cfg.source(NETWORK)}) must be one of {', '.join(NETWORKS)}")
        return TimmResNet(resnet(NETWORKS[network], cfg.MODEL.TIMM.FREEZE_AT))
    if name in RESNETS:
        return resnet(RESNETS[name], cfg.MODEL.BACKBONE.FREEZE_CONV_BODY_AT)
    choices = ", ".join((TIMM, SWIN, *RESNETS))
    raise ConfigError(f"{KEY} {name!r} ({cfg.source(KEY)}): {cfg.MODEL.META_ARCHITECTURE} has {choices}")


def resnet(layers: int, freeze_at: int) -> ResNet:
    return ResNet(DEPTHS[layers], stride_in_1x1=False, freeze_at=freeze_at, eps=EPS)


def build_swin(cfg: Cfg) -> SwinTransformer:
    """The Swin of ``MODEL.SWINT.SIZE``; where there is no size, that of the other keys of ``MODEL.SWINT``.

    Raises:
        ConfigError: there is no such size, or the maps are not the last three.
    """
    swint = cfg.MODEL.SWINT
    if swint.SIZE and swint.SIZE not in SWINS:
        raise ConfigError(f"{SIZE} {swint.SIZE!r} ({cfg.source(SIZE)}) must be one of {', '.join(SWINS)}")
    if tuple(swint.OUT_FEATURES) != (1, 2, 3):
        key = "MODEL.SWINT.OUT_FEATURES"
        raise ConfigError(f"{key} {tuple(swint.OUT_FEATURES)} ({cfg.source(key)}) must be (1, 2, 3): strides 8 to 32")
    size = (
        SWINS[swint.SIZE]
        if swint.SIZE
        else SwinSize(swint.EMBED_DIM, swint.DEPTHS, swint.NUM_HEADS, swint.WINDOW_SIZE, swint.DROP_PATH_RATE)
    )
    return SwinTransformer(
        embed_dim=size.width,
        depths=size.depths,
        heads=size.heads,
        window=size.window,
        drop_path=size.drop_path,
        checkpointing=cfg.MODEL.BACKBONE.USE_CHECKPOINT,
    )
