#!/usr/bin/env python3
"""Time FIBER-B on one picture, by part, beside the reference's times for the same work.

    python benchmarks/fiber.py --threads 1 2 --sizes 480x640 800x1066

Random weights, one prompt of 40 names. "first" is a picture with its first prompt, "further" one more prompt on the
same picture. The reference's column holds CPU seconds of microsoft/FIBER with one thread, from a machine on which the
matrix product below runs at about 130 GFLOP/s; elsewhere compare the parts with that product, measured in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import time
from collections import defaultdict
from collections.abc import Iterator

import torch
from prettytable import PrettyTable

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, Prompt, TextBatch

CONFIG = "configs/pretrain/mixed_nococo_flickr_objects365.yaml"
REFERENCE = {  # picture size -> part -> CPU seconds, one thread
    "480x640": {"image prefix": 2.85, "text prefix": 0.29, "fused": 1.79, "FPN": 0.09, "head": 2.71, "decode": 0.23},
    "800x1066": {"image prefix": 8.03, "text prefix": 0.31, "fused": 4.08, "FPN": 0.25, "head": 8.32, "decode": 0.65},
}
FURTHER = ("fused", "FPN", "head", "decode")  # what a further prompt repeats
NAMES, TOKENS = 40, 110


def clock() -> float:
    """Seconds: of this process with one thread, so that other work on the machine counts less; else of the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def gemm_gflops(repeats: int = 10) -> float:
    """Speed of a 1024 x 1024 float32 matrix product with the current number of threads."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    a @ b
    best = min(_seconds(lambda: a @ b) for _ in range(repeats))
    return 2 * 1024**3 / best / 1e9


def _seconds(call) -> float:
    start = clock()
    call()
    return clock() - start


def prompt_batch() -> TextBatch:
    """40 entities of two or three tokens each in a prompt of 110 tokens."""
    ids = torch.randint(4, 50000, (1, TOKENS))
    entities = torch.zeros(NAMES, TOKENS, dtype=torch.bool)
    for i in range(NAMES):
        entities[i, 1 + 2 * i : 3 + 2 * i] = True
    prompt = Prompt("x" * NAMES, tuple(((i, i + 1),) for i in range(NAMES)), tuple(range(1, NAMES + 1)))
    return TextBatch((prompt,), ids, torch.ones(1, TOKENS, dtype=torch.int64), (entities,))


@contextlib.contextmanager
def timed_parts(detector: torch.nn.Module) -> Iterator[dict[str, float]]:
    """Seconds spent in the parts of ``detect`` while the context lasts."""
    seconds: dict[str, float] = defaultdict(float)
    parts = {
        "fused": (detector.fusion_backbone, "fuse"),
        "FPN": (detector.fusion_backbone.backbone.fpn, "merge"),
        "head": (detector.rpn, "forward"),
        "detect": (detector, "detect"),
    }

    def wrap(name: str, original):
        def call(*args, **kwargs):
            start = clock()
            try:
                return original(*args, **kwargs)
            finally:
                seconds[name] += clock() - start

        return call

    originals = {name: getattr(owner, attribute) for name, (owner, attribute) in parts.items()}
    for name, (owner, attribute) in parts.items():
        object.__setattr__(owner, attribute, wrap(name, originals[name]))
    try:
        yield seconds
    finally:
        for owner, attribute in parts.values():
            object.__delattr__(owner, attribute)


@torch.inference_mode()
def measure(detector: torch.nn.Module, height: int, width: int, repeats: int) -> dict[str, float]:
    """Best seconds per part over ``repeats`` runs, after one to warm up."""
    padded = torch.zeros(1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
    padded[..., :height, :width] = torch.randn(1, 3, height, width)
    images = ImageBatch(padded, (ImageMeta(0, (height, width), (height, width)),))
    text = prompt_batch()
    runs = []
    for _ in range(repeats + 1):
        row = {"image prefix": clock()}
        image = detector.encode_image(images)
        row["image prefix"] = clock() - row["image prefix"]
        start = clock()
        state = detector.encode_text(text)
        row["text prefix"] = clock() - start
        with timed_parts(detector) as seconds:
            detector.detect(image, state)
        row["decode"] = seconds.pop("detect") - seconds["fused"] - seconds["head"]
        seconds["fused"] -= seconds["FPN"]  # the FPN runs inside fuse
        runs.append({**row, **seconds})
    return min(runs[1:], key=lambda row: sum(row.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", nargs="+", default=list(REFERENCE), choices=list(REFERENCE))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    detector = build_detector(load_cfg(CONFIG)).eval()
    torch.nn.init.constant_(detector.rpn.head.bias0, 0.0)  # enough candidates for the decoder, as with trained weights
    for threads in args.threads:
        torch.set_num_threads(threads)
        speed = gemm_gflops()
        for size in args.sizes:
            row = measure(detector, *map(int, size.split("x")), repeats=args.repeats)
            print(f"\n{size}, {threads} thread{'s' * (threads > 1)}, GEMM {speed:.0f} GFLOP/s")
            print(table(row, REFERENCE[size] if threads == 1 else None))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak memory {peak:.2f} GiB (weights {sum(p.numel() for p in detector.parameters()) * 4 / 2**30:.2f} GiB)")


def table(row: dict[str, float], reference: dict[str, float] | None) -> PrettyTable:
    """Seconds per part, and what the reference needs: for a further prompt it repeats everything."""
    out = PrettyTable(["part", "seconds", *(["reference", "ratio"] if reference else [])], align="r")
    parts = tuple(next(iter(REFERENCE.values())))
    sums = {"first": parts, "further": FURTHER}
    for name in (*parts, *sums):
        mine = sum(row[part] for part in sums.get(name, (name,)))
        cells = []
        if reference:
            theirs = sum(reference.values()) if name in sums else reference[name]
            cells = [f"{theirs:.2f}", f"{mine / theirs:.2f}"]
        out.add_row([name, f"{mine:.2f}", *cells])
    return out


if __name__ == "__main__":
    main()
