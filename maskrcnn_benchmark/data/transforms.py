"""From a picture to the input of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

from maskrcnn_benchmark.data.pictures import Size
from maskrcnn_benchmark.structures import ImageBatch, Target
from maskrcnn_benchmark.structures.boxes import flip_left_right, flip_top_bottom, rescale


def resize_size(height: int, width: int, min_size: int, max_size: int) -> Size:
    """(h, w) after resizing, by the rule of maskrcnn-benchmark.

    The short side becomes ``min_size``, or as much less as keeps the long side near ``max_size``; the long side is
    truncated, and may exceed ``max_size`` by the rounding of the short one.
    """
    short, long = min(height, width), max(height, width)
    if long / short * min_size > max_size:
        min_size = max(1, round(max_size * short / long))
    stretched = int(min_size * long / short)
    return (min_size, stretched) if height <= width else (stretched, min_size)


def rounded_size(height: int, width: int, min_size: int, max_size: int) -> Size:
    """(h, w) after resizing, by the rule of detectron2: sides are rounded, and neither exceeds ``max_size``."""
    scale = min_size / min(height, width)
    rows, columns = (float(min_size), scale * width) if height < width else (scale * height, float(min_size))
    if max(rows, columns) > max_size:
        scale = max_size / max(rows, columns)
        rows, columns = rows * scale, columns * scale
    return max(1, int(rows + 0.5)), max(1, int(columns + 0.5))


class EvalTransform:
    """PIL picture (RGB) -> (3, h, w) float32: resized, normalised; no padding.

    Args:
        min_size: Short side, pixels.
        max_size: Long side, pixels; wins over ``min_size``.
        mean: Of each channel, in the order and range that ``bgr`` makes.
        std: Likewise.
        bgr: Blue, green, red from 0 to 255; else red, green, blue from 0 to 1.
        detectron2: Red, green, blue from 0 to 255 instead, and sides as :func:`rounded_size` says.
    """

    def __init__(
        self,
        min_size: int,
        max_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        bgr: bool = True,
        detectron2: bool = False,
    ):
        self.min_size, self.max_size, self.detectron2 = min_size, max_size, detectron2
        self.bgr, self.unit = bgr and not detectron2, not bgr and not detectron2
        self.mean, self.std = (torch.tensor(values, dtype=torch.float32) for values in (mean, std))

    def size(self, height: int, width: int) -> Size:
        """(h, w) that a picture of this size gets."""
        rule = rounded_size if self.detectron2 else resize_size
        return rule(height, width, self.min_size, self.max_size)

    def __call__(self, picture: Image.Image) -> Tensor:
        return self.normalise(self.resize(picture))

    def resize(self, picture: Image.Image) -> Image.Image:
        height, width = self.size(picture.height, picture.width)
        return picture.resize((width, height), Image.Resampling.BILINEAR)

    def normalise(self, picture: Image.Image) -> Tensor:
        """Bit for bit what division by 255, times 255, minus mean, over std give: x / 255 * 255 is x in float32."""
        source = torch.from_numpy(np.array(picture))
        pixels = torch.empty(3, picture.height, picture.width)
        for channel, plane in enumerate(pixels):
            plane.copy_(source[..., 2 - channel if self.bgr else channel])
            if self.unit:
                plane.div_(255)
            plane.sub_(self.mean[channel]).div_(self.std[channel])
        return pixels


@dataclass(frozen=True)
class ColourJitter:
    """Colours changed at random, as by torchvision's ``ColorJitter``; what is 0 stays and draws nothing.

    Attributes:
        brightness: A factor is drawn from 1 less this (at least 0) to 1 and this.
        contrast: Likewise.
        saturation: Likewise.
        hue: Turns of the circle of colours are drawn from minus this to this; at most 0.5, which gives any hue.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __call__(self, picture: Image.Image, rng: Random) -> Image.Image:
        changes = [
            (functional.adjust_brightness, max(0.0, 1 - self.brightness), 1 + self.brightness),
            (functional.adjust_contrast, max(0.0, 1 - self.contrast), 1 + self.contrast),
            (functional.adjust_saturation, max(0.0, 1 - self.saturation), 1 + self.saturation),
            (functional.adjust_hue, -self.hue, self.hue),
        ]
        wanted = [change for change in changes if change[1] < change[2]]
        rng.shuffle(wanted)
        for adjust, least, most in wanted:
            picture = adjust(picture, rng.uniform(least, most))
        return picture


@dataclass(frozen=True)
class TrainTransform:
    """Other colours, a random size and flips at random, boxes with their picture; the order of the draws is FIBER's.

    Attributes:
        min_sizes: Short sides to choose from, pixels.
        max_size: Long side, pixels; wins.
        flip: Probability of being mirrored. The words of a prompt stay as they are, so that "left" becomes wrong.
        flip_down: Probability of being turned upside down, drawn for when it is not 0.
        jitter: Of the colours. The words of a prompt stay as they are, so that "red" may become wrong.
    """

    min_sizes: tuple[int, ...]
    max_size: int
    flip: float
    flip_down: float = 0.0
    jitter: ColourJitter = ColourJitter()

    def __call__(self, picture: Image.Image, target: Target, rng: Random) -> tuple[Tensor, Target]:
        """(3, h, w) uint8 red, green, blue, a view of (h, w, 3); and the target in its pixels."""
        height, width = resize_size(picture.height, picture.width, rng.choice(self.min_sizes), self.max_size)
        boxes = rescale(target.boxes, (picture.height, picture.width), (height, width))
        picture = self.jitter(picture, rng)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        if rng.random() < self.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            boxes = flip_left_right(boxes, width, plus_one=True)
        if self.flip_down and rng.random() < self.flip_down:
            picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
            boxes = flip_top_bottom(boxes, height, plus_one=True)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return pixels, replace(target, boxes=boxes, meta=replace(target.meta, size=(height, width)))


@dataclass(frozen=True)
class Normalise:
    """Batches of uint8 red, green, blue -> what :class:`EvalTransform` makes, bit for bit; on the device of the batch.

    Attributes:
        mean: Of each channel, in the order and range that ``bgr`` makes.
        std: Likewise.
        bgr: Blue, green, red from 0 to 255; else red, green, blue from 0 to 1.
        detectron2: Red, green, blue from 0 to 255 instead.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = True
    detectron2: bool = False

    def __call__(self, images: ImageBatch) -> ImageBatch:
        mean, std = (images.pixels.new_tensor(row, dtype=torch.float32).view(3, 1, 1) for row in (self.mean, self.std))
        pixels = (images.pixels.flip(1) if self._flipped else images.pixels).to(
            torch.float32, memory_format=torch.contiguous_format
        )
        if self._unit:
            pixels = pixels.div_(255)
        pixels = pixels.sub_(mean).div_(std)
        for row, meta in zip(pixels, images.metas, strict=True):
            row[:, meta.size[0] :] = 0
            row[:, :, meta.size[1] :] = 0
        return replace(images, pixels=pixels)

    def undo(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> uint8 red, green, blue; for people to look at."""
        mean, std = (pixels.new_tensor(row).view(3, 1, 1) for row in (self.mean, self.std))
        raw = pixels * std + mean
        raw = raw.flip(1) if self._flipped else raw
        return (raw * 255 if self._unit else raw).round().clamp(0, 255).to(torch.uint8)

    @property
    def _flipped(self) -> bool:
        return self.bgr and not self.detectron2

    @property
    def _unit(self) -> bool:
        return not self.bgr and not self.detectron2
