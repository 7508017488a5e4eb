#!/usr/bin/env python3
"""Time the operators of detection, each by every backend, and see how far their results lie apart.

    python benchmarks/ops.py --threads 1 2

The backend that a call uses by default is marked with a star. ``GEMM`` is the matrix product that a deformable
convolution cannot do without, timed in the same run: no implementation of it can be faster than that. "forward" is the
pass without gradients; "both" adds the gradients of all inputs. "peak" is the memory that both passes take at most
besides what the process held before (Linux). With one thread the clock is that of the process, so that other work on
the machine counts less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from prettytable import PrettyTable
from torch import Tensor

from maskrcnn_benchmark.layers import ops

Case = tuple[str, str, Callable[..., Tensor], tuple[Tensor, ...]]  # title, operator, call, its differentiable inputs
MAPS = ((100, 134), (50, 67), (25, 34))  # P3..P5 of a picture of 800 x 1066
CHANNELS = 256


def cases() -> Iterator[Case]:
    for size in MAPS:
        yield deform_case(size)
    for ratio in (2, 0):
        yield roi_case(ratio)
    yield pool_case()
    yield focal_case()
    for queries in (6380, 300):
        yield attention_case(queries)
    for count, labels in ((1000, 1), (3000, 80), (10000, 1), (10000, 80)):
        yield nms_case(count, labels)
    yield soft_nms_case()


def deform_case(size: tuple[int, int]) -> Case:
    """Modulated 3x3 of DyHead; offsets of a few pixels."""
    inputs = (
        torch.randn(1, CHANNELS, *size).contiguous(memory_format=torch.channels_last),
        torch.randn(1, 18, *size) * 2,
        torch.rand(1, 9, *size),
        (torch.randn(CHANNELS, CHANNELS, 3, 3) / 48).contiguous(memory_format=torch.channels_last),
        torch.randn(CHANNELS),
    )
    title = f"deform_conv2d {CHANNELS}->{CHANNELS} {size[0]}x{size[1]}"
    return title, "deform_conv2d", lambda x, d, m, w, b: ops.deform_conv2d(x, d, m, w, b, padding=1), inputs


def regions() -> Tensor:
    corner = torch.rand(1000, 2) * torch.tensor([1000.0, 700.0])
    return torch.cat((torch.zeros(1000, 1), corner, corner + torch.rand(1000, 2) * 200 + 10), dim=1)


def pool_case() -> Case:
    rois, image = regions(), torch.randn(1, CHANNELS, 200, 300)
    return f"roi_pool 1000x{CHANNELS}x7x7", "roi_pool", lambda x: ops.roi_pool(x, rois, 7, 0.25), (image,)


def focal_case() -> Case:
    logits, targets = torch.randn(20000, 80), torch.randint(-1, 81, (20000,))
    return "sigmoid_focal_loss 20000x80", "sigmoid_focal_loss", lambda x: ops.sigmoid_focal_loss(x, targets), (logits,)


def roi_case(ratio: int) -> Case:
    rois = regions()
    title = f"roi_align 1000x{CHANNELS}x7x7, ratio {ratio}"
    image = torch.randn(1, CHANNELS, 200, 300)
    return title, "roi_align", lambda x: ops.roi_align(x, rois, 7, 0.25, ratio), (image,)


def attention_case(queries: int) -> Case:
    shapes = torch.tensor([[60, 80], [30, 40], [15, 20], [8, 10]])
    sizes = shapes.prod(1)
    inputs = (
        torch.randn(1, int(sizes.sum()), 8, 32),
        torch.rand(1, queries, 8, 4, 4, 2),
        torch.rand(1, queries, 8, 4, 4),
    )
    starts = sizes.cumsum(0) - sizes
    title = f"ms_deform_attn, {queries} queries"
    return title, "ms_deform_attn", lambda v, *rest: ops.ms_deform_attn(v, shapes, starts, *rest), inputs


def nms_case(count: int, classes: int) -> Case:
    corner = torch.rand(count, 2) * 1000
    boxes, scores = torch.cat((corner, corner + torch.rand(count, 2) * 200), dim=1), torch.rand(count)
    if classes == 1:
        return f"nms {count}", "nms", lambda: ops.nms(boxes, scores, 0.6, plus_one=True), ()
    labels = torch.randint(0, classes, (count,))
    title = f"batched_nms {count}, {classes} classes"
    return title, "batched_nms", lambda: ops.batched_nms(boxes, scores, labels, 0.6, plus_one=True), ()


def soft_nms_case() -> Case:
    corner = torch.rand(1000, 2) * 1000
    boxes, scores = torch.cat((corner, corner + torch.rand(1000, 2) * 200), dim=1), torch.rand(1000)
    return "soft_nms 1000", "soft_nms", lambda: ops.soft_nms(boxes, scores, 0.05, 0.5)[0], ()


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """The best of some runs, after one to warm up."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    call()
    times = []
    for _ in range(repeats):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times) * 1e3


