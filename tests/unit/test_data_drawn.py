"""Drawn scenes: the same from the same seed, and annotated where things are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskrcnn_benchmark.data.datasets.coco import CocoDataset
from maskrcnn_benchmark.data.drawn import CLASSES, SHAPES, Scene, Thing, make_scene, paint, write_coco


def test_a_drawn_set_is_a_good_coco_set(tmp_path: Path) -> None:
    path = write_coco(tmp_path, 8, seed=3, size=(96, 128))
    found = CocoDataset(tmp_path, path)
    assert not found.notes
    assert [name for _, name in found.categories] == list(CLASSES)
    samples = [found[i] for i in range(len(found))]
    assert all(len(sample.target) for sample in samples)
    assert {label for sample in samples for label in sample.target.labels.tolist()} == set(range(1, 9))
    assert {sample.image.size for sample in samples} == {(128, 96)}


def test_seed_and_number_decide_a_scene(tmp_path: Path) -> None:
    def draw(name: str, count: int, seed: int) -> tuple[dict, list[bytes]]:
        data = json.loads(write_coco(tmp_path / name, count, seed, (60, 80)).read_text())
        return data, [(tmp_path / name / row["file_name"]).read_bytes() for row in data["images"]]

    (one, files), (again, same), (longer, more), (_, other) = (
        draw(*args) for args in (("a", 2, 0), ("b", 2, 0), ("c", 4, 0), ("d", 2, 1))
    )
    assert one == again
    assert files == same
    assert more[:2] == files
    assert longer["annotations"][: len(one["annotations"])] == one["annotations"]
    assert other != files


def test_own_classes_give_the_categories(tmp_path: Path) -> None:
    classes = ("white arrow", "green moon")
    data = json.loads(write_coco(tmp_path, 2, 0, (60, 80), classes).read_text())
    assert [(row["id"], row["name"]) for row in data["categories"]] == [(1, "white arrow"), (2, "green moon")]
    assert {row["category_id"] for row in data["annotations"]} == {1, 2}


@pytest.mark.parametrize("name", ["circle", "mauve circle", "red dog"])
def test_a_class_is_a_colour_and_a_shape(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make_scene(np.random.default_rng(0), classes=(name,))


def scene(*things: Thing) -> Scene:
    return Scene((80, 100), things, "plain", (200.0, 200.0, 200.0), 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_box_is_tight_around_what_is_drawn(shape: str) -> None:
    thing = Thing(shape, "red", "plain", (50.0, 40.0), 25.0, 0.2, (208.0, 38.0, 42.0))
    painting = paint(scene(thing))
    x1, y1, x2, y2 = painting.box(0)
    low, high = thing.outline.min(axis=0), thing.outline.max(axis=0)
    np.testing.assert_allclose([x1, y1, x2, y2], [*low, *high], atol=3)
    red = np.asarray(painting.image)[painting.masks[0]].mean(axis=0)
    assert red[0] > 2 * max(red[1:])


def test_what_is_covered_is_not_in_the_box() -> None:
    under = Thing("square", "red", "plain", (40.0, 40.0), 20.0, 0.0, (208.0, 38.0, 42.0))
    over = Thing("square", "blue", "plain", (60.0, 40.0), 20.0, 0.0, (38.0, 92.0, 206.0))
    painting = paint(scene(under, over))
    assert not (painting.masks[0] & painting.masks[1]).any()
    alone = paint(scene(under)).box(0)
    assert painting.box(0)[2] < alone[2]
    hidden = paint(scene(under, under))
    assert hidden.box(0) is None


def test_a_picture_is_of_the_asked_size(tmp_path: Path) -> None:
    write_coco(tmp_path, 1, 0, (50, 70))
    assert Image.open(tmp_path / "scene_0001.png").size == (70, 50)
