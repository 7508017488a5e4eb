"""From a class activation map to pseudo boxes, as in DAP (https://github.com/mikuhatsune/dap).

A map has one value for each cell of a picture. Where it exceeds a threshold, each connected region becomes the box
whose uniform distribution has the same mean and variance as the values inside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from maskrcnn_benchmark.layers.ops import batched_nms

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class BoxRule:
    """How a map becomes boxes."""

    thresholds: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5)  # boxes come in this order
    most: int = 4  # regions of a threshold, the largest first
    smallest: float = 0.5  # a region is left out when its rectangle is smaller than this part of the largest
    bias: float = 0.22  # added to the values of a region: raises the weight of its weaker cells


RELEASED = BoxRule()
"""Of the boxes that DAP was trained on."""


def boxes_of_map(
    values: np.ndarray, size: tuple[int, int], cell: float, rule: BoxRule = RELEASED
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes from one map.

    Args:
        values: (rows, columns) float32, about 0 to 1, finite.
        size: (h, w) of the picture in pixels.
        cell: Sides of a cell in pixels of the picture.
        rule: Thresholds and the like.

    Returns:
        Boxes (k, 4) float32 x1, y1, x2, y2 in pixels of the picture, cut at 0 and at w - 1 and h - 1, in the order of
        the thresholds and by falling size of their regions; and scores (k,) float32: area as a part of the area of the
        first one. Where no value exceeds a threshold, the whole picture is the only box.
    """
    found = [box for threshold in rule.thresholds for box in _regions(values, values > threshold, rule)]
    if not found:
        return whole_picture(size)
    height, width = size
    boxes = (np.array(found) * cell).clip(0, [width - 1, height - 1] * 2).astype(np.float32)
    return boxes, area_scores(boxes)


def area_scores(boxes: np.ndarray) -> np.ndarray:
    """The scores (k,) float32 of the boxes (k, 4) of one picture: area as a part of the area of the first one."""
    areas: np.ndarray = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas / (areas[0] or areas.max() or np.float32(1))  # cells beyond the picture: a box without area


def whole_picture(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The box of everything and its score, for a picture of (h, w) whose map says nothing."""
    return np.array([[0, 0, size[1] - 1, size[0] - 1]], np.float32), np.ones(1, np.float32)


def _regions(values: np.ndarray, mask: np.ndarray, rule: BoxRule) -> Iterator[Box]:
    """Boxes in cells of the largest regions of a mask; neighbours share a side."""
    regions, _ = ndimage.label(mask)
    places = ndimage.find_objects(regions)
    areas = np.array([(y.stop - y.start) * (x.stop - x.start) for y, x in places])
    weights = (values + np.float32(rule.bias)) * mask
    for index in np.argsort(-areas, kind="stable")[: rule.most]:
        if areas[index] < rule.smallest * areas.max():
            break
        y, x = places[index]
        yield _same_moments(weights[y, x], x.start, y.start)


def _same_moments(weights: np.ndarray, left: int, top: int) -> Box:
    """The box in cells with mean and variance of weights, whose first cell is (left, top); at least a cell wide.

    Cells of other regions inside the rectangle count too, as in the original.
    """
    weights = weights.astype(np.float64)
    total = weights.sum()
    middle, half = [], []
    for axis, start in ((0, left), (1, top)):
        along, place = weights.sum(axis=axis), np.arange(start, start + weights.shape[1 - axis])
        mean = (along * place).sum() / total
        variance = (along * (place - mean) ** 2).sum() / total
        middle.append(mean + 0.5)
        half.append(max(1.0, np.sqrt(12 * variance)) / 2)
    return middle[0] - half[0], middle[1] - half[1], middle[0] + half[0], middle[1] + half[1]


def suppress(first: np.ndarray, boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Which boxes non-maximum suppression keeps in each of N pictures, both border pixels counted.

    Args:
        first: (N + 1,) where the boxes of each picture begin.
        boxes: (M, 4) float32.
        scores: (M,) float32.
        threshold: Of IoU: beyond it the smaller score goes.

    Returns:
        Indices in ascending order, as the original keeps boxes in the order in which they were made.
    """
    picture = torch.from_numpy(np.repeat(np.arange(len(first) - 1), np.diff(first)))
    kept = batched_nms(
        torch.from_numpy(boxes), torch.from_numpy(scores), picture, threshold, plus_one=True, sort="index"
    )
    return kept.numpy()
