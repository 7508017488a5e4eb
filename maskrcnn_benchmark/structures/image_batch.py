"""Pictures on their way into a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageMeta:
    """What is known about one picture; the same object travels with its pixels, its target and its detections."""

    image_id: int | str
    size: tuple[int, int]  # (h, w) of the network's input, after resizing and before padding
    orig_size: tuple[int, int]  # (h, w) of the upright picture on disk
    file: str = ""
    dataset: str = ""
    extra: dict[str, object] = field(default_factory=dict)  # sentence, phrase or task ids of grounding data


@dataclass(frozen=True)
class ImageBatch:
    """B normalised pictures, zero-padded at the right and bottom to one size."""

    pixels: Tensor  # (B, 3, H, W) float32
    metas: tuple[ImageMeta, ...]

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[0] != len(self.metas):
            raise ValueError(f"pixels must be ({len(self.metas)}, 3, H, W), got {tuple(self.pixels.shape)}")

    def __len__(self) -> int:
        return len(self.metas)

    @property
    def mask(self) -> Tensor:
        """(B, H, W) bool, True where there is padding."""
        mask = torch.ones(len(self), *self.pixels.shape[-2:], dtype=torch.bool, device=self.pixels.device)
        for row, meta in zip(mask, self.metas, strict=True):
            row[: meta.size[0], : meta.size[1]] = False
        return mask

    def to(self, device: torch.device | str) -> ImageBatch:
        return replace(self, pixels=self.pixels.to(device, non_blocking=True))

    @classmethod
    def pad(cls, images: Sequence[Tensor], metas: Sequence[ImageMeta], divisibility: int = 32) -> ImageBatch:
        """Stack (3, h, w) pictures; the common size is the largest, rounded up to ``divisibility`` (0 or 1: as is)."""
        height, width = padded_size([(image.shape[-2], image.shape[-1]) for image in images], divisibility)
        pixels = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        for row, image in zip(pixels, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        return cls(pixels, tuple(metas))


def padded_size(sizes: Sequence[tuple[int, int]], divisibility: int) -> tuple[int, int]:
    """(H, W) of a batch of pictures of the given (h, w)."""
    step = max(1, divisibility)
    height, width = (-(-max(side) // step) * step for side in zip(*sizes, strict=True))
    return height, width
