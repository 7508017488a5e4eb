"""Masks as outlines that stand for exactly their pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]  # (h, w)
Loop = list[tuple[int, int]]  # x, y of the corners of pixels, inside to the right

STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, down, left, up


def outlines(mask: Mask) -> list[Loop]:
    """The borders of a mask, straight runs as one step; those around it turn clockwise, those of holes the other way.

    Pixels that touch at a corner only belong to different parts.
    """
    steps = _border(mask)
    loops = []
    while steps:
        loops.append(_follow(steps, next(iter(steps))))
    return loops


def polygons(mask: Mask) -> list[list[int]]:
    """COCO's ``segmentation``: x, y, x, y, ... along the edges of the pixels.

    A mask with holes is cut into pieces that have none; together they are exactly the mask.
    """
    return [[value for point in loop for value in point] for loop in _pieces(mask)]


def painted(mask: Mask) -> list[list[list[int]]]:
    """The same as [x, y] of pixels on the border, for those who paint the border and what is inside it."""
    return [[list(pixel) for pixel in _pixels(loop)] for loop in _pieces(mask)]


def _pieces(mask: Mask) -> list[Loop]:
    """Outlines of parts without holes; only the box around the mask is looked at."""
    if not mask.any():
        return []
    x1, y1, x2, y2 = box_of(mask)
    return [[(x + x1, y + y1) for x, y in loop] for loop in _without_holes(mask[y1:y2, x1:x2])]


def _follow(steps: dict[tuple[int, int], list[int]], start: tuple[int, int]) -> Loop:
    """The border that leaves a corner until it is back there; what it consists of is taken out of ``steps``."""
    point, way, loop = start, -1, Loop()
    while True:
        ways = steps[point]
        following = ways[0] if len(ways) == 1 or way < 0 else (way + 1) % 4  # of two, that of the same pixel
        ways.remove(following)
        if not ways:
            del steps[point]
        if following != way:
            loop.append(point)
        way = following
        point = (point[0] + STEPS[way][0], point[1] + STEPS[way][1])
        if point == start and (way + 1) % 4 not in steps.get(start, ()):
            return loop


def _border(mask: Mask) -> dict[tuple[int, int], list[int]]:
    """Corner of a pixel -> the directions in which the border leaves it, the mask on the right."""
    padded = np.pad(mask, 1)
    here, above, left = padded[1:, 1:], padded[:-1, 1:], padded[1:, :-1]
    steps: dict[tuple[int, int], list[int]] = {}
    for way, (edge, dx, dy) in enumerate(
        (
            (here & ~above, 0, 0),  # along the top of a pixel, to the right
            (~here & left, 0, 0),  # along the right side, down
            (~here & above, 1, 0),  # along the bottom, to the left
            (here & ~left, 0, 1),  # along the left side, up
        )
    ):
        rows, columns = np.nonzero(edge)
        for x, y in zip((columns + dx).tolist(), (rows + dy).tolist(), strict=True):
            steps.setdefault((x, y), []).append(way)
    return steps


def _is_hole(loop: Loop) -> bool:
    return sum(x * v - u * y for (x, y), (u, v) in zip(loop, [*loop[1:], loop[0]], strict=True)) < 0


def _without_holes(mask: Mask, depth: int = 0) -> list[Loop]:
    loops = outlines(mask)
    hole = next((loop for loop in loops if _is_hole(loop)), None)
    if hole is None:
        return loops
    axis = depth % 2  # cut through the middle of the hole, upright and flat in turn
    values = [point[axis] for point in hole]
    cut = (min(values) + max(values) + 1) // 2
    one, other = mask.copy(), mask.copy()
    if axis == 0:
        one[:, cut:], other[:, :cut] = False, False
    else:
        one[cut:], other[:cut] = False, False
    return [loop for half in (one, other) for loop in _without_holes(half, depth + 1)]


def _pixels(loop: Loop) -> list[tuple[int, int]]:
    """The pixels that are corners of an outline, in order."""
    found: list[tuple[int, int]] = []
    for (x0, y0), (x1, y1) in zip(loop, [*loop[1:], loop[0]], strict=True):
        dx, dy = _sign(x1 - x0), _sign(y1 - y0)
        for x, y in ((x0 + dx, y0 + dy), (x1, y1)):  # the first and the last step along it
            pixel = _pixel(x, y, dx, dy)
            if not found or found[-1] != pixel:
                found.append(pixel)
    return found


def _pixel(x: int, y: int, dx: int, dy: int) -> tuple[int, int]:
    """The pixel to the right of the unit step that ends at (x, y)."""
    if dx:
        return (x - 1, y) if dx > 0 else (x, y - 1)
    return (x - 1, y - 1) if dy > 0 else (x, y)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 around a mask that is not empty, the last row and column not in it."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)).tolist() for axis in (1, 0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
