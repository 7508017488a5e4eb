"""Words about what is in a picture: descriptions that say which things they are true of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from maskrcnn_benchmark.data.drawn.dice import Dice
from maskrcnn_benchmark.data.drawn.vocabulary import TEXTURES
from maskrcnn_benchmark.data.drawn.world import Item, Picture

ORDINALS = ("first", "second", "third", "fourth", "fifth")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = {"cross": "crosses"}
CLEAR = 12  # percent of the side by which a thing is clearly left of another one, or above it
GAP = 7  # percent of the side between the centres of things that are counted

Span = tuple[int, int]  # characters [begin, end)


@dataclass(frozen=True)
class Description:
    """What is said of things: of their shape, and where not "" of their size, texture and colour."""

    shape: str
    colour: str = ""
    texture: str = ""
    size: str = ""

    @property
    def attributes(self) -> list[str]:
        return [word for word in (self.size, self.texture, self.colour) if word]

    def true_of(self, item: Item) -> bool:
        wanted = ((self.shape, item.shape), (self.colour, item.colour), (self.texture, item.texture))
        return all(word in ("", there) for word, there in (*wanted, (self.size, item.size)))

    def text(self, count: int = 1) -> str:
        noun = self.shape if count == 1 else PLURALS.get(self.shape, f"{self.shape}s")
        return " ".join((*self.attributes, noun))


@dataclass(frozen=True)
class Relation:
    """A place with respect to another thing; ``axis`` 0 is x, 1 is y; ``sign`` -1 is before it."""

    text: str
    axis: int
    sign: int

    def holds(self, item: Item, other: Item) -> bool:
        """It can be said, if only by a pixel."""
        return self.sign * (centre(item)[self.axis] - centre(other)[self.axis]) > 0

    def is_clear(self, item: Item, other: Item, side: int) -> bool:
        """Nobody would deny it: it is far enough, and more so than in the other direction."""
        away = self.sign * (centre(item)[self.axis] - centre(other)[self.axis])
        aside = abs(centre(item)[1 - self.axis] - centre(other)[1 - self.axis])
        return away * 100 >= 2 * CLEAR * side and away > aside


RELATIONS = (
    Relation("left of", 0, -1),
    Relation("right of", 0, 1),
    Relation("above", 1, -1),
    Relation("below", 1, 1),
)


@dataclass(frozen=True)
class Expression:
    """Words that are about exactly one thing."""

    text: str
    root: Span  # the words that name the thing itself
    item: int
    kind: str  # "attribute", "relation", "ordinal"


@dataclass(frozen=True)
class Phrase:
    """Words that are about all the things that they are true of."""

    text: str
    items: tuple[int, ...]
    description: Description
    relation: tuple[str, str] | None = None  # "left of", "blue square"

    @property
    def kind(self) -> str:
        """As in PhraseCut."""
        if self.relation:
            return "relation"
        return "attribute" if self.description.attributes else "name"


def centre(item: Item) -> tuple[int, int]:
    """x and y of the centre of what is visible, times two."""
    return item.box[0] + item.box[2], item.box[1] + item.box[3]


def matching(items: Sequence[Item], description: Description) -> tuple[int, ...]:
    return tuple(index for index, item in enumerate(items) if description.true_of(item))


def descriptions(item: Item) -> list[Description]:
    """Everything that can be said of a thing, the shape always; the shortest first."""
    texture = "" if item.texture == TEXTURES[0] else item.texture
    choices = [
        Description(item.shape, colour, words, size)
        for size in dict.fromkeys(("", item.size))
        for words in dict.fromkeys(("", texture))
        for colour in ("", item.colour)
    ]
    return sorted(choices, key=lambda choice: len(choice.attributes))


def describe(items: Sequence[Item], group: Sequence[int], dice: Dice) -> Description | None:
    """Words that are true of some things and of no others; mostly with the colour; None: there are none."""
    exact = [choice for choice in descriptions(items[group[0]]) if matching(items, choice) == tuple(group)]
    with_colour = [choice for choice in exact if choice.colour]
    if with_colour and dice.chance(75):
        exact = with_colour
    if not exact:
        return None
    return exact[0] if dice.chance(50) else dice.pick(exact)


def article(text: str) -> str:
    return f"an {text}" if text[0] in "aeiou" else f"a {text}"


def expressions(picture: Picture, dice: Dice) -> list[Expression]:
    """Referring expressions, at most one of each kind for a thing; every one is about one thing and no other."""
    found = []
    for index in range(len(picture.items)):
        for kind in (_attributes, _relations, _ordinals):
            if choices := list(kind(picture, index, dice)):
                found.append(dice.pick(choices))
    return found


def _attributes(picture: Picture, index: int, dice: Dice) -> Iterator[Expression]:
    for choice in descriptions(picture.items[index]):
        if matching(picture.items, choice) == (index,):
            text = _the(choice.text(), dice)
            yield Expression(text, (0, len(text)), index, "attribute")


def _relations(picture: Picture, index: int, dice: Dice) -> Iterator[Expression]:
    """A description of several things, of which the relation leaves one."""
    for choice, relation, other in related(picture, index):
        if len(alike := matching(picture.items, choice)) < 2 or other in alike:
            continue
        anchor = describe(picture.items, (other,), dice)
        if anchor is not None and not any(
            relation.holds(picture.items[rest], picture.items[other]) for rest in alike if rest != index
        ):
            root = _the(choice.text(), dice)
            yield Expression(f"{root} {relation.text} the {anchor.text()}", (0, len(root)), index, "relation")


def related(picture: Picture, index: int) -> Iterator[tuple[Description, Relation, int]]:
    """What can be said of a thing, a relation that clearly holds, and the thing to which it does."""
    item = picture.items[index]
    for relation in RELATIONS:
        side = picture.size[1 - relation.axis]
        for other, anchor in enumerate(picture.items):
            if other != index and relation.is_clear(item, anchor, side):
                yield from ((choice, relation, other) for choice in descriptions(item))


def _ordinals(picture: Picture, index: int, dice: Dice) -> Iterator[Expression]:
    """A place among the things of which a description is true, from one side."""
    for choice in descriptions(picture.items[index]):
        alike = matching(picture.items, choice)
        if not 2 <= len(alike) <= len(ORDINALS):
            continue
        for axis, sides in enumerate((("left", "right"), ("top", "bottom"))):
            order = sorted(alike, key=lambda other: centre(picture.items[other])[axis])
            places = [centre(picture.items[other])[axis] for other in order]
            least = 2 * GAP * picture.size[1 - axis]
            if min(after - before for before, after in pairwise(places)) * 100 < least:
                continue
            for side, row in zip(sides, (order, order[::-1]), strict=True):
                place = row.index(index)
                if place == len(row) - 1:
                    continue  # is the first one from the other side
                yield _ordinal(choice.text(), place, side, index, dice)


def _ordinal(noun: str, place: int, side: str, index: int, dice: Dice) -> Expression:
    if place == 0 and dice.chance(60):
        text = _the(f"{side}most {noun}" if side in ("left", "right") else f"{side} {noun}", dice)
        return Expression(text, (0, len(text)), index, "ordinal")
    root = _the(f"{ORDINALS[place]} {noun}", dice)
    return Expression(f"{root} from the {side}", (0, len(root)), index, "ordinal")


def _the(text: str, dice: Dice) -> str:
    return f"the {text}" if dice.chance(70) else text


def phrases(picture: Picture, dice: Dice) -> list[Phrase]:
    """Phrases for segmentation: names, attributes and relations, each with all the things that it is true of."""
    found: dict[str, Phrase] = {}
    for index, item in enumerate(picture.items):
        choice = dice.pick(descriptions(item))
        items = matching(picture.items, choice)
        text = choice.text(len(items))
        found.setdefault(text, Phrase(text, items, choice))
        options = [option for option in related(picture, index) if not option[0].true_of(picture.items[option[2]])]
        if options and dice.chance(35) and (phrase := _relation_phrase(picture, dice.pick(options), dice)):
            found.setdefault(phrase.text, phrase)
    return list(found.values())


def _relation_phrase(picture: Picture, option: tuple[Description, Relation, int], dice: Dice) -> Phrase | None:
    """All things of a description that stand in a relation; None where that is not clear for one of them."""
    choice, relation, other = option
    anchor, side = picture.items[other], picture.size[1 - relation.axis]
    alike = [index for index in matching(picture.items, choice) if relation.holds(picture.items[index], anchor)]
    words = describe(picture.items, (other,), dice)
    if words is None or not all(relation.is_clear(picture.items[index], anchor, side) for index in alike):
        return None
    text = f"{choice.text(len(alike))} {relation.text} the {words.text()}"
    return Phrase(text, tuple(alike), choice, (relation.text, words.text()))
