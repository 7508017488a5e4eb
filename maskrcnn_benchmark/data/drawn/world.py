"""The drawn world: an endless row of pictures for each seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskrcnn_benchmark.data.drawn.dice import Dice
from maskrcnn_benchmark.data.drawn.masks import box_of
from maskrcnn_benchmark.data.drawn.paint import Pixels, paint
from maskrcnn_benchmark.data.drawn.scene import Scene, make_scene
from maskrcnn_benchmark.data.drawn.vocabulary import (
    DEFAULT_CLASSES,
    WEIGHTS,
    Mix,
    Split,
    allowed,
    check_classes,
    check_names,
    frequency,
    pairs_of,
)
from maskrcnn_benchmark.errors import ConfigError

SMALLEST = 48  # pixels of a side, so that shapes can be told
MOST = 9  # things in a picture


@dataclass(frozen=True)
class Item:
    """A thing as it can be seen."""

    shape: str
    colour: str
    texture: str
    size: str  # "small", "big" or ""
    visible: int  # percent
    box: tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels around what is visible; the last row and column not in it
    mask: npt.NDArray[np.bool_]  # (h, w) what is visible

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def xywh(self) -> list[int]:
        return [self.box[0], self.box[1], self.box[2] - self.box[0], self.box[3] - self.box[1]]


@dataclass(frozen=True)
class Picture:
    """A picture and everything that is in it, from back to front."""

    number: int
    pixels: Pixels
    items: tuple[Item, ...]
    setting: str
    dice: Dice  # for words about it

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)"""
        return self.pixels.shape[0], self.pixels.shape[1]


class World:
    """Pictures by number, from 1: ``world[17]`` is the same whenever and wherever it is drawn.

    Args:
        seed: Another one, other pictures.
        split: What may be drawn.
        size: (h, w) in pixels.
        classes: What the pictures are about: pairs ("red circle") or shapes ("circle"). Things of other kinds that the
            split may have are among them. Default: those that the split is for.
        mix: How often each class is drawn.
        most: Things in a picture, at most.
        also: Classes that come after ``classes``: annotated where they happen to be, but no picture is about them. They
            may be ones that the split never has.

    Raises:
        ConfigError: a class that is unknown or not in the split, a picture too small, or no things.
    """

    def __init__(
        self,
        seed: int = 0,
        split: Split = Split.TRAIN,
        size: tuple[int, int] = (256, 256),
        classes: Sequence[str] | None = None,
        mix: Mix = Mix.EVEN,
        most: int = MOST,
        also: Sequence[str] = (),
    ):
        self.seed, self.split, self.size, self.mix, self.most = seed, split, size, mix, most
        self._about = tuple(DEFAULT_CLASSES[split] if classes is None else classes)
        self.classes = (*self._about, *also)
        check_classes(self._about, split)
        check_names(self.classes)
        if min(size) < SMALLEST:
            raise ConfigError(f"pictures of {size[0]} x {size[1]} pixels: shapes need at least {SMALLEST} a side")
        if not 1 <= most <= MOST:
            raise ConfigError(f"at most {most} things in a picture: give 1 to {MOST}")
        may = allowed(split)
        self._pairs = {name: [pair for pair in pairs_of(name) if pair in may] for name in self.classes}
        ours = {pair for name in self._about for pair in self._pairs[name]}
        self._others = [pair for pair in may if pair not in ours]
        self._weights = [WEIGHTS[frequency(name)] if mix is Mix.LONG_TAIL else 1 for name in self._about]

    def class_of(self, item: Item) -> int | None:
        """The number of the class that an item belongs to, from 0: its pair, else its shape; None: it has none."""
        name = item.name if item.name in self.classes else item.shape
        return self.classes.index(name) if name in self.classes else None

    def __getitem__(self, number: int) -> Picture:
        dice = Dice("drawn world", self.seed, self.split.value, number)
        scene = make_scene(dice.other("places"), self.size, self._kinds(number, dice.other("kinds")))
        return self._picture(number, scene, dice)

    def pictures(self, count: int) -> Iterator[Picture]:
        """Number 1 to ``count``."""
        return (self[number] for number in range(1, count + 1))

    def of_class(self, name: str, number: int) -> Picture:
        """A picture with one to three things of one class and no others; its ground is as any other's."""
        dice = Dice("drawn world", self.seed, self.split.value, name, number)
        kinds = [dice.pick(self._pairs[name]) for _ in range(dice.weighted((1, 2, 3), (4, 2, 1)))]
        return self._picture(number, make_scene(dice.other("places"), self.size, kinds), dice)

    def _kinds(self, number: int, dice: Dice) -> list[str]:
        """The pairs that are to be in a picture: often several of a kind, so that words have to tell them apart."""
        even = self._about[(number - 1) % len(self._about)]
        first = even if self.mix is Mix.EVEN else dice.weighted(self._about, self._weights)
        kinds = [dice.pick(self._pairs[first])]
        if dice.chance(45):
            kinds += [kinds[0]] * dice.weighted((1, 2, 3), (5, 3, 1))
        for _ in range(dice.between(0, 5)):
            kinds.append(dice.pick(self._pairs[dice.weighted(self._about, self._weights)]))
        if self._others:
            kinds += [dice.pick(self._others) for _ in range(dice.between(0, 3))]
        if len(kinds) < MOST and dice.chance(40):  # one that shares its colour or shape with another one
            kinds += self._near(dice.pick(kinds), dice)
        return [kinds[0], *dice.shuffled(kinds[1:MOST])[: self.most - 1]]

    def _near(self, pair: str, dice: Dice) -> list[str]:
        colour, shape = pair.split()
        near = [name for name in allowed(self.split) if name != pair and name.split()[dice.below(2)] in (colour, shape)]
        return [dice.pick(near)] if near else []

    def _picture(self, number: int, scene: Scene, dice: Dice) -> Picture:
        pixels = paint(scene, dice.other("paint"))
        items = []
        for index, (thing, visible) in enumerate(zip(scene.things, scene.visible, strict=True)):
            mask = scene.owner == index
            items.append(Item(thing.shape, thing.colour, thing.texture, thing.size, visible, box_of(mask), mask))
        return Picture(number, pixels, tuple(items), scene.setting, dice.other("words"))
