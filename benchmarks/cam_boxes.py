#!/usr/bin/env python3
"""Time how fast one core finds pseudo boxes, beside DAP's procedure in the same run.

    python benchmarks/cam_boxes.py --pictures DATASET/coco/val2017 --model resnet101 --count 8

"original": picture by picture, scale by scale, the picture and its mirror image one after the other through the
classifier as torchvision builds it, then maps, boxes and five suppressions. "here": the same with the fused network and
all in batches; "bfloat16": that in half precision. Weights are random: they do not change the time. Each runs
in a process of its own, on one core; seconds are of its CPU time, so that another load on the machine matters little.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from loader import drawn
from PIL import Image
from prettytable import PrettyTable
from torch import nn
from torch.nn import functional
from torchvision import models
from torchvision.transforms import functional as pixels_of

from maskrcnn_benchmark.data.pictures import header_size, open_picture
from maskrcnn_benchmark.engine.allocator import keep_freed_memory
from maskrcnn_benchmark.modeling.cam.boxes import boxes_of_map, suppress
from maskrcnn_benchmark.modeling.cam.build import MEAN, STD, map_net
from maskrcnn_benchmark.modeling.cam.maps import SCALES, ClassMaps, at_scales, padded_sizes

LEVELS = (0.9, 0.8, 0.7, 0.6, 0.5)
NAMES = ("original", "here", "bfloat16")
BATCH, COMPARED = 2, 2
LABEL = 7

Boxes = list[np.ndarray]
Procedure = Callable[[Sequence[Path]], Boxes]


def original(net: nn.Module) -> Procedure:
    """DAP's steps, in torchvision's operations."""
    layers = nn.Sequential(*list(net.children())[:-2])
    weight, bias = net.fc.weight[LABEL].view(1, -1, 1, 1), net.fc.bias[LABEL].view(1)

    @torch.no_grad()
    def find(files: Sequence[Path]) -> Boxes:
        pictures = map(open_picture, files)
        return [
            of_map(_original_map(picture, layers, weight, bias), (picture.height, picture.width))
            for picture in pictures
        ]

    return find


def _original_map(picture: Image.Image, layers: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> np.ndarray:
    maps = []
    for scale in SCALES:
        small = pixels_of.resize(picture, scale)
        pixels = pixels_of.normalize(pixels_of.to_tensor(small), MEAN, STD)[None]
        pixels = functional.pad(pixels, (0, -pixels.shape[3] % 32, 0, -pixels.shape[2] % 32))
        features = (layers(pixels) + layers(pixels.flip(-1)).flip(-1)) / 2
        cam = functional.conv2d(features, weight, bias)
        maps.append((cam - cam.min()) / (cam.max() - cam.min()))
    up = functional.interpolate(maps[0], maps[1].shape[-2:])
    return (0.5 * (up + maps[1]))[0, 0].numpy()


def here(net: ClassMaps) -> Procedure:
    """This package's steps; as in its command, pictures of equal padded size share a batch."""

    def find(files: Sequence[Path]) -> Boxes:
        found: dict[Path, np.ndarray] = {}
        shapes = {file: padded_sizes(header_size(file) or (0, 0)) for file in files}
        for _, group in groupby(sorted(files, key=shapes.__getitem__), key=shapes.get):
            rows = list(group)
            for batch in (rows[first : first + BATCH] for first in range(0, len(rows), BATCH)):
                pictures = [open_picture(file) for file in batch]
                maps = net(at_scales(pictures), torch.full((len(batch),), LABEL))
                for file, values, picture in zip(batch, maps.values.numpy(), pictures, strict=True):
                    found[file] = of_map(values, (picture.height, picture.width))
        return [found[file] for file in files]

    return find


def of_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """All boxes of a map, and five suppressions, whose results are not used."""
    boxes, scores = boxes_of_map(values, size, 32 * min(size) / SCALES[-1])
    for level in LEVELS:
        suppress(np.array([0, len(boxes)]), boxes, scores, level)
    return boxes


def procedure(name: str, model: str) -> Procedure:
    torch.manual_seed(0)
    net = models.get_model(model, weights=None).eval()
    if name == "original":
        return original(net)
    keep_freed_memory()
    return here(map_net(net, model, dtype=torch.bfloat16 if name == "bfloat16" else torch.float32))


def measure(name: str, model: str, files: Sequence[Path]) -> None:
    """Print CPU seconds a picture, the peak of this process in MiB, and the boxes of the first pictures.

    All pictures go through once before the clock starts: thousands of pictures are spoken of, not the first ones, for
    which memory is asked from the system.
    """
    torch.set_num_threads(1)
    find = procedure(name, model)
    first = [boxes.tolist() for boxes in find(files)[:COMPARED]]
    start = time.process_time()
    find(files)
    seconds = (time.process_time() - start) / len(files)
    print(json.dumps({"seconds": seconds, "peak": peak(), "boxes": first}))


def peak() -> float:
    """MiB of this process; getrusage would also count what the process that started it had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="folder of JPEG files (default: drawn scenes of 640 x 480)")
    parser.add_argument("--model", default="resnet101", help="of torchvision's ResNets (default %(default)s)")
    parser.add_argument("--count", type=int, default=16, help="pictures at most (default %(default)s)")
    parser.add_argument("--only", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = sorted(options.pictures.glob("*.jpg")) if options.pictures else drawn(Path(folder), options.count)
        files = found[: options.count]
        if options.only:
            measure(options.only, options.model, files)
        else:
            compare(files, options.model)


def compare(files: Sequence[Path], model: str) -> None:
    rows = {}
    for name in NAMES:
        words = ["--only", name, "--model", model, "--count", str(len(files)), "--pictures", str(files[0].parent)]
        done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
        rows[name] = json.loads(done.stdout.splitlines()[-1])
    table = PrettyTable(["", "s a picture", "pictures a second and core", "times the original", "peak MiB"])
    for name, row in rows.items():
        times = rows["original"]["seconds"] / row["seconds"]
        table.add_row(
            [name, f"{row['seconds']:.3f}", f"{1 / row['seconds']:.2f}", f"{times:.2f}", f"{row['peak']:.0f}"]
        )
    print(table)
    pairs = zip(rows["original"]["boxes"], rows["here"]["boxes"], strict=True)
    worst = max(float(np.abs(np.subtract(a, b)).max()) if len(a) == len(b) else np.inf for a, b in pairs)
    print(f"{len(files)} pictures, {model}; largest difference of a coordinate: {worst:.4f} pixels")


if __name__ == "__main__":
    main()
