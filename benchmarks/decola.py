#!/usr/bin/env python3
"""Time DECOLA on one picture, on one thread of a CPU, beside the original's times for the same work.

    python benchmarks/decola.py --names 80 1203
    python benchmarks/decola.py --system phase2
    python benchmarks/decola.py --system centernet2

Random weights and embeddings, a picture of 480 x 640. Phase 1 makes 300 queries for each name, phase 2 makes 300 in
all and compares them with 1,203 names; CenterNet2 compares 256 proposals with them, and draws masks of 300 boxes. CPU
seconds are of this process, so that other work on the machine counts less. Those of the original (janghyuncho/DECOLA)
are from a machine on which a matrix product runs at about 130 GFLOP/s.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from fiber import gemm_gflops
from prettytable import PrettyTable

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.detectors.named import NamedDetector
from maskrcnn_benchmark.modeling.heads.zero_shot import PromptClassifier, ZeroShotClassifier
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, TextBatch

CONFIGS = {
    "phase1": "configs/decola/DECOLA_PHASE1_Lbase_CLIP_R5021k_4x.yaml",
    "phase2": "configs/decola/DECOLA_PHASE2_LbaseI_CLIP_R5021k_4x_ft4x.yaml",
    "centernet2": "configs/decola/DECOLA_C2_LbaseI_CLIP_R5021k_640b64_ft4x.yaml",
}
SIZE, CLASSES = (480, 640), 1203
REFERENCE = {
    ("phase1", 80): (27.0, 3.0),
    ("phase1", 1203): (525.0, 7.0),
    ("phase2", 1203): (4.4, None),
    ("centernet2", 1203): (7.3, None),
}
"""(system, names) -> CPU seconds and GB of the original; phase 1 with 1,203 in parts: as a whole, above 14 GB."""

T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """A result, and the CPU seconds that it took."""
    start = time.process_time()
    out = call()
    return out, time.process_time() - start


def make(system: str) -> NamedDetector:
    """The released network with random weights and embeddings."""
    torch.manual_seed(0)
    detector = build_detector(load_cfg(CONFIGS[system]))
    assert isinstance(detector, NamedDetector)
    for part in detector.modules():
        if isinstance(part, ZeroShotClassifier):
            rows = CLASSES + isinstance(part, PromptClassifier)
            part.zs_weight.copy_(part.stored(F.normalize(torch.randn(rows, 512))))
    return detector


@torch.inference_mode()
def measure(detector: NamedDetector, names: int, repeats: int) -> tuple[float, float, int]:
    """Best CPU seconds of the picture alone, and of the names; and how many boxes there are."""
    images = ImageBatch(torch.randn(1, 3, *SIZE), (ImageMeta(0, SIZE, SIZE),))
    text = detector.encode_text(TextBatch.of_classes({label: str(label) for label in range(1, names + 1)}))
    rows = []
    for _ in range(repeats):
        image, picture = timed(partial(detector.encode_image, images))
        (found,), asked = timed(partial(detector.detect, image, text))
        rows.append((picture, asked, len(found)))
    return min(rows, key=lambda row: row[0] + row[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=list(CONFIGS), default="phase1")
    parser.add_argument("--names", type=int, nargs="+", default=None, help="default: 80 in phase 1, else all 1,203")
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    detector = make(args.system)
    heads = ["names", "picture", "names s", "CPU seconds", "original", "ratio", "peak GB", "original GB", "boxes"]
    out = PrettyTable(heads)
    for names in args.names or ([80] if args.system == "phase1" else [CLASSES]):
        picture, asked, boxes = measure(detector, names, args.repeats)
        seconds, memory = REFERENCE.get((args.system, names), (None, None))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        ratio = "" if seconds is None else f"{(picture + asked) / seconds:.2f}"
        numbers = [f"{picture:.2f}", f"{asked:.2f}", f"{picture + asked:.2f}"]
        out.add_row([names, *numbers, seconds or "", ratio, f"{peak:.2f}", memory or "", boxes])
    print(f"{args.system}, {SIZE[0]} x {SIZE[1]}, one thread, GEMM {gemm_gflops():.0f} GFLOP/s")
    print(out)


if __name__ == "__main__":
    main()
