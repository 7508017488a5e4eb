"""Outlines of the shapes, and how they become pixels, in whole numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ONE = 1 << 12  # length 1 of an outline
TURN = 1 << 14  # length 1 of a sine
FINER = 3  # rows and columns of samples in a pixel
FULL = FINER * FINER  # samples of a pixel

Points = npt.NDArray[np.int64]  # (K, 2) x, y; y points down
Coverage = npt.NDArray[np.uint8]  # (h, w) samples of each pixel that are inside, 0..FULL


def _points(rows: Sequence[tuple[float, float]]) -> Points:
    """The last digits of a sine differ between machines; rounding makes them one."""
    return np.array([(round(ONE * x), round(ONE * y)) for x, y in rows], dtype=np.int64)


def _ring(corners: int, radii: Sequence[float] = (1.0,)) -> list[tuple[float, float]]:
    turns = [2 * math.pi * i / corners - math.pi / 2 for i in range(corners)]
    return [
        (radii[i % len(radii)] * math.cos(turn), radii[i % len(radii)] * math.sin(turn)) for i, turn in enumerate(turns)
    ]


def _heart() -> list[tuple[float, float]]:
    rows = []
    for turn in (2 * math.pi * i / 56 for i in range(56)):
        height = 13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn) - math.cos(4 * turn)
        rows.append((16 * math.sin(turn) ** 3 / 16.5, -height / 16.5))
    return rows


def _moon() -> list[tuple[float, float]]:
    """A disc less another one that lies to its right."""
    tip, middle = 0.27 * math.pi, 0.5
    x, y = math.cos(tip), math.sin(tip)
    radius, edge = math.hypot(x - middle, y), math.atan2(y, x - middle)
    outer = [tip + (2 * math.pi - 2 * tip) * i / 40 for i in range(41)]
    inner = [2 * math.pi - edge - (2 * math.pi - 2 * edge) * i / 32 for i in range(1, 32)]
    disc = [(math.cos(turn), math.sin(turn)) for turn in outer]
    bite = [(middle + radius * math.cos(turn), radius * math.sin(turn)) for turn in inner]
    return [(x + 0.2, y) for x, y in (*disc, *bite)]


def _cross() -> list[tuple[float, float]]:
    arm, half = 0.98, 0.32
    right = [(half, -arm), (half, -half), (arm, -half), (arm, half), (half, half), (half, arm)]
    return [*right, *((-x, -y) for x, y in right)]


def _arrow() -> list[tuple[float, float]]:
    upper = [(1.0, 0.0), (0.1, -0.78), (0.1, -0.28), (-1.0, -0.28)]
    return [*upper, *((x, -y) for x, y in reversed(upper[1:]))]


SHAPES: dict[str, tuple[Points, int]] = {
    "circle": (_points(_ring(48)), 180),
    "square": (_points([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]), 15),
    "triangle": (_points([(0.0, -1.0), (0.92, 0.66), (-0.92, 0.66)]), 25),
    "star": (_points(_ring(10, (1.05, 0.44))), 180),
    "heart": (_points(_heart()), 25),
    "hexagon": (_points(_ring(6)), 180),
    "moon": (_points(_moon()), 40),
    "cross": (_points(_cross()), 15),
    "diamond": (_points([(0.0, -1.1), (0.64, 0.0), (0.0, 1.1), (-0.64, 0.0)]), 12),
    "arrow": (_points(_arrow()), 180),
}
"""Shape -> its outline around the origin, about 1 in radius; degrees it may be turned either way and keep its name."""


def rotation(degrees: int) -> tuple[int, int]:
    """Cosine and sine, in units of :data:`TURN`."""
    turn = math.radians(degrees)
    return round(TURN * math.cos(turn)), round(TURN * math.sin(turn))


def place(outline: Points, degrees: int, radius: int) -> Points:
    """Turn an outline (clockwise) and make it ``radius`` thousandths of a pixel large; in thousandths of a pixel."""
    cosine, sine = rotation(degrees)
    x, y = outline[:, 0], outline[:, 1]
    turned = np.stack((cosine * x - sine * y, sine * x + cosine * y), axis=1) // TURN
    return turned * radius // ONE


def cover(points: Points) -> tuple[Coverage, tuple[int, int]]:
    """How much of each pixel is inside a closed outline.

    Args:
        points: In thousandths of a pixel.

    Returns:
        The pixels that it may touch, and (x, y) of the first of them.
    """
    low = points.min(axis=0) // 1000
    high = -(-points.max(axis=0) // 1000)
    width, height = ((high - low) * FINER).tolist()
    fine = inside((points - low * 1000) * 2 * FINER, 1000, height, width)
    rows = fine.reshape(height, width // FINER, FINER).sum(axis=2, dtype=np.uint8)
    return rows.reshape(height // FINER, FINER, -1).sum(axis=1, dtype=np.uint8), (int(low[0]), int(low[1]))


def inside(points: Points, unit: int, height: int, width: int) -> npt.NDArray[np.bool_]:
    """(height, width) which cells have their centre inside an outline, by the number of edges to their left.

    Args:
        points: Cell (i, j) has its centre at x = (2 j + 1) unit, y = (2 i + 1) unit.
        unit: Half the side of a cell.
        height: Rows.
        width: Columns.
    """
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
    down = y0 <= y1
    x0, y0, x1, y1 = (np.where(down, a, b) for a, b in ((x0, x1), (y0, y1), (x1, x0), (y1, y0)))
    centres = (2 * np.arange(height) + 1) * unit
    row, edge = np.nonzero((y0 <= centres[:, None]) & (centres[:, None] < y1))
    run, rise = (x1 - x0)[edge], (y1 - y0)[edge]
    across = x0[edge] * rise + (centres[row] - y0[edge]) * run  # x of the crossing, times rise
    column = -((rise * unit - across) // (2 * unit * rise))  # the first cell whose centre is not left of it
    place = row * (width + 1) + np.clip(column, 0, width)
    crossings = np.bincount(place, minlength=height * (width + 1)).astype(np.uint8).reshape(height, width + 1)
    return (np.cumsum(crossings[:, :width], axis=1, dtype=np.uint8) & 1).astype(bool)
