"""Captions: sentences in which phrases name things of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maskrcnn_benchmark.data.drawn.dice import Dice
from maskrcnn_benchmark.data.drawn.words import (
    NUMBERS,
    RELATIONS,
    Description,
    Relation,
    Span,
    article,
    describe,
    expressions,
)
from maskrcnn_benchmark.data.drawn.world import Item, Picture

GROUNDS = {
    "plain": "a plain ground",
    "clouds": "a cloudy ground",
    "planks": "wooden planks",
    "tiles": "a tiled floor",
    "speckles": "a speckled ground",
    "stripes": "a striped ground",
}
MOST = 5  # phrases in a sentence

Group = tuple[int, ...]  # items with one phrase for all of them


@dataclass(frozen=True)
class Named:
    """A phrase of a caption."""

    span: Span
    items: Group  # none: the ground, which has no box
    kind: str  # what it names: a shape, or "scene"


@dataclass(frozen=True)
class Caption:
    """A sentence; words and marks are apart by one space, as in Flickr30k Entities."""

    text: str
    phrases: tuple[Named, ...]  # in the order of the sentence


@dataclass(frozen=True)
class _Piece:
    text: str
    items: Group = ()
    kind: str = ""  # "": words between phrases


def captions(picture: Picture, count: int, dice: Dice) -> list[Caption]:
    """Different sentences about a picture, at most ``count``; a phrase is true of the things that it names, only."""
    found = {caption.text: caption for caption in (_caption(picture, dice) for _ in range(count))}
    return list(found.values())


def lists(picture: Picture, dice: Dice) -> list[Caption]:
    """Sentences of nothing but referring expressions, at most MOST in each; a picture's expressions are in one each.

    A phrase is the words that name the thing itself: "star" of "star left of the red circle".
    """
    said = dice.shuffled(expressions(picture, dice))
    count = -(-len(said) // MOST)
    sentences = []
    for number in range(count):
        pieces: list[_Piece] = []
        for expression in said[number::count]:
            end = expression.root[1]
            pieces += [_Piece(",")] if pieces else []
            pieces.append(_Piece(expression.text[:end], (expression.item,), picture.items[expression.item].shape))
            pieces += [_Piece(expression.text[end:].strip())] if end < len(expression.text) else []
        sentences.append(_sentence([*pieces, _Piece(".")]))
    return sentences


def _caption(picture: Picture, dice: Dice) -> Caption:
    groups = _groups(picture.items, dice)
    words = {group: phrase for group in groups if (phrase := describe(picture.items, group, dice))}
    pair = _pair(picture, list(words), dice) if dice.chance(60) else None
    if pair is not None:
        one, relation, other = pair
        rest = [group for group in words if group not in (one, other)][: dice.between(0, MOST - 2)]
        pieces = [_phrase(one, words), _Piece(relation.text), _phrase(other, words)]
        pieces += [_Piece(dice.pick((", and", ", with"))), *_row(rest, words)] if rest else []
    else:
        chosen = list(words)[: dice.between(1, MOST)]
        pieces = ([_Piece("there are")] if dice.chance(15) and len(chosen) > 1 else []) + _row(chosen, words)
    if dice.chance(40):
        pieces += [_Piece("on"), _Piece(GROUNDS[picture.setting], kind="scene")]
    return _sentence([*pieces, _Piece(".")])


def _groups(items: Sequence[Item], dice: Dice) -> list[Group]:
    """Things of one colour and shape together, since a phrase for one of them would be true of the others."""
    by_name: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        by_name.setdefault(item.name, []).append(index)
    return dice.shuffled([tuple(group) for group in by_name.values()])


def _pair(picture: Picture, groups: Sequence[Group], dice: Dice) -> tuple[Group, Relation, Group] | None:
    """Two groups all of whose things are clearly on one side of each other."""
    found = [
        (one, relation, other)
        for one in groups
        for other in groups
        for relation in RELATIONS
        if one != other and len(other) == 1 and _all_clear(picture, one, relation, other)
    ]
    return dice.pick(found) if found else None


def _all_clear(picture: Picture, one: Group, relation: Relation, other: Group) -> bool:
    side = picture.size[1 - relation.axis]
    return all(relation.is_clear(picture.items[a], picture.items[b], side) for a in one for b in other)


def _row(groups: Sequence[Group], words: dict[Group, Description]) -> list[_Piece]:
    """ "a , b and c" """
    pieces: list[_Piece] = []
    for place, group in enumerate(groups):
        if place:
            pieces.append(_Piece("and" if place == len(groups) - 1 else ","))
        pieces.append(_phrase(group, words))
    return pieces


def _phrase(group: Group, words: dict[Group, Description]) -> _Piece:
    text = words[group].text(len(group))
    text = article(text) if len(group) == 1 else f"{NUMBERS[len(group)]} {text}"
    return _Piece(text, group, words[group].shape)


def _sentence(pieces: Sequence[_Piece]) -> Caption:
    text, phrases = "", []
    for piece in pieces:
        text += " " if text else ""
        if piece.kind:
            phrases.append(Named((len(text), len(text) + len(piece.text)), piece.items, piece.kind))
        text += piece.text
    return Caption(text[0].upper() + text[1:], tuple(phrases))
