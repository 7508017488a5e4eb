#!/usr/bin/env python3
"""Time how fast one core gets pictures ready for training, beside the reference's steps on the same pictures.

    python benchmarks/loader.py --pictures DATASET/coco/val2017 --size 800

"reference": decode, resize by Pillow, float tensor, channels reversed, times 255, normalised, padded, as in
microsoft/FIBER. "here": the same up to the resized bytes, which are padded and sent as they are; "on the device" is
what is left to do with them there, timed on this CPU. The results are compared in grey levels.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import TypeVar

import torch
from fiber import gemm_gflops
from PIL import Image
from prettytable import PrettyTable
from torchvision.transforms import functional

from maskrcnn_benchmark.data.collate import pad_bytes
from maskrcnn_benchmark.data.drawn import World
from maskrcnn_benchmark.data.pictures import open_picture
from maskrcnn_benchmark.data.transforms import Normalise, TrainTransform, resize_size
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, Target
from maskrcnn_benchmark.structures.image_batch import padded_size

MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
BATCH, LONG = 4, 1333

Made = TypeVar("Made")


def reference(files: Sequence[Path], size: int) -> torch.Tensor:
    """A batch as the reference's transforms and collator make it."""
    pictures = []
    for file in files:
        with Image.open(file) as image:
            picture = image.convert("RGB")
        height, width = resize_size(picture.height, picture.width, size, LONG)
        pixels = functional.to_tensor(picture.resize((width, height), Image.Resampling.BILINEAR))
        pictures.append(functional.normalize(pixels[[2, 1, 0]] * 255, MEAN, STD))
    shape = padded_size([tuple(picture.shape[1:]) for picture in pictures], 32)
    batch = torch.zeros(len(pictures), 3, *shape)
    for row, picture in zip(batch, pictures, strict=True):
        row[:, : picture.shape[1], : picture.shape[2]].copy_(picture)
    return batch


def ours(files: Sequence[Path], size: int) -> ImageBatch:
    """A batch as a worker sends it."""
    transform, rows = TrainTransform((size,), LONG, flip=0.0), []
    for file in files:
        picture = open_picture(file)
        shape = (picture.height, picture.width)
        nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), ImageMeta(file.name, shape, shape))
        pixels, target = transform(picture, nothing, Random(0))
        rows.append((pixels, target.meta))
    return pad_bytes([pixels for pixels, _ in rows], [meta for _, meta in rows], 32)


def timed(make: Callable[[], Made]) -> tuple[Made, float]:
    """What is made, and seconds of this process."""
    start = time.process_time()
    made = make()
    return made, time.process_time() - start


def drawn(folder: Path, count: int) -> list[Path]:
    """Drawn scenes as JPEG, of the size of many photographs."""
    for picture in World(size=(480, 640)).pictures(count):
        Image.fromarray(picture.pixels).save(folder / f"{picture.number:06d}.jpg", quality=90)
    return sorted(folder.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="folder of JPEG files (default: drawn scenes of 640 x 480)")
    parser.add_argument("--size", type=int, default=800, help="short side in pixels")
    parser.add_argument("--count", type=int, default=40, help="pictures at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = sorted(options.pictures.glob("*.jpg")) if options.pictures else drawn(Path(folder), options.count)
        run(found[: options.count // BATCH * BATCH], options.size)


def run(files: Sequence[Path], size: int) -> None:
    normalise = Normalise(MEAN, STD)
    seconds, worst = {"reference": 0.0, "here": 0.0, "on the device": 0.0}, 0.0
    scale = torch.tensor(STD).view(3, 1, 1)
    for first in range(0, len(files), BATCH):
        part = files[first : first + BATCH]
        expected, seconds_reference = timed(lambda part=part: reference(part, size))
        raw, seconds_here = timed(lambda part=part: ours(part, size))
        ready, seconds_device = timed(lambda raw=raw: normalise(raw))
        for name, value in zip(seconds, (seconds_reference, seconds_here, seconds_device), strict=True):
            seconds[name] += value
        worst = max(worst, float(((ready.pixels - expected) * scale).abs().max()))
    table = PrettyTable(["", "ms a picture", "pictures a second and core"])
    for name, value in seconds.items():
        table.add_row([name, f"{value / len(files) * 1000:.1f}", f"{len(files) / value:.1f}"])
    print(table)
    print(f"{len(files)} pictures, short side {size}: {seconds['reference'] / seconds['here']:.2f} times the reference")
    print(f"largest difference: {worst:.5f} grey levels")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"GEMM {gemm_gflops():.0f} GFLOP/s, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
