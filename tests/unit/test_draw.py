"""Boxes and names drawn on pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from maskrcnn_benchmark.demo.draw import draw
from maskrcnn_benchmark.structures import Detections, ImageMeta

NAMES = {1: "cat", 2: "traffic light", 3: "数字", 4: "x" * 300}


def found(*rows: tuple[list[float], float, int], size: tuple[int, int] = (120, 200)) -> Detections:
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(
        torch.tensor(boxes).reshape(-1, 4).float(),
        torch.tensor(scores).float(),
        torch.tensor(labels, dtype=torch.int64),
        ImageMeta(1, size, size),
        names=NAMES,
    )


def grey(size: tuple[int, int] = (120, 200)) -> Image.Image:
    return Image.new("RGB", size[::-1], (90, 90, 90))


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written."""
    written: list[str] = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, xy, words, *a, **k: written.append(words) or text(self, xy, words, *a, **k),
    )
    return written


def test_names_and_scores_are_written_and_the_picture_is_left_alone(texts: list[str]) -> None:
    picture = grey()
    drawn = draw(picture, found(([20, 40, 90, 100], 0.871, 1), ([100, 30, 180, 90], 0.4, 2)))
    assert sorted(texts) == ["cat 0.87", "traffic light 0.40"]
    assert drawn.size == picture.size
    assert (np.asarray(picture) == 90).all()
    assert (np.asarray(drawn)[40:101, 20] != 90).any(axis=1).all(), "the left side of the box"


@pytest.mark.parametrize(("options", "count"), [({"min_score": 0.5}, 1), ({"top": 1}, 1), ({"top": 0}, 0), ({}, 2)])
def test_score_and_number_limit_what_is_drawn(texts: list[str], options: dict, count: int) -> None:
    draw(grey(), found(([20, 40, 90, 100], 0.9, 1), ([100, 30, 180, 90], 0.4, 2)), **options)
    assert len(texts) == count


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_any_colour_mode_is_drawn_on(mode: str) -> None:
    assert draw(grey().convert(mode), found(([20, 40, 90, 100], 0.9, 1))).mode == "RGB"


@pytest.mark.parametrize(
    "box", [[0, 0, 5, 5], [190, 110, 200, 120], [-50, -50, 300, 300], [0, 0, 200, 1], [50, 50, 50, 50]]
)
@pytest.mark.parametrize("label", NAMES)
def test_the_plate_with_the_name_stays_in_the_picture(
    monkeypatch: pytest.MonkeyPatch, box: list[float], label: int
) -> None:
    plates: list[tuple[float, ...]] = []
    rectangle = ImageDraw.ImageDraw.rectangle
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "rectangle", lambda self, xy, **k: plates.append(xy) or rectangle(self, xy, **k)
    )
    draw(grey(), found((box, 0.5, label)))
    for x1, y1, x2, y2 in plates:
        assert 0 <= x1 <= x2 < 200
        assert 0 <= y1 <= y2 < 120


def test_labels_have_their_own_colours_and_keep_them() -> None:
    box = [20, 40, 90, 100]
    colours = [np.asarray(draw(grey(), found((box, 0.9, label))))[80, 20].tolist() for label in (1, 2, 3, 21, 22, 1)]
    assert colours[0] == colours[-1]
    assert len({tuple(colour) for colour in colours[:-1]}) == 5


def test_lines_grow_with_the_picture() -> None:
    small = np.asarray(draw(grey(), found(([20, 40, 90, 100], 0.9, 1))))[80, 10:40]
    size = (1200, 2000)
    large = np.asarray(draw(grey(size), found(([200, 400, 900, 1000], 0.9, 1), size=size)))[800, 100:400]
    assert (large != 90).any(axis=1).sum() > 3 * (small != 90).any(axis=1).sum()


def test_nothing_found_is_the_picture() -> None:
    assert np.array_equal(np.asarray(draw(grey(), found())), np.asarray(grey()))


def test_masks_tint_their_pixels() -> None:
    masks = torch.zeros(2, 120, 200, dtype=torch.bool)
    masks[0, 60:70, 40:50] = True
    masks[1, 60:70, 45:55] = True
    rows = found(([20, 40, 90, 100], 0.9, 1), ([20, 40, 90, 100], 0.4, 2))
    drawn = np.asarray(draw(grey(), replace(rows, masks=masks)))
    assert drawn[65, 42].tolist() == drawn[65, 47].tolist(), "the best lies on top"
    assert drawn[65, 42].tolist() != drawn[65, 52].tolist()
    assert drawn[65, 60].tolist() == [90, 90, 90]
