"""Class activation maps at several scales, over a picture and its mirror image (DAP, https://arxiv.org/abs/2103.16651)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_benchmark.data.collate import pad_bytes
from maskrcnn_benchmark.data.transforms import Normalise, resize_size
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta
from maskrcnn_benchmark.structures.image_batch import padded_size

Size = tuple[int, int]  # h, w

SCALES = (288, 576)  # short sides in pixels; the last one gives the grid of the maps
DIVISIBILITY = 32
UNBOUNDED = 1 << 30  # no limit for the long side
FLAT = 1e-6  # a map whose values differ by less, in parts of the largest, is rounding noise


@dataclass(frozen=True)
class Maps:
    """Of B pictures of one padded size."""

    values: Tensor  # (B, h, w) float32, about 0 to 1; 0 where a map is flat
    flat: Tensor  # (B,) bool: at some scale all cells have the same value, or one that is not finite
    stride: int  # sides of a cell in pixels of the picture at the last scale


def padded_sizes(size: Size, scales: Sequence[int] = SCALES) -> tuple[Size, ...]:
    """(H, W) of the network's input at each scale for a picture of (h, w): equal ones can share a batch."""
    return tuple(padded_size([resize_size(*size, scale, UNBOUNDED)], DIVISIBILITY) for scale in scales)


def at_scales(pictures: Sequence[Image.Image], scales: Sequence[int] = SCALES) -> list[ImageBatch]:
    """RGB pictures as a batch of uint8 for each scale, padded at the right and bottom."""
    sizes = [(picture.height, picture.width) for picture in pictures]
    batches = []
    for scale in scales:
        metas = [ImageMeta(i, resize_size(*size, scale, UNBOUNDED), size) for i, size in enumerate(sizes)]
        pixels = [_resized(picture, meta.size) for picture, meta in zip(pictures, metas, strict=True)]
        batches.append(pad_bytes(pixels, metas, DIVISIBILITY))
    return batches


def _resized(picture: Image.Image, size: Size) -> Tensor:
    """(3, h, w) uint8."""
    small = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(*size, 3).permute(2, 0, 1)


class ClassMaps(nn.Module):
    """The maps of one class for each picture.

    Args:
        features: (B, 3, H, W) -> (B, C, h, w).
        weight: (K, C) of the linear layer. bias: (K,) or None.
        normalise: Of the pixels.
        dtype: Of the features; maps are float32.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        features: nn.Module,
        weight: Tensor,
        bias: Tensor | None,
        normalise: Normalise,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.features, self.normalise, self.dtype = features, normalise, dtype
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", weight.new_zeros(len(weight)).float() if bias is None else bias.float())

    @property
    def classes(self) -> int:
        """K."""
        return len(self.weight)

    @torch.inference_mode()
    def forward(self, scales: Sequence[ImageBatch], labels: Tensor) -> Maps:
        """Maps as means over the scales, each from 0 to 1 before, on the grid of the last one.

        Args:
            scales: B pictures at each scale, from :func:`at_scales`.
            labels: (B,) int64 from 0.
        """
        device = self.weight.device
        labels = labels.to(device)
        maps, flat = [], torch.zeros(len(labels), dtype=torch.bool, device=device)
        for batch in scales:
            pixels = self.normalise(batch.to(device)).pixels
            values = self.raw(pixels.to(dtype=self.dtype, memory_format=torch.channels_last), labels)
            low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
            same = ~(high - low > FLAT * torch.maximum(high.abs(), low.abs()))  # also where they are not finite
            flat |= same.flatten()
            maps.append(((values - low) / (high - low)).masked_fill(same, 0))
        grid = maps[-1].shape[1:]
        mean = torch.stack([functional.interpolate(row[:, None], grid)[:, 0] for row in maps]).mean(0)
        return Maps(mean.masked_fill(flat[:, None, None], 0).cpu(), flat.cpu(), pixels.shape[-1] // grid[-1])

    def raw(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """(B, h, w): the class's output at each cell, of the mean of the features of a picture and its mirror image."""
        straight, mirrored = self.features(torch.cat((pixels, pixels.flip(-1)))).chunk(2)
        features = ((straight + mirrored.flip(-1)) / 2).float()
        chosen = self.weight[labels]
        return torch.einsum("bchw,bc->bhw", features, chosen) + self.bias[labels, None, None]
