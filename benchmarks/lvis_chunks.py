#!/usr/bin/env python3
"""Time FIBER-B on one picture with all the prompts of LVIS: shared work beside unshared work and the reference.

    python benchmarks/lvis_chunks.py --threads 1 2 --sizes 480x640 800x1066

Random weights; 31 prompts of 40 names. "shared" is what evaluation does: the picture once, each prompt once a run (its
time is counted here), prompts at their true length. "unshared" does everything again for every prompt, padded to 256
tokens, in the same run with the same code. The reference's seconds are those of microsoft/FIBER with one thread on a
machine whose matrix product reached 130 GFLOP/s, scaled to the product measured here.
"""

from __future__ import annotations

import argparse
import resource
from dataclasses import replace

import torch
from fiber import CONFIG, clock, gemm_gflops, prompt_batch  # beside this file
from prettytable import PrettyTable
from torch.nn.functional import pad

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.layers.backends import backend
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.interface import Detector
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, TextBatch

REFERENCE, REFERENCE_GFLOPS = {"480x640": 247.0, "800x1066": 674.0}, 130.0
PROMPTS, LENGTH = 31, 256
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "mkldnn_convolution", "scaled_dot_product")


def padded(text: TextBatch) -> TextBatch:
    """The prompt with padding up to 256 tokens, as the reference has it."""
    more = LENGTH - text.input_ids.shape[1]
    return replace(
        text,
        input_ids=pad(text.input_ids, (0, more), value=1),
        attention_mask=pad(text.attention_mask, (0, more)),
        entity_tokens=tuple(pad(tokens, (0, more)) for tokens in text.entity_tokens),
    )


@torch.inference_mode()
def shared(detector: Detector, images: ImageBatch, texts: list[TextBatch]) -> None:
    image = detector.encode_image(images)
    for text in texts:
        detector.detect(image, detector.encode_text(text))


@torch.inference_mode()
def unshared(detector: Detector, images: ImageBatch, texts: list[TextBatch]) -> None:
    for text in texts:
        detector.detect(detector.encode_image(images), detector.encode_text(padded(text)))


def seconds(call, *args: object) -> float:
    start = clock()
    call(*args)
    return clock() - start


def share_of_products(detector: Detector, images: ImageBatch, texts: list[TextBatch]) -> float:
    """How much of the time goes into matrix products and convolutions."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        shared(detector, images, texts)
    rows = profile.key_averages()
    total = sum(row.self_cpu_time_total for row in rows)
    return sum(row.self_cpu_time_total for row in rows if any(name in row.key for name in PRODUCTS)) / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", nargs="+", default=list(REFERENCE), choices=list(REFERENCE))
    parser.add_argument(
        "--unshared", type=int, default=4, help="prompts of the unshared run, of which all are estimated"
    )
    args = parser.parse_args()
    torch.manual_seed(0)
    detector = build_detector(load_cfg(CONFIG)).eval()
    torch.nn.init.constant_(detector.rpn.head.bias0, 0.0)  # enough candidates for the decoder, as with trained weights
    texts = [prompt_batch() for _ in range(PROMPTS)]
    out = PrettyTable(
        ["picture", "threads", "GFLOP/s", "shared s", "unshared s", "ratio", "reference s", "ratio ", "in products"]
    )
    for threads in args.threads:
        torch.set_num_threads(threads)
        for size in args.sizes:
            height, width = map(int, size.split("x"))
            images = ImageBatch.pad([torch.randn(3, height, width)], [ImageMeta(0, (height, width), (height, width))])
            shared(detector, images, texts[:2])  # to warm up
            speed = gemm_gflops()
            mine = seconds(shared, detector, images, texts)
            alone = seconds(unshared, detector, images, texts[: args.unshared]) * PROMPTS / args.unshared
            scaled = REFERENCE[size] * REFERENCE_GFLOPS / speed
            theirs = [f"{scaled:.0f}", f"{scaled / mine:.2f}"] if threads == 1 else ["", ""]
            products = f"{100 * share_of_products(detector, images, texts[:3]):.0f} %"
            out.add_row(
                [size, threads, f"{speed:.0f}", f"{mine:.1f}", f"{alone:.1f}", f"{alone / mine:.2f}", *theirs, products]
            )
    print(out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"deformable convolution by {backend('deform_conv2d')}; peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