def gemm_of(inputs: tuple[Tensor, ...], repeats: int) -> float:
    """The product of columns and weights in a deformable convolution, in milliseconds."""
    cells, depth = inputs[0][0, 0].numel(), inputs[3][0].numel()
    columns, weight = torch.randn(cells, depth), torch.randn(len(inputs[3]), depth)
    return milliseconds(lambda: torch.nn.functional.linear(columns, weight), repeats)


def forward_and_backward(call: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = call(*leaves)
    torch.autograd.grad(out, leaves, torch.ones_like(out))


def resident(field: str) -> int | None:
    """ "VmRSS": MiB of memory in use, "VmHWM": the most there was since the last reset of that number."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith(field)), None)


def peak_of(call: Callable[[], object]) -> int | None:
    """MiB that a call takes at most besides what was in use before it."""
    before, reset = resident("VmRSS"), Path("/proc/self/clear_refs")
    if before is None or not reset.exists():
        return None
    reset.write_text("5")
    call()
    after = resident("VmHWM")
    return None if after is None else max(after - before, 0)


def measure(case: Case, backend: str, repeats: int) -> tuple[float, float | None, int | None, Tensor]:
    """Milliseconds of the forward pass and of both passes (None: no gradient), peak memory, and the result."""
    _, _, call, inputs = case
    with ops.use_backend(backend):
        with torch.no_grad():
            forward, out = milliseconds(lambda: call(*inputs), repeats), call(*inputs)
        both = milliseconds(lambda: forward_and_backward(call, inputs), max(1, repeats // 2)) if inputs else None
        peak = peak_of(lambda: forward_and_backward(call, inputs) if inputs else call())
    return forward, both, peak, out


def difference(a: Tensor, b: Tensor) -> str:
    if a.dtype == torch.int64:
        return "same boxes" if torch.equal(a, b) else "OTHER BOXES"
    return f"{float((a - b).abs().max() / b.abs().max()):.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for threads in args.threads:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        table = PrettyTable(["operator", "backend", "forward ms", "both ms", "GEMM ms", "peak MiB", "apart from *"])
        table.align = "r"
        table.align["operator"] = table.align["backend"] = "l"
        for case in cases():
            gemm = f"{gemm_of(case[3], args.repeats):.1f}" if case[1] == "deform_conv2d" else ""
            first = None
            for backend in ops.available_backends(case[1]):
                forward, both, peak, out = measure(case, backend, args.repeats)
                apart = "" if first is None else difference(out, first)
                star = "" if first is not None else " *"
                times = (f"{forward:.1f}", "" if both is None else f"{both:.0f}")
                table.add_row([case[0], backend + star, *times, gemm, "" if peak is None else peak, apart])
                first = out if first is None else first
        print(f"torch {torch.__version__}, {threads} thread(s)\n{table}\n")


if __name__ == "__main__":
    main()
