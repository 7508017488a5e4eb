"""What the drawn world has words for, and which of them are kept from training."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from maskrcnn_benchmark.data.drawn.shapes import SHAPES
from maskrcnn_benchmark.errors import ConfigError

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (206, 36, 40),
    "orange": (242, 130, 24),
    "yellow": (248, 214, 44),
    "green": (44, 152, 64),
    "blue": (36, 88, 208),
    "purple": (128, 56, 172),
    "pink": (246, 132, 182),
    "brown": (120, 74, 40),
    "white": (244, 244, 240),
    "black": (30, 30, 36),
}
TEXTURES = ("plain", "striped", "dotted", "checked")
"""All but the first one are said in words."""
SIZES: dict[str, tuple[int, int]] = {"small": (70, 92), "": (112, 148), "big": (180, 225)}
"""Word -> radius in thousandths of the short side of the picture, from and to; what lies between has no word."""

NEW_SHAPE = "arrow"
"""The shape that never is in training, in no colour."""
NEVER_SEEN = (
    "purple circle",
    "orange square",
    "pink triangle",
    "blue star",
    "green heart",
    "red hexagon",
    "yellow moon",
    "white cross",
    "brown diamond",
)
"""Pairs of a colour and a shape, each of which is in training, but not together."""
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
"""A few pairs of the training, where all of them would be too many."""


class Split(Enum):
    """What may be drawn. No picture of one split is in another, whatever their seeds."""

    TRAIN = "train"
    """Pairs that may be trained on."""
    SEEN = "seen"
    """The same pairs, to test on."""
    UNSEEN = "unseen"
    """Pairs that are in no picture of TRAIN or SEEN, among things that are."""
    NEW = "new"
    """The shape that is in no picture of the other splits, in any colour, among things that are."""


class Mix(Enum):
    """How often a class is drawn."""

    EVEN = "even"
    """All alike; picture ``n`` has class ``n`` for sure, counted from 1 and over again."""
    LONG_TAIL = "long-tail"
    """Classes are frequent, common or rare, as in LVIS: 16 to 4 to 1."""


PAIRS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
SEEN_PAIRS = tuple(name for name in PAIRS if name not in NEVER_SEEN and not name.endswith(NEW_SHAPE))
DEFAULT_CLASSES: dict[Split, tuple[str, ...]] = {
    Split.TRAIN: SEEN_PAIRS,
    Split.SEEN: SEEN_PAIRS,
    Split.UNSEEN: NEVER_SEEN,
    Split.NEW: (NEW_SHAPE,),
}
WEIGHTS = {"f": 16, "c": 4, "r": 1}


def frequency(name: str) -> str:
    """LVIS's letter of a class, as it would be in the training set; classes that are not in training are rare."""
    if name in SEEN_PAIRS:
        return "fcr"[SEEN_PAIRS.index(name) % 3]
    return "r" if name in PAIRS or name == NEW_SHAPE else "f"


def pairs_of(name: str) -> list[str]:
    """The pairs that a class stands for: one, or those of a shape in every colour.

    Raises:
        ConfigError: the class is neither a shape nor a colour and a shape.
    """
    found = [name] if name in PAIRS else [pair for pair in PAIRS if pair.split()[1] == name]
    if not found:
        raise ConfigError(
            f"class {name!r} is no shape ({', '.join(SHAPES)}), and no colour ({', '.join(COLOURS)}) and shape"
        )
    return found


def allowed(split: Split) -> tuple[str, ...]:
    """The pairs that may be in a picture of a split."""
    more = {Split.UNSEEN: NEVER_SEEN, Split.NEW: tuple(pairs_of(NEW_SHAPE))}
    return SEEN_PAIRS + more.get(split, ())


def check_names(classes: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: there is no class, or one is unknown or doubled.
    """
    if not classes or len(set(classes)) < len(classes):
        raise ConfigError(f"classes must be names, each of them once, got {', '.join(classes) or 'none'}")
    for name in classes:
        pairs_of(name)


def check_classes(classes: Sequence[str], split: Split) -> None:
    """
    Raises:
        ConfigError: a class is unknown or doubled, or has no pair that the split may draw.
    """
    check_names(classes)
    may = set(allowed(split))
    for name in classes:
        if may.isdisjoint(pairs_of(name)):
            fitting = next(other.value for other in Split if not set(allowed(other)).isdisjoint(pairs_of(name)))
            raise ConfigError(f"class {name!r} is never in split {split.value!r}: use split {fitting!r}")
