"""What a network gets in training equals what FIBER's chain of float transforms gives."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from maskrcnn_benchmark.data.collate import pad_bytes
from maskrcnn_benchmark.data.transforms import ColourJitter, Normalise, TrainTransform
from maskrcnn_benchmark.structures import ImageMeta, Target

MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)


def test_bytes_normalised_on_the_device_equal_the_reference_chain() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), ImageMeta(1, (48, 64), (48, 64)))
    pixels, target = TrainTransform((60,), 100, flip=0.0)(picture, nothing, Random(0))
    batch = pad_bytes([pixels], [target.meta], 32)
    assert batch.pixels.dtype == torch.uint8, "a quarter of the bytes on the way to the device"
    ours = Normalise(MEAN, STD)(batch).pixels[0]

    resized = functional.to_tensor(picture.resize((80, 60), Image.Resampling.BILINEAR))
    expected = torch.zeros(3, 64, 96)
    expected[:, :60, :80] = functional.normalize(resized[[2, 1, 0]] * 255, MEAN, STD)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    ("jitter", "colour", "least", "most"),
    [
        (ColourJitter(brightness=0.5), (100, 100, 100), (50, 50, 50), (150, 150, 150)),
        (ColourJitter(brightness=3.0), (100, 100, 100), (0, 0, 0), (255, 255, 255)),
        (ColourJitter(saturation=1.0), (150, 100, 50), (109, 91, 0), (191, 109, 109)),
        (ColourJitter(hue=0.5), (200, 50, 50), (50, 50, 50), (200, 200, 200)),
    ],
)
def test_colours_change_by_no_more_than_was_asked_for(
    jitter: ColourJitter, colour: tuple[int, int, int], least: tuple[int, int, int], most: tuple[int, int, int]
) -> None:
    picture = Image.new("RGB", (4, 4), colour)
    seen = np.array([jitter(picture, Random(seed)).getpixel((1, 1)) for seed in range(200)])
    assert len({tuple(row) for row in seen.tolist()}) > 20
    assert (abs(seen.min(axis=0) - least) <= 8).all()
    assert (abs(seen.max(axis=0) - most) <= 8).all()
    assert jitter(picture, Random(7)).getpixel((1, 1)) == tuple(seen[7])


def test_contrast_moves_both_halves_of_a_picture_apart_or_together() -> None:
    picture = Image.new("RGB", (8, 8), (60, 60, 60))
    picture.paste((180, 180, 180), (0, 0, 8, 4))
    apart = [
        changed.getpixel((1, 1))[0] - changed.getpixel((1, 6))[0]
        for changed in (ColourJitter(contrast=0.5)(picture, Random(seed)) for seed in range(50))
    ]
    assert 60 <= min(apart) < 75
    assert 165 < max(apart) <= 180


def test_colours_that_stay_draw_nothing() -> None:
    picture, rng = Image.new("RGB", (4, 4), (1, 2, 3)), Random(3)
    assert ColourJitter()(picture, rng) is picture
    assert rng.random() == Random(3).random()
