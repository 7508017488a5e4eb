"""The drawn world: the same from the same seed, true to what can be seen, and unambiguous in words."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from maskrcnn_benchmark.data.drawn import (
    CLASSES,
    NEVER_SEEN,
    NEW_SHAPE,
    Mix,
    Picture,
    Split,
    World,
    captions,
    expressions,
    phrases,
)
from maskrcnn_benchmark.data.drawn.captions import GROUNDS
from maskrcnn_benchmark.data.drawn.masks import painted, polygons
from maskrcnn_benchmark.data.drawn.vocabulary import COLOURS
from maskrcnn_benchmark.data.drawn.words import NUMBERS
from maskrcnn_benchmark.errors import ConfigError
from tests.unit.drawn_reading import draw_part, referents

SMALL = (96, 128)


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    """Of all splits."""
    return [picture for split in Split for picture in World(5, split, SMALL).pictures(25)]


# --- the same everywhere, endless, with things held out


def test_a_picture_depends_on_seed_split_and_number_alone() -> None:
    world = World(3, Split.TRAIN, SMALL)
    again = {number: World(3, Split.TRAIN, SMALL)[number].pixels for number in (9, 2)}
    assert all((world[number].pixels == pixels).all() for number, pixels in again.items())
    others = (World(4, Split.TRAIN, SMALL)[2], World(3, Split.SEEN, SMALL)[2], world[3])
    assert all((other.pixels != again[2]).any() for other in others)


def test_what_is_held_out_is_never_in_training(pictures: list[Picture]) -> None:
    def kinds(split: Split, **options: object) -> set[tuple[str, str]]:
        world = World(1, split, (48, 48), **options)
        return {(item.colour, item.shape) for picture in world.pictures(120) for item in picture.items}

    held_out = {tuple(name.split()) for name in NEVER_SEEN}
    for split in (Split.TRAIN, Split.SEEN):
        found = kinds(split) | kinds(split, mix=Mix.LONG_TAIL) | kinds(split, classes=("circle", "blue moon"))
        assert not found & held_out
        assert NEW_SHAPE not in {shape for _, shape in found}
        assert {colour for colour, _ in held_out} <= {colour for colour, _ in found}, "each part is seen"
        assert {shape for _, shape in held_out} <= {shape for _, shape in found}
    unseen, new = kinds(Split.UNSEEN), kinds(Split.NEW)
    assert held_out <= unseen
    assert NEW_SHAPE not in {shape for _, shape in unseen}
    assert not new & held_out
    assert len({colour for colour, shape in new if shape == NEW_SHAPE}) == len(COLOURS)


def test_classes_take_turns_or_have_a_long_tail() -> None:
    world = World(1, size=(48, 48), classes=CLASSES)
    for number, name in enumerate((*CLASSES, CLASSES[0]), 1):
        assert name in {item.name for item in world[number].items}
    names = [item.name for p in World(2, size=(48, 48), mix=Mix.LONG_TAIL).pictures(150) for item in p.items]
    counts = sorted((names.count(name) for name in set(names)), reverse=True)
    assert sum(counts[:27]) > 0.6 * len(names), "a third of the classes has most of the things"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": ("mauve circle",)}, ("mauve circle", "red")),
        ({"classes": ("purple circle",)}, ("purple circle", "train", "unseen")),
        ({"classes": ("arrow",)}, ("arrow", "train", "new")),
        ({"classes": ("red circle", "red circle")}, ("once", "red circle")),
        ({"classes": ()}, ("none",)),
        ({"size": (20, 90)}, ("20 x 90", "48")),
    ],
)
def test_worlds_that_cannot_be(options: dict, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        World(1, **options)
    assert all(word in str(caught.value) for word in words)


# --- pictures: masks and boxes are true, things can be told


def test_masks_and_boxes_are_what_can_be_seen(pictures: list[Picture]) -> None:
    for picture in pictures:
        assert picture.pixels.shape == (*SMALL, 3)
        assert picture.items
        for one, other in combinations(picture.items, 2):
            assert not (one.mask & other.mask).any()
        for item in picture.items:
            assert item.visible >= 40, "what is hidden is not in the picture"
            rows, columns = np.nonzero(item.mask)
            assert item.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def looks(colour: np.ndarray) -> str:
    """The name of the nearest colour, in any light between dim and bright."""
    lights = np.linspace(0.75, 1.1, 15)[:, None]
    return min(COLOURS, key=lambda name: np.abs(colour - np.clip(lights * COLOURS[name], 0, 255)).sum(axis=1).min())


def test_the_paint_has_the_colour_that_is_said(pictures: list[Picture]) -> None:
    wrong = []
    plain = [(picture, item) for picture in pictures for item in picture.items if item.texture == "plain"]
    for picture, item in plain:
        seen = np.median(picture.pixels[item.mask], axis=0)
        nearest = looks(seen)
        wrong += [f"{item.name} in {picture.number} looks {nearest}"] * (nearest != item.colour)
    assert len(wrong) <= 0.01 * len(plain), wrong


def test_things_stand_out_from_the_ground(pictures: list[Picture]) -> None:
    for picture in pictures:
        free = ~np.any([item.mask for item in picture.items], axis=0)
        ground = np.median(picture.pixels[free], axis=0)
        for item in [item for item in picture.items if item.texture == "plain"]:
            assert np.abs(np.median(picture.pixels[item.mask], axis=0) - ground).sum() > 60, (picture.number, item.name)


def test_pictures_vary(pictures: list[Picture]) -> None:
    items = [item for picture in pictures for item in picture.items]
    assert {item.colour for item in items} == set(COLOURS)
    assert {item.texture for item in items} == {"plain", "striped", "dotted", "checked"}
    assert {item.size for item in items} == {"small", "", "big"}
    assert {picture.setting for picture in pictures} == set(GROUNDS)
    assert {len(picture.items) for picture in pictures} >= set(range(1, 9))
    assert any(item.visible < 80 for item in items)
    assert np.std([np.median(picture.pixels) for picture in pictures]) > 30


HOLES = np.array(
    [[int(cell) for cell in row] for row in ("1111100", "1000101", "1010110", "1111101", "0000010", "1100000")], bool
)


def test_polygons_are_exactly_the_mask(pictures: list[Picture]) -> None:
    """Also with holes, with parts inside holes, and with pixels that touch at a corner."""
    rng = np.random.default_rng(0)
    masks = [HOLES, *(rng.random((9, 11)) < share for share in (0.3, 0.6, 0.9)), np.ones((4, 5), bool)]
    for mask in masks + [item.mask for picture in pictures[::5] for item in picture.items]:
        height, width = mask.shape
        packed = mask_api.merge(
            mask_api.frPyObjects([[*map(float, part)] for part in polygons_of(mask)], height, width)
        )
        assert (mask_api.decode(packed).astype(bool) == mask).all()
        canvas = Image.new("1", (width, height))
        for part in painted(mask):
            draw_part(canvas, part)
        assert (np.asarray(canvas) == mask).all()


def polygons_of(mask: np.ndarray) -> list[list[int]]:
    parts = polygons(mask)
    assert all(len(part) >= 8 for part in parts)
    return parts


# --- words


def test_expressions_are_about_one_thing(pictures: list[Picture]) -> None:
    kinds = []
    for picture in pictures:
        for expression in expressions(picture, picture.dice.other("test")):
            assert referents(expression.text, picture.items) == [expression.item], expression.text
            root = expression.text[slice(*expression.root)]
            assert expression.text.startswith(root)
            assert root.split()[-1] == picture.items[expression.item].shape
            kinds.append(expression.kind)
    assert all(kinds.count(kind) > 30 for kind in ("attribute", "relation", "ordinal"))


def test_phrases_are_about_all_things_that_they_are_true_of(pictures: list[Picture]) -> None:
    kinds, several = set(), 0
    for picture in pictures:
        for phrase in phrases(picture, picture.dice.other("test")):
            assert referents(phrase.text, picture.items) == list(phrase.items), phrase.text
            kinds.add(phrase.kind)
            several += len(phrase.items) > 1
    assert kinds == {"name", "attribute", "relation"}
    assert several > 30


def test_captions_name_all_things_of_a_phrase(pictures: list[Picture]) -> None:
    texts = set()
    for picture in pictures:
        for caption in captions(picture, 5, picture.dice.other("test")):
            texts.add(caption.text)
            assert caption.text.endswith(" .")
            assert [phrase for phrase in caption.phrases if phrase.items]
            assert [p.span for p in caption.phrases] == sorted(p.span for p in caption.phrases)
            for phrase in caption.phrases:
                number, *words = caption.text[slice(*phrase.span)].lower().split()
                if phrase.kind == "scene":
                    assert GROUNDS[picture.setting].endswith(" ".join(words))
                    continue
                assert referents(" ".join(words), picture.items) == list(phrase.items), caption.text
                assert number in (("a", "an") if len(phrase.items) == 1 else NUMBERS[len(phrase.items)])
    assert len(texts) > 3 * len(pictures)
