#!/usr/bin/env python3
"""Time DECOLA on one picture, on one thread of a CPU, beside the original's times for the same work.

    python benchmarks/decola.py --names 80 1203
    python benchmarks/decola.py --phase 2

Random weights and embeddings, a picture of 480 x 640. Phase 1 makes 300 queries for each name, phase 2 makes 300 in
all and compares them with 1,203 names. CPU seconds are of this process, so that other work on the machine counts less.
Those of the original (janghyuncho/DECOLA) are from a machine on which a matrix product runs at about 130 GFLOP/s.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from prettytable import PrettyTable

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.detectors.decola import Decola
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, TextBatch

CONFIGS = {
    1: "configs/decola/DECOLA_PHASE1_Lbase_CLIP_R5021k_4x.yaml",
    2: "configs/decola/DECOLA_PHASE2_LbaseI_CLIP_R5021k_4x_ft4x.yaml",
}
SIZE, CLASSES = (480, 640), 1203
REFERENCE = {(1, 80): (27.0, 3.0), (1, 1203): (525.0, 7.0), (2, 1203): (4.4, None)}
"""(phase, names) -> CPU seconds and GB of the original; with 1,203 names in parts, as a whole it needs more than 14."""

T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """A result, and the CPU seconds that it took."""
    start = time.process_time()
    out = call()
    return out, time.process_time() - start


def make(phase: int) -> Decola:
    """The released network with random weights and embeddings."""
    torch.manual_seed(0)
    detector = build_detector(load_cfg(CONFIGS[phase]))
    assert isinstance(detector, Decola)
    table = torch.nn.functional.normalize(torch.randn(CLASSES + 1, 512))
    for classifier in (*detector.classifiers, detector.first_stage):
        classifier.zs_weight.copy_(table)
    return detector


@torch.inference_mode()
def measure(detector: Decola, names: int, repeats: int) -> tuple[float, float]:
    """Best CPU seconds of the picture alone, and of the names."""
    images = ImageBatch(torch.randn(1, 3, *SIZE), (ImageMeta(0, SIZE, SIZE),))
    text = detector.encode_text(TextBatch.of_classes({label: str(label) for label in range(1, names + 1)}))
    rows = []
    for _ in range(repeats):
        image, picture = timed(partial(detector.encode_image, images))
        _, asked = timed(partial(detector.detect, image, text))
        rows.append((picture, asked))
    return min(rows, key=sum)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", type=int, choices=sorted(CONFIGS), default=1)
    parser.add_argument(
        "--names", type=int, nargs="+", default=None, help="default: 80 in phase 1, all 1,203 in phase 2"
    )
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    detector = make(args.phase)
    out = PrettyTable(["names", "picture", "names s", "CPU seconds", "original", "ratio", "peak GB", "original GB"])
    for names in args.names or ([80] if args.phase == 1 else [CLASSES]):
        picture, asked = measure(detector, names, args.repeats)
        seconds, memory = REFERENCE.get((args.phase, names), (None, None))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        ratio = "" if seconds is None else f"{(picture + asked) / seconds:.2f}"
        numbers = [f"{picture:.2f}", f"{asked:.2f}", f"{picture + asked:.2f}"]
        out.add_row([names, *numbers, seconds or "", ratio, f"{peak:.2f}", memory or ""])
    print(f"phase {args.phase}, {SIZE[0]} x {SIZE[1]}, one thread")
    print(out)


if __name__ == "__main__":
    main()
