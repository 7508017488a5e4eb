"""What a network gets in training equals what FIBER's chain of float transforms gives."""

from __future__ import annotations

from random import Random

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional

from maskrcnn_benchmark.data.collate import pad_bytes
from maskrcnn_benchmark.data.transforms import Normalise, TrainTransform
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
