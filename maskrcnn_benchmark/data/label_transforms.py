"""From a picture with labels to what detectron2's family is trained with: BoxSup, Detic, DECOLA, CenterNet2.

Rules and order of the random draws are those of DECOLA (https://github.com/janghyuncho/DECOLA) and detectron2
(https://github.com/facebookresearch/detectron2). An augmentation draws a plan of steps; all of them are then taken.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.random import RandomState
from PIL import Image
from torch import Tensor

from maskrcnn_benchmark.data.transforms import rounded_size
from maskrcnn_benchmark.structures import Target
from maskrcnn_benchmark.structures.boxes import clip, flip_left_right
from maskrcnn_benchmark.structures.polygons import move

THIN = 1e-5  # pixels; a box that is not wider or higher is none


@dataclass(frozen=True)
class Resize:
    """To a size in pixels; boxes are scaled by ``scale``, where that is not exactly what the sides are."""

    height: int
    width: int
    scale: float | None = None


@dataclass(frozen=True)
class Crop:
    """To a part, in pixels; boxes may reach beyond it."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Flip:
    """Left to right."""


Step = Resize | Crop | Flip


class LabelTransform(Protocol):
    """What an augmentation is."""

    def plan(self, height: int, width: int, rng: RandomState) -> list[Step]:
        """The steps for a picture of a size, with everything random drawn."""
        ...


@dataclass(frozen=True)
class DetrAugment:
    """Flip and resize; every other time a crop of another size goes before the resizing.

    Attributes:
        min_sizes: Short sides to choose from, pixels.
        max_size: Longest side, pixels.
        flip: Probability of being mirrored.
        crop: Probability of a crop.
        crop_from: Short sides to choose from before it; the long side follows, however long.
        crop_sizes: Least and largest side of what is cut out, pixels; of a smaller picture all.
    """

    min_sizes: tuple[int, ...]
    max_size: int
    flip: float = 0.5
    crop: float = 0.5
    crop_from: tuple[int, ...] = (400, 500, 600)
    crop_sizes: tuple[int, int] = (384, 600)

    def plan(self, height: int, width: int, rng: RandomState) -> list[Step]:
        """See :class:`LabelTransform`."""
        cropped = rng.rand() <= self.crop
        steps: list[Step] = [Flip()] if rng.uniform(0, 1) < self.flip else []
        if cropped:
            height, width = rounded_size(height, width, int(rng.choice(self.crop_from)), sys.maxsize)
            steps.append(Resize(height, width))
            crop = self._crop(height, width, rng)
            height, width = crop.height, crop.width
            steps.append(crop)
        return [*steps, Resize(*rounded_size(height, width, int(rng.choice(self.min_sizes)), self.max_size))]

    def _crop(self, height: int, width: int, rng: RandomState) -> Crop:
        least, largest = self.crop_sizes
        rows, columns = (int(rng.randint(min(side, least), min(side, largest) + 1)) for side in (height, width))
        return Crop(int(rng.randint(height - rows + 1)), int(rng.randint(width - columns + 1)), rows, columns)


@dataclass(frozen=True)
class ResizeShortestEdge:
    """Resize, then flip.

    Attributes:
        min_sizes: Short sides, pixels: to choose from, or the least and the largest.
        max_size: Longest side, pixels.
        flip: Probability of being mirrored.
        sampling: "choice", or "range": any size from the first to the last of ``min_sizes``.
    """

    min_sizes: tuple[int, ...]
    max_size: int
    flip: float = 0.5
    sampling: str = "range"

    def plan(self, height: int, width: int, rng: RandomState) -> list[Step]:
        """See :class:`LabelTransform`."""
        if self.sampling == "range":
            side = int(rng.randint(self.min_sizes[0], self.min_sizes[-1] + 1))
        else:
            side = int(rng.choice(self.min_sizes))
        steps: list[Step] = [Resize(*rounded_size(height, width, side, self.max_size))]
        return [*steps, Flip()] if rng.uniform(0, 1) < self.flip else steps


@dataclass(frozen=True)
class EfficientDetResizeCrop:
    """Resize by a random factor, cut out a part, flip. What is smaller than the part stays so.

    Attributes:
        side: Of the part, pixels.
        scale: Least and largest factor; with 1 the long side of the picture becomes ``side``.
        flip: Probability of being mirrored.
    """

    side: int
    scale: tuple[float, float]
    flip: float = 0.5

    def plan(self, height: int, width: int, rng: RandomState) -> list[Step]:
        """See :class:`LabelTransform`."""
        wanted = rng.uniform(*self.scale) * self.side
        scale = min(wanted / height, wanted / width)
        rows, columns = max(1, int(height * scale)), max(1, int(width * scale))
        top, left = (int(max(0, side - self.side) * rng.uniform(0, 1)) for side in (rows, columns))
        part = Crop(top, left, min(self.side, rows), min(self.side, columns))
        steps: list[Step] = [Resize(rows, columns, scale), part]
        return [*steps, Flip()] if rng.uniform(0, 1) < self.flip else steps


def apply(steps: Sequence[Step], picture: Image.Image, target: Target) -> tuple[Tensor, Target]:
    """Take all steps: (3, h, w) uint8 red, green, blue, a view of (h, w, 3); and the target in its pixels.

    Boxes are cut at the border in the end; those of which nothing is left go, with their outlines.
    """
    for step in steps:
        target = _moved(step, picture.height, picture.width, target)
        picture = _changed(step, picture)
    size = (picture.height, picture.width)
    boxes = clip(target.boxes, size)
    target = replace(target, boxes=boxes, meta=replace(target.meta, size=size))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return pixels, target[((boxes[:, 2:] - boxes[:, :2]) > THIN).all(dim=1)]


def _changed(step: Step, picture: Image.Image) -> Image.Image:
    if isinstance(step, Resize):
        return picture.resize((step.width, step.height), Image.Resampling.BILINEAR)
    if isinstance(step, Crop):
        return picture.crop((step.left, step.top, step.left + step.width, step.top + step.height))
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _moved(step: Step, height: int, width: int, target: Target) -> Target:
    """The target after a step that is taken with a picture of a size."""
    scale, shift, boxes = (1.0, 1.0), (0.0, 0.0), target.boxes
    if isinstance(step, Resize):
        scale = (step.width / width, step.height / height) if step.scale is None else (step.scale, step.scale)
        boxes = boxes * boxes.new_tensor([*scale, *scale])
    elif isinstance(step, Crop):
        shift = (-float(step.left), -float(step.top))
        boxes = boxes + boxes.new_tensor([*shift, *shift])
    else:
        scale, shift, boxes = (-1.0, 1.0), (float(width), 0.0), flip_left_right(boxes, width)
    polygons = None if target.polygons is None else move(target.polygons, scale, shift)
    return replace(target, boxes=boxes, polygons=polygons)
