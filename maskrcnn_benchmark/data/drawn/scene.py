"""What is in a drawn scene and where: everything but the paint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from maskrcnn_benchmark.data.drawn.dice import Dice
from maskrcnn_benchmark.data.drawn.shapes import FULL, SHAPES, Coverage, cover, place
from maskrcnn_benchmark.data.drawn.vocabulary import COLOURS, SIZES, TEXTURES

VISIBLE = 65  # least percent of a thing that other things and the border leave to be seen
TRIES = 40  # places that are tried for a thing
SETTINGS = ("plain", "clouds", "planks", "tiles", "speckles", "stripes")
GROUNDS = (
    (216, 208, 190),
    (196, 208, 214),
    (204, 212, 194),
    (222, 212, 220),
    (164, 158, 150),
    (146, 160, 168),
    (150, 138, 150),
    (92, 100, 112),
    (90, 88, 84),
    (66, 80, 82),
    (78, 70, 88),
)
CONTRAST = 180  # least difference of a ground from each thing, summed over the three colours

Owner = npt.NDArray[np.int16]  # (h, w) number of the thing that is to be seen, -1: none


@dataclass(frozen=True)
class Thing:
    """An object of a scene."""

    shape: str
    colour: str
    texture: str
    size: str  # "small", "big", or "" for what lies between
    centre: tuple[int, int]  # x, y in pixels
    radius: int  # in thousandths of a pixel
    angle: int  # degrees, clockwise
    rgb: tuple[int, int, int]  # this one's shade of its colour

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Sprite:
    """The pixels of a thing, wherever it is."""

    coverage: Coverage
    first: tuple[int, int]  # x, y of its first pixel from the centre

    def window(self, centre: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The part that is in a picture of (h, w): slices of the picture, and slices of the sprite."""
        (h, w), (x, y) = self.coverage.shape, (centre[0] + self.first[0], centre[1] + self.first[1])
        top, left = max(0, y), max(0, x)
        bottom, right = max(top, min(size[0], y + h)), max(left, min(size[1], x + w))
        return (slice(top, bottom), slice(left, right)), (slice(top - y, bottom - y), slice(left - x, right - x))


@dataclass(frozen=True)
class Scene:
    """Things on a ground, from back to front; of each of them enough can be seen to tell what it is."""

    size: tuple[int, int]  # h, w
    things: tuple[Thing, ...]
    sprites: tuple[Sprite, ...]
    owner: Owner
    visible: tuple[int, ...]  # percent of each thing
    setting: str  # pattern of the ground
    ground: tuple[int, int, int]


def sprite(thing_shape: str, angle: int, radius: int) -> Sprite:
    """The pixels of a shape whose centre is the centre of a pixel."""
    points = place(SHAPES[thing_shape][0], angle, radius) + 500
    return Sprite(*cover(points))


class Board:
    """A picture that things are put into, each in front of those before."""

    def __init__(self, size: tuple[int, int]):
        self.size = size
        self.things: list[Thing] = []
        self.sprites: list[Sprite] = []
        self.owner: Owner = np.full(size, -1, dtype=np.int16)
        self._whole: list[int] = []  # pixels of each thing, if nothing covered it
        self._seen: list[int] = []

    def put(self, thing: Thing, pixels: Sprite) -> bool:
        """Put a thing in front; not if too little would be seen of it or of another one, or two would flow together."""
        inside, part = pixels.window(thing.centre, self.size)
        solid = pixels.coverage * 2 > FULL
        mine, under = solid[part], self.owner[inside]
        whole, seen = int(solid.sum()), int(mine.sum())
        if seen * 100 < VISIBLE * whole or not seen:
            return False
        hidden = np.bincount(under[mine] + 1, minlength=len(self.things) + 1)[1:].tolist()
        left = [have - lost for have, lost in zip(self._seen, hidden, strict=True)]
        for other, lost, rest, total in zip(self.things, hidden, left, self._whole, strict=True):
            if rest * 100 < VISIBLE * total or (lost and other.colour == thing.colour):
                return False
        under[mine] = len(self.things)
        self.things.append(thing)
        self.sprites.append(pixels)
        self._whole.append(whole)
        self._seen = [*left, seen]
        return True

    def scene(self, setting: str, ground: tuple[int, int, int]) -> Scene:
        visible = tuple(100 * seen // whole for seen, whole in zip(self._seen, self._whole, strict=True))
        return Scene(self.size, tuple(self.things), tuple(self.sprites), self.owner, visible, setting, ground)


def make_scene(dice: Dice, size: tuple[int, int], pairs: Sequence[str]) -> Scene:
    """Put things of some kinds where they can be told.

    Args:
        dice: Decides everything.
        size: (h, w) in pixels.
        pairs: A colour and a shape for each thing. The first one is in the scene for sure, others as there is room.
    """
    board = Board(size)
    crowded = dice.chance(60)  # things may touch and cover each other
    for pair in pairs:
        _place(board, dice, pair, crowded)
    ground = _ground(dice, board.things)
    return board.scene(dice.pick(SETTINGS), ground)


def _place(board: Board, dice: Dice, pair: str, crowded: bool) -> None:
    colour, shape = pair.split()
    height, width = board.size
    word = dice.weighted(list(SIZES), (3, 4, 3))
    radius, turn = dice.between(*SIZES[word]) * min(board.size), SHAPES[shape][1]
    angle, texture = dice.between(-turn, turn), dice.pick((TEXTURES[0], *TEXTURES))
    shade = dice.between(244, 268)
    red, green, blue = (min(255, max(0, (value * shade >> 8) + dice.between(-8, 8))) for value in COLOURS[colour])
    pixels = sprite(shape, angle, radius)
    reach = radius // 1000
    margin = reach * 4 // 10 if crowded else reach
    for _ in range(TRIES):
        centre = (_within(dice, margin, width), _within(dice, margin, height))
        thing = Thing(shape, colour, texture, word, centre, radius, angle, (red, green, blue))
        if (crowded or _is_apart(thing, board.things)) and board.put(thing, pixels):
            return
    if not board.things:
        board.put(replace(thing, centre=(width // 2, height // 2)), pixels)


def _within(dice: Dice, margin: int, side: int) -> int:
    return dice.between(min(margin, side // 2), max(side - 1 - margin, side // 2))


def _is_apart(thing: Thing, others: Sequence[Thing]) -> bool:
    return all(
        (1000 * (thing.centre[0] - other.centre[0])) ** 2 + (1000 * (thing.centre[1] - other.centre[1])) ** 2
        > (thing.radius + other.radius) ** 2
        for other in others
    )


def _ground(dice: Dice, things: Sequence[Thing]) -> tuple[int, int, int]:
    """A colour that no thing disappears in."""
    grounds = dice.shuffled(GROUNDS)
    room = {ground: min((_difference(ground, thing.rgb) for thing in things), default=CONTRAST) for ground in grounds}
    found = next((ground for ground in grounds if room[ground] >= CONTRAST), max(grounds, key=room.__getitem__))
    red, green, blue = (value + dice.between(-8, 8) for value in found)
    return red, green, blue


def _difference(one: tuple[int, int, int], other: tuple[int, int, int]) -> int:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))
