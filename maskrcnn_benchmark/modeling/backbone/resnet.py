"""ResNet with frozen batch normalisation (He et al., CVPR 2016), as a body of detectors.

Names below the stem are those of torchvision and of every detection lineage: ``layer1.0.conv2``, ``downsample.0``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_benchmark.layers.deform import DeformConvBlock
from maskrcnn_benchmark.layers.norm import FrozenBatchNorm2d
from maskrcnn_benchmark.modeling.backbone.fpn import FPN

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Bottlenecks per stage, by the number of layers."""
BASIC_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Basic blocks per stage, by the number of layers."""

Conv3x3 = Callable[..., nn.Module]  # (in_channels, out_channels, stride=, groups=) -> module


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut.

    Args:
        in_channels: Of the input.
        width: Channels inside.
        channels: Of the output.
        stride: Of the block.
        groups: Of the 3x3 convolution.
        stride_in_1x1: Where the stride is: in the first convolution (MSRA) or in the 3x3 one (torchvision).
        eps: See :class:`FrozenBatchNorm2d`.
        conv3x3: Maker of the middle convolution.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        channels: int,
        stride: int,
        groups: int,
        stride_in_1x1: bool,
        eps: float,
        conv3x3: Conv3x3,
    ) -> None:
        super().__init__()
        self.downsample: nn.Module | None = None
        if in_channels != channels:
            self.downsample = nn.Sequential(_conv(in_channels, channels, 1, stride), FrozenBatchNorm2d(channels, eps))
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _conv(in_channels, width, 1, first)
        self.bn1 = FrozenBatchNorm2d(width, eps)
        self.conv2 = conv3x3(width, width, stride=second, groups=groups)
        self.bn2 = FrozenBatchNorm2d(width, eps)
        self.conv3 = _conv(width, channels, 1)
        self.bn3 = FrozenBatchNorm2d(channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, as ResNets of 18 and 34 layers have them."""

    def __init__(self, in_channels: int, channels: int, stride: int, eps: float) -> None:
        super().__init__()
        self.downsample: nn.Module | None = None
        if in_channels != channels:
            self.downsample = nn.Sequential(_conv(in_channels, channels, 1, stride), FrozenBatchNorm2d(channels, eps))
        self.conv1 = _conv(in_channels, channels, 3, stride)
        self.bn1 = FrozenBatchNorm2d(channels, eps)
        self.conv2 = _conv(channels, channels, 3)
        self.bn2 = FrozenBatchNorm2d(channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """From pixels to C2..C5.

    Args:
        depths: Blocks per stage.
        stem_channels: Of the first convolution.
        width: Inside the bottlenecks of the first stage, per group; doubled from stage to stage.
        out_channels: Of the first stage; doubled from stage to stage.
        groups: Of the 3x3 convolutions (ResNeXt).
        stride_in_1x1: See :class:`Bottleneck`.
        deform: Per stage, whether its 3x3 convolutions are deformable.
        modulated: Whether those are of version 2.
        deformable_groups: See :class:`DeformConvBlock`.
        freeze_at: How many of the stem and the stages, from the start, are not trained.
        eps: See :class:`FrozenBatchNorm2d`.
        block: Which blocks; basic ones have no width, groups or deformable convolutions.
        dilated: Whether the last stage has the resolution of the one before, and 3x3 convolutions with gaps ("DC5").
    """

    def __init__(
        self,
        depths: Sequence[int] = DEPTHS[50],
        stem_channels: int = 64,
        width: int = 64,
        out_channels: int = 256,
        groups: int = 1,
        stride_in_1x1: bool = True,
        deform: Sequence[bool] = (False, False, False, False),
        modulated: bool = False,
        deformable_groups: int = 1,
        freeze_at: int = 2,
        eps: float = 0.0,
        block: Literal["bottleneck", "basic"] = "bottleneck",
        dilated: bool = False,
    ) -> None:
        super().__init__()
        self.channels = [out_channels * 2**stage for stage in range(len(depths))]
        steps = [1, *[2] * (len(depths) - 1)]
        if dilated:
            steps[-1] = 1
        self.conv1 = _conv(3, stem_channels, 7, 2)
        self.bn1 = FrozenBatchNorm2d(stem_channels, eps)
        deformed = partial(DeformConvBlock, deformable_groups=deformable_groups, modulated=modulated)
        before = stem_channels
        for stage, (depth, channels) in enumerate(zip(depths, self.channels, strict=True)):
            gaps = {"conv3x3": partial(_conv3x3, dilation=2)} if dilated and channels == self.channels[-1] else {}
            make: Callable[..., nn.Module] = partial(BasicBlock, channels=channels, eps=eps)
            if block == "bottleneck":
                make = partial(
                    Bottleneck,
                    width=groups * width * 2**stage,
                    channels=channels,
                    groups=groups,
                    stride_in_1x1=stride_in_1x1,
                    eps=eps,
                    conv3x3=deformed if deform[stage] else _conv3x3,
                )
            first = make(before, stride=steps[stage])
            rest = [make(channels, stride=1, **gaps) for _ in range(depth - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, *rest))
            before = channels
        frozen = ["conv1", *(f"layer{stage + 1}" for stage in range(len(depths)))][: max(0, freeze_at)]
        for name in frozen:
            self.get_submodule(name).requires_grad_(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised pixels -> C2..C5, (B, C_l, H_l, W_l) at strides 4 to 32."""
        x = F.relu(self.bn1(self.conv1(pixels)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        maps = []
        for stage in range(len(self.channels)):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            maps.append(x)
        return maps


class BodyFpn(nn.Module):
    """A body and a feature pyramid of its last maps, as many as the pyramid takes."""

    def __init__(self, body: nn.Module, fpn: FPN) -> None:
        super().__init__()
        self.body, self.fpn = body, fpn

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised pixels -> the pyramid, finest first, (B, C, H_l, W_l)."""
        levels: list[Tensor] = self.fpn(self.body(pixels)[-len(self.fpn.numbers) :])
        return levels


def _conv(
    in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1, dilation: int = 1
) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, dilation, groups, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return conv


_conv3x3 = partial(_conv, kernel=3)
