"""What is in a drawn scene and where: everything but the paint.

A scene knows shape, colour, texture, place and size of each thing, which is what captions and referring expressions
speak of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

CLASSES = (
    "red circle",
    "blue square",
    "green triangle",
    "yellow star",
    "purple heart",
    "orange hexagon",
    "pink moon",
    "brown cross",
)
"""The classes of a data set when nothing else is said."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 38, 42),
    "orange": (240, 126, 28),
    "yellow": (246, 206, 40),
    "green": (46, 150, 66),
    "blue": (38, 92, 206),
    "purple": (128, 58, 172),
    "pink": (242, 128, 178),
    "brown": (122, 76, 42),
    "white": (242, 242, 238),
    "black": (34, 34, 40),
    "grey": (128, 130, 136),
}

TEXTURES = ("plain", "plain", "shaded", "striped", "dotted", "checked")
SETTINGS = ("plain", "clouds", "planks", "tiles", "speckles")
GROUNDS = (
    (216, 208, 190),
    (196, 208, 212),
    (206, 214, 196),
    (222, 214, 220),
    (86, 96, 108),
    (92, 88, 80),
    (70, 84, 80),
)

Points = np.ndarray  # (K, 2) x, y; y points down


def _regular(corners: int) -> Points:
    turns = 2 * np.pi * np.arange(corners) / corners - np.pi / 2
    return np.stack((np.cos(turns), np.sin(turns)), axis=1)


def _star() -> Points:
    points = _regular(10)
    points[1::2] *= 0.46
    return points


def _cross() -> Points:
    arm, half = 0.95, 0.32
    corner = [(half, -arm), (half, -half), (arm, -half)]
    quarters = [np.array(corner) @ _rotation(turn * np.pi / 2).T for turn in range(4)]
    return np.concatenate(quarters)


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack((x, -y), axis=1) / 16.5


def _moon() -> Points:
    """A disc less a smaller one that lies to its right."""
    outer = np.linspace(0.28 * np.pi, 1.72 * np.pi, 48)
    tip = np.array((np.cos(outer[0]), np.sin(outer[0])))
    centre = 0.62
    radius = float(np.hypot(tip[0] - centre, tip[1]))
    edge = np.arctan2(tip[1], tip[0] - centre)
    inner = np.linspace(2 * np.pi - edge, edge, 40)
    bite = np.stack((centre + radius * np.cos(inner), radius * np.sin(inner)), axis=1)
    disc = np.stack((np.cos(outer), np.sin(outer)), axis=1)
    return np.concatenate((disc, bite)) + np.array((0.25, 0))


def _arrow() -> Points:
    half = [(1.0, 0.0), (0.15, 0.72), (0.15, 0.27), (-1.0, 0.27)]
    return np.array([*half, *((x, -y) for x, y in reversed(half[1:]))])


def _rotation(turn: float) -> np.ndarray:
    return np.array(((np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))))


SHAPES: dict[str, tuple[Callable[[], Points], float]] = {
    "circle": (lambda: _regular(64), np.pi),
    "square": (lambda: _regular(4) @ _rotation(np.pi / 4), 0.3),
    "triangle": (lambda: _regular(3), 0.5),
    "star": (_star, np.pi),
    "heart": (_heart, 0.4),
    "hexagon": (lambda: _regular(6), np.pi),
    "moon": (_moon, 0.8),
    "cross": (_cross, 0.3),
    "diamond": (lambda: _regular(4) * (0.66, 1.0), 0.25),
    "arrow": (_arrow, np.pi),
}
"""Shape -> its outline around the origin, about 1 in radius; how far it may be turned either way and keep its name."""


@dataclass(frozen=True)
class Thing:
    """An object of a scene; places in pixels of the picture."""

    shape: str
    colour: str
    texture: str
    centre: tuple[float, float]  # x, y
    radius: float
    angle: float  # radians, clockwise
    rgb: tuple[float, float, float]  # this one's shade of its colour, 0..255

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def outline(self) -> Points:
        """(K, 2) x, y of the whole outline, also where something covers it or the picture ends."""
        return SHAPES[self.shape][0]() @ _rotation(self.angle).T * self.radius + self.centre


@dataclass(frozen=True)
class Scene:
    """Things on a ground, from back to front."""

    size: tuple[int, int]  # h, w
    things: tuple[Thing, ...]
    setting: str  # pattern of the ground
    ground: tuple[float, float, float]  # its colour, 0..255
    seed: int  # of everything that is paint only: grain, clouds, light


def make_scene(
    rng: Generator,
    size: tuple[int, int] = (240, 320),
    classes: Sequence[str] = CLASSES,
    first: str | None = None,
    most: int = 6,
) -> Scene:
    """Throw things of ``classes`` on a ground, and among them some that are of no class.

    Args:
        rng: Decides everything.
        size: (h, w) in pixels.
        classes: Names such as "red circle".
        first: A class that is to be in the scene.
        most: At most so many things with a class.

    Raises:
        ValueError: a class is not a colour and a shape.
    """
    known = [split_name(name) for name in classes]
    others = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in known]
    kinds = [split_name(first or classes[int(rng.integers(len(classes)))])]
    kinds += [known[i] for i in rng.integers(len(known), size=rng.integers(0, most))]
    kinds += [others[i] for i in rng.integers(len(others), size=rng.integers(0, 4))]
    things: list[Thing] = []
    for colour, shape in kinds:
        thing = _place(rng, size, colour, shape, things)
        if thing is not None:
            things.append(thing)
    order = rng.permutation(len(things))
    ground = GROUNDS[rng.integers(len(GROUNDS))]
    shade = rng.uniform(0.94, 1.06) * np.array(ground) + rng.normal(0, 3, 3)
    setting = SETTINGS[rng.integers(len(SETTINGS))]
    return Scene(size, tuple(things[i] for i in order), setting, _rgb(shade), int(rng.integers(2**31)))


def split_name(name: str) -> tuple[str, str]:
    """("red", "circle") of "red circle".

    Raises:
        ValueError: it is not a colour and a shape.
    """
    colour, _, shape = name.partition(" ")
    if colour not in COLOURS or shape not in SHAPES:
        raise ValueError(f"{name!r} is not a colour ({', '.join(COLOURS)}) and a shape ({', '.join(SHAPES)})")
    return colour, shape


def _place(rng: Generator, size: tuple[int, int], colour: str, shape: str, others: Sequence[Thing]) -> Thing | None:
    """A thing where it covers little of the others; None when there is no room."""
    for attempt in range(40):
        radius = min(size) * rng.uniform(0.07, 0.22) * (0.98**attempt)
        margin = 0.7 * radius  # some are cut by the border
        x, y = (float(rng.uniform(margin, side - margin)) for side in (size[1], size[0]))
        if all(np.hypot(x - o.centre[0], y - o.centre[1]) > 0.74 * (radius + o.radius) for o in others):
            turn = SHAPES[shape][1]
            return Thing(
                shape,
                colour,
                TEXTURES[rng.integers(len(TEXTURES))],
                (x, y),
                float(radius),
                float(rng.uniform(-turn, turn)),
                _rgb(np.array(COLOURS[colour]) * rng.uniform(0.9, 1.08) + rng.normal(0, 5, 3)),
            )
    return None


def _rgb(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = np.clip(values, 0, 255).tolist()
    return red, green, blue
