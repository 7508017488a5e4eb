#!/usr/bin/env python3
"""Time a training step of a narrow and of the full FIBER-B, by part.

    python benchmarks/train.py --threads 1 --networks narrow full --size 320x416

Random weights; each picture has 8 boxes and a prompt of 40 names, padded to 256 tokens as in pre-training. "forward" is
up to the loss, "backward" to the gradients, "update" is clipping, AdamW and the averaged weights. Reading pictures is
not in it: see benchmarks/loader.py. Compare with the matrix product below, measured in the same run.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Sequence
from itertools import pairwise

import torch
from fiber import clock, gemm_gflops, prompt_batch
from prettytable import PrettyTable

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.interface import Batch, Detector
from maskrcnn_benchmark.solver.build import Solver, build_solver
from maskrcnn_benchmark.solver.plan import make_plan
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, Target, TextBatch

CONFIGS = {
    "narrow": "configs/demo/fiber_narrow.yaml",
    "full": "configs/pretrain/mixed_nococo_flickr_objects365.yaml",
}
BOXES, TOKENS = 8, 256
PARTS = ("forward", "backward", "update")


def make_batch(count: int, height: int, width: int) -> Batch:
    """Noise with boxes at random places, each of which owns an entity of its prompt."""
    metas = tuple(ImageMeta(index, (height, width), (height, width)) for index in range(count))
    prompt = prompt_batch()
    padding = (0, TOKENS - prompt.input_ids.shape[1])
    ids = torch.nn.functional.pad(prompt.input_ids, padding, value=1)
    mask = torch.nn.functional.pad(prompt.attention_mask, padding)
    entities = torch.nn.functional.pad(prompt.entity_tokens[0], padding)
    text = TextBatch(prompt.prompts * count, ids.repeat(count, 1), mask.repeat(count, 1), (entities,) * count)
    return Batch(
        ImageBatch(torch.randn(count, 3, -(-height // 32) * 32, -(-width // 32) * 32), metas),
        [make_target(meta, entities, prompt.prompts[0]) for meta in metas],
        text,
    )


def make_target(meta: ImageMeta, entities: torch.Tensor, prompt) -> Target:
    height, width = meta.size
    corners = torch.rand(BOXES, 2, 2).sort(dim=1).values * torch.tensor([width - 9.0, height - 9.0])
    boxes = torch.cat((corners[:, 0], corners[:, 1] + 8), dim=1)
    chosen = torch.randperm(len(entities))[:BOXES]
    positive = entities[chosen].float()
    return Target(boxes, chosen + 1, meta, prompt, positive / positive.sum(dim=1, keepdim=True))


def step(model: Detector, solver: Solver, batch: Batch) -> dict[str, float]:
    """Seconds of the parts of a step."""
    times = [clock()]
    loss = model(batch).total()
    times.append(clock())
    solver.backward(loss)
    times.append(clock())
    solver.step()
    times.append(clock())
    return dict(zip(PARTS, (after - before for before, after in pairwise(times)), strict=True))


def measure(network: str, batch_size: int, size: tuple[int, int], repeats: int) -> tuple[dict[str, float], float]:
    """Parts of the best of ``repeats`` steps after one to warm up, and millions of parameters."""
    cfg = load_cfg(CONFIGS[network], opts=["MODEL.WEIGHT", "", "SOLVER.WARMUP_ITERS", "0"])
    torch.manual_seed(0)
    model = build_detector(cfg).train()
    solver, batch = build_solver(cfg, model, make_plan(cfg, 1)), make_batch(batch_size, *size)
    rows = [step(model, solver, batch) for _ in range(repeats + 1)]
    return min(rows[1:], key=lambda row: sum(row.values())), sum(p.numel() for p in model.parameters()) / 1e6


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--size", default="320x416", help="height x width in pixels")
    parser.add_argument("--batch", type=int, default=1, help="pictures in a step")
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    height, width = map(int, args.size.split("x"))
    print(f"{args.batch} x {args.size}, {args.threads} threads, GEMM {gemm_gflops():.0f} GFLOP/s")
    table = PrettyTable(["network", "parameters", *PARTS, "step", "peak memory so far"], align="r")
    for network in args.networks:
        row, millions = measure(network, args.batch, (height, width), args.repeats)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        seconds = [f"{value:.2f} s" for value in (*row.values(), sum(row.values()))]
        table.add_row([network, f"{millions:.1f} M", *seconds, f"{peak:.2f} GiB"])
    print(table)


if __name__ == "__main__":
    main()
