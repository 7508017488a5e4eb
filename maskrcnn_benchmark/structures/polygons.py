"""Outlines of objects: each object has one or more polygons, float64 arrays x, y, x, y, ... in pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_api

Polygon = npt.NDArray[np.float64]  # (2 K,) of K corners
Polygons = tuple[tuple[Polygon, ...], ...]  # per object

SMALLEST_SIDE = 0.1  # pixels of a region that a mask is drawn in


def move(polygons: Polygons, scale: tuple[float, float], shift: tuple[float, float] = (0.0, 0.0)) -> Polygons:
    """Corners (x, y) at (scale x + shift); a scale of -1 and a shift by the width mirror a picture."""
    factors, offsets = np.array(scale), np.array(shift)
    return tuple(
        tuple((part.reshape(-1, 2) * factors + offsets).reshape(-1) for part in outline) for outline in polygons
    )


def draw_in_box(outline: tuple[Polygon, ...], box: npt.NDArray[np.float64], side: int) -> npt.NDArray[np.bool_]:
    """The part of an object in a box (4,) xyxy, as a mask (side, side); COCO's rule says which pixels are inside."""
    width, height = np.maximum(box[2:] - box[:2], SMALLEST_SIDE)
    scale = (side / width, side / height)
    (moved,) = move((outline,), scale, (-box[0] * scale[0], -box[1] * scale[1]))
    if not moved:
        return np.zeros((side, side), bool)
    runs = mask_api.merge(mask_api.frPyObjects([part.tolist() for part in moved], side, side))
    return np.asarray(mask_api.decode(runs), bool)
