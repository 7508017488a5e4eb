"""From a picture with a caption to what MDETR is trained with: boxes, masks and words change together.

Rules and order of the random draws are those of MDETR (https://github.com/ashkamath/mdetr).
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from maskrcnn_benchmark.data.draws import Draws
from maskrcnn_benchmark.data.pictures import Size
from maskrcnn_benchmark.data.transforms import resize_size
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.structures import Prompt, Target
from maskrcnn_benchmark.structures.boxes import clip, flip_left_right, rescale

Region = tuple[int, int, int, int]  # top, left, height, width
Pair = tuple[Image.Image, Target]
TRIES = 100  # at a crop that loses no box
SIDES = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class MdetrTransform:
    """Resize; or resize, crop and resize again.

    Attributes:
        sizes: Short sides to choose from, pixels.
        max_size: Long side, pixels; wins.
        crop: Probability of a crop.
        crop_from: Short sides to choose from before it; the long side follows, however long.
        crop_sizes: Least and largest side of what is cut out, pixels.
        cautious: Never mirrored, and a crop loses no box as a whole, if one of 100 tries does so; so are all data sets
            with captions. Else mirrored every other time, words too.

    Raises:
        ConfigError: a crop could be larger than its picture.
    """

    sizes: tuple[int, ...]
    max_size: int
    crop: float = 0.5
    crop_from: tuple[int, ...] = (400, 500, 600)
    crop_sizes: tuple[int, int] = (384, 1333)
    cautious: bool = True

    def __post_init__(self) -> None:
        least, largest = self.crop_sizes
        if not 0 < least <= min(*self.crop_from, largest):
            raise ConfigError(
                f"AUGMENT.CROP_SIZES {self.crop_sizes} and AUGMENT.CROP_FROM {self.crop_from}: a crop has at least "
                f"{least} pixels, so that must be above 0 and no more than the largest crop and every size before it"
            )

    def __call__(self, picture: Image.Image, target: Target, draws: Draws) -> tuple[Tensor, Target]:
        """(3, h, w) uint8 red, green, blue, a view of (h, w, 3); and the target in its pixels, with its words."""
        if not self.cautious and draws.python.random() < 0.5:
            picture, target = mirrored(picture, target)
        if draws.python.random() < 1 - self.crop:
            picture, target = self._resized(picture, target, self.sizes, self.max_size, draws)
        else:
            picture, target = self._resized(picture, target, self.crop_from, sys.maxsize, draws)
            picture, target = cropped(picture, target, self._region(picture, target, draws))
            picture, target = self._resized(picture, target, self.sizes, self.max_size, draws)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1), target

    @staticmethod
    def _resized(picture: Image.Image, target: Target, sizes: tuple[int, ...], max_size: int, draws: Draws) -> Pair:
        size = resize_size(picture.height, picture.width, draws.python.choice(sizes), max_size)
        return resized(picture, target, size)

    def _region(self, picture: Image.Image, target: Target, draws: Draws) -> Region:
        least, largest = self.crop_sizes
        for _ in range(TRIES if self.cautious else 1):
            width = draws.python.randint(least, min(picture.width, largest))
            height = draws.python.randint(least, min(picture.height, largest))
            region = (0, 0, height, width)
            if (height, width) != (picture.height, picture.width):
                top, left = (
                    int(torch.randint(0, room + 1, (1,), generator=draws.torch))
                    for room in (picture.height - height, picture.width - width)
                )
                region = (top, left, height, width)
            if bool(_inside(target.boxes, region)[1].all()):
                break
        return region


def resized(picture: Image.Image, target: Target, size: Size) -> Pair:
    """A picture with ``size`` (h, w); masks take the nearest pixel."""
    height, width = size
    masks = target.masks
    if masks is not None:
        masks = interpolate(masks[None].to(torch.uint8), size, mode="nearest")[0] > 0 if len(masks) else _none(size)
    boxes = rescale(target.boxes, (picture.height, picture.width), size)
    target = replace(target, boxes=boxes, masks=masks, meta=replace(target.meta, size=size))
    return picture.resize((width, height), Image.Resampling.BILINEAR), target


def _none(size: Size) -> Tensor:
    return torch.zeros(0, *size, dtype=torch.bool)


def cropped(picture: Image.Image, target: Target, region: Region) -> Pair:
    """A part of a picture. Boxes are cut at its border; those outside go, with their masks and their words."""
    top, left, height, width = region
    boxes, keep = _inside(target.boxes, region)
    masks = None if target.masks is None else target.masks[:, top : top + height, left : left + width]
    target = replace(target, boxes=boxes, masks=masks, meta=replace(target.meta, size=(height, width)))
    return picture.crop((left, top, left + width, top + height)), chosen(target, keep)


def _inside(boxes: Tensor, region: Region) -> tuple[Tensor, Tensor]:
    """(N, 4) boxes in a region, and (N,) which of them have an area there."""
    top, left, height, width = region
    boxes = clip(boxes - boxes.new_tensor([left, top, left, top]), (height, width))
    return boxes, (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


def chosen(target: Target, keep: Tensor) -> Target:
    """The objects that a bool mask (N,) chooses, and of the prompt, whose entity ``i`` is box ``i``, theirs."""
    prompt = target.prompt
    if prompt is not None:
        rows = keep.nonzero().flatten().tolist()
        names = tuple(prompt.names[row] for row in rows) if prompt.names else ()
        prompt = replace(
            prompt, spans=tuple(prompt.spans[row] for row in rows), ids=tuple(range(1, len(rows) + 1)), names=names
        )
    return replace(target[keep], prompt=prompt)


def mirrored(picture: Image.Image, target: Target) -> Pair:
    """A picture turned left to right; "left" and "right" change places in its words, also as parts of others."""
    boxes = flip_left_right(target.boxes, picture.width)
    masks = None if target.masks is None else target.masks.flip(-1)
    prompt = None if target.prompt is None else other_side(target.prompt)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), replace(target, boxes=boxes, masks=masks, prompt=prompt)


def other_side(prompt: Prompt) -> Prompt:
    """A prompt with "left" and "right" exchanged; spans move with their words."""
    words = [match.span() for match in re.finditer("left|right", prompt.text)]

    def moved(char: int) -> int:
        shift = 0
        for begin, end in words:
            longer = len(SIDES[prompt.text[begin:end]]) - (end - begin)
            if char >= end:
                shift += longer
            elif char > begin:
                return min(char + shift, end + shift + longer)
        return char + shift

    text = re.sub("left|right", lambda match: SIDES[match[0]], prompt.text)
    spans = tuple(tuple((moved(begin), moved(end)) for begin, end in entity) for entity in prompt.spans)
    return replace(prompt, text=text, spans=spans, names=())
