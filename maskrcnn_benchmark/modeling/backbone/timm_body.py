"""Any convolutional network of timm (https://github.com/huggingface/pytorch-image-models) as a body of MDETR."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.layers.norm import FrozenBatchNorm2d

PREFIX = "timm_"  # of the names in MODEL.BACKBONE.CONV_BODY
STRIDES = (4, 8, 16, 32)
EPS = 1e-5  # whatever the network was built with: the released weights of MDETR were trained so


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """With the activation that timm keeps inside its normalisation."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, EPS)
        self.act: nn.Module = getattr(norm, "act", nn.Identity())
        for name in ("weight", "bias", "running_mean", "running_var"):
            if (value := getattr(norm, name)) is not None:
                setattr(self, name, value.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return self.act(super().forward(x))


def build_timm_body(name: str, source: str, dilated: bool = False) -> nn.Module:
    """A network of timm with fresh weights: pixels -> maps at strides 4, 8, 16, 32, whose widths are ``channels``.

    Its batch normalisation is frozen; all else trains.

    Args:
        name: As timm calls it, such as "tf_efficientnet_b3_ns".
        source: Who asked for it, for messages.
        dilated: Dilated convolutions in the place of the last stride: the last map is at stride 16 too.

    Raises:
        ConfigError: timm is not installed, does not know the name, or the network has no such maps.
    """
    told = f"MODEL.BACKBONE.CONV_BODY {PREFIX + name!r} ({source})"
    create = _timm(told)
    try:
        with torch.device("meta"):
            reductions = create(name, features_only=True).feature_info.reduction()
        if missing := [str(stride) for stride in STRIDES if stride not in reductions]:
            raise ConfigError(f"{told}: it has no map at stride {', '.join(missing)}, but at {reductions}")
        indices = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES)
        body: Any = create(name, features_only=True, out_indices=indices, **({"output_stride": 16} if dilated else {}))
    except (
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        AssertionError,
        NotImplementedError,
    ) as error:
        kind = ", dilated" if dilated else ""
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{told}: timm has no such network with maps of features{kind} ({reason[:160]})") from error
    if getattr(body, "output_fmt", "NCHW") == "NHWC":
        raise ConfigError(f"{told}: its maps have channels last; use a convolutional network")
    freeze_norms(body)
    body.channels = body.feature_info.channels()
    return body


def freeze_norms(module: nn.Module) -> None:
    """Put frozen layers in the place of all batch normalisation below a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNormAct2d(child))
        else:
            freeze_norms(child)


def _timm(told: str) -> Callable[..., Any]:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"{told} needs timm, which is not installed: pip install 'timm>=1.0'") from error

    def create(name: str, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm has new names for these networks, released configs the old ones
            return timm.create_model(name, pretrained=False, **options)

    return create
