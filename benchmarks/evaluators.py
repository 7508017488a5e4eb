#!/usr/bin/env python3
"""Time the evaluators beside pycocotools and the lvis package, on drawn detections.

    python benchmarks/evaluators.py            # COCO 5,000 x 100, LVIS 5,000 x 300: some minutes and 6 GB
    python benchmarks/evaluators.py --small    # 500 pictures each

Every tool runs in a process of its own, from the annotation file on disk and the detections in memory (tensors by
picture for ours, arrays for the others, which get the rows that they want) to the numbers. CPU seconds and memory are
those of that; the peak of the whole process, with the import of torch for ours, stands beside. The lvis package (pip
install lvis) is optional. It needs np.float, which numpy no longer has, so here it is given one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Numbers = dict[str, float]
Columns = dict[str, np.ndarray]

SETS = {"coco": (80, 7, 100), "lvis": (1203, 12, 300)}  # classes, objects a picture, detections a picture
TOOLS = {"coco": ("ours", "pycocotools"), "lvis": ("ours", "lvis")}
WIDTH, HEIGHT = 640, 480


def draw(kind: str, pictures: int, folder: Path) -> None:
    """Annotations and detections: some near the objects, some elsewhere, some of another class."""
    classes, objects, found = SETS[kind]
    random = np.random.default_rng(0)
    owner = np.sort(random.integers(pictures, size=pictures * objects))
    category = 1 + np.minimum(random.zipf(1.3, size=len(owner)) - 1, classes * 50) % classes
    boxes = draw_boxes(random, len(owner)).round(2)
    area = (boxes[:, 2] * boxes[:, 3] * random.uniform(0.5, 1, len(boxes))).round(2)
    images = [federated(random, image, category[owner == image], classes) for image in range(pictures)]
    rows = zip(owner.tolist(), category.tolist(), boxes.tolist(), area.tolist(), strict=True)
    annotations = [
        {"id": i, "image_id": 1 + p, "category_id": c, "bbox": b, "area": a, "iscrowd": 0}
        for i, (p, c, b, a) in enumerate(rows, start=1)
    ]
    names = [{"id": c, "name": f"class {c}", "frequency": "rcf"[c % 3]} for c in range(1, classes + 1)]
    data = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": names}
    (folder / "annotations.json").write_text(json.dumps(data))

    first = np.searchsorted(owner, np.arange(pictures + 1))
    boxes_found, labels = draw_boxes(random, pictures * found), 1 + random.integers(classes, size=pictures * found)
    for picture in range(pictures):
        near = first[picture] + random.integers(max(1, first[picture + 1] - first[picture]), size=found // 2)
        near = near[near < first[picture + 1]]
        mine = slice(picture * found, picture * found + len(near))
        boxes_found[mine] = boxes[near] * random.normal(1, 0.08, (len(near), 4)).clip(0.5, 2)
        labels[mine] = np.where(random.random(len(near)) < 0.8, category[near], labels[mine])
    corners = np.concatenate((boxes_found[:, :2], boxes_found[:, :2] + boxes_found[:, 2:]), axis=1)
    scores = random.random(len(corners)).round(4)  # with ties
    picture = np.repeat(np.arange(1, pictures + 1), found)
    order = np.lexsort((-scores, picture))
    columns = {"boxes": corners.astype(np.float32), "scores": scores.astype(np.float32), "labels": labels}
    np.savez(folder / "found.npz", picture=picture, **{name: column[order] for name, column in columns.items()})


def draw_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """(N, 4) x, y, w, h."""
    sides = np.exp(random.normal(4, 0.9, (count, 2))).clip(2, [WIDTH, HEIGHT])
    return np.concatenate((random.random((count, 2)) * ([WIDTH, HEIGHT] - sides), sides), axis=1)


def federated(random: np.random.Generator, image: int, present: np.ndarray, classes: int) -> dict[str, Any]:
    """A picture, and what LVIS says of its classes."""
    absent = np.setdiff1d(random.integers(1, classes + 1, size=10), present).tolist()
    size = {"id": 1 + image, "width": WIDTH, "height": HEIGHT, "file_name": f"{image}.jpg"}
    return size | {"neg_category_ids": absent, "not_exhaustive_category_ids": np.unique(present)[:1].tolist()}


def ours(kind: str, file: Path, columns: Columns) -> Callable[[], Numbers]:
    import torch

    from maskrcnn_benchmark.evaluation.coco import CocoEvaluator
    from maskrcnn_benchmark.evaluation.lvis import LvisEvaluator
    from maskrcnn_benchmark.structures import Detections, ImageMeta

    torch.set_num_threads(1)
    tensors = [torch.from_numpy(columns[name]) for name in ("boxes", "scores", "labels")]
    counts = np.bincount(columns["picture"])[1:].tolist()
    metas = [ImageMeta(i, (HEIGHT, WIDTH), (HEIGHT, WIDTH)) for i in range(1, len(counts) + 1)]
    parts = zip(*(tensor.split(counts) for tensor in tensors), metas, strict=True)
    detections = [Detections(*part) for part in parts]

    def run() -> Numbers:
        if kind == "coco":
            labels = {c: c for c in range(1, SETS[kind][0] + 1)}
            evaluator: Any = CocoEvaluator(file, labels, plus_one=False)
        else:
            evaluator = LvisEvaluator(file, protocol="standard")
        for found in detections:
            evaluator.update([found])
        numbers: Numbers = evaluator.summary()
        return numbers

    return run


def as_rows(columns: Columns) -> list[dict[str, Any]]:
    """COCO results, of boxes in float32."""
    boxes = columns["boxes"].copy()
    boxes[:, 2:] -= boxes[:, :2]
    values = (columns["picture"].tolist(), columns["labels"].tolist(), boxes.tolist(), columns["scores"].tolist())
    keys = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(keys, row, strict=True)) for row in zip(*values, strict=True)]


def pycocotools(kind: str, file: Path, columns: Columns) -> Callable[[], Numbers]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def run() -> Numbers:
        truth = COCO(str(file))
        evaluation = COCOeval(truth, truth.loadRes(as_rows(columns)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs@100", "ARm@100", "ARl@100"]
        return dict(zip(names, map(float, evaluation.stats), strict=True))

    return run


def lvis(kind: str, file: Path, columns: Columns) -> Callable[[], Numbers]:
    np.float = float  # type: ignore[attr-defined]
    from lvis import LVIS, LVISEval, LVISResults

    def run() -> Numbers:
        truth = LVIS(str(file))
        evaluation = LVISEval(truth, LVISResults(truth, as_rows(columns)), "bbox")
        evaluation.run()
        return {name: float(value) for name, value in evaluation.results.items()}

    return run


def measure(tool: str, kind: str, folder: Path) -> None:
    """Run one tool in this process and print what came out, as JSON."""
    logging.disable(logging.WARNING)
    with np.load(folder / "found.npz") as file:
        columns = dict(file)
    prepare = {"ours": ours, "pycocotools": pycocotools, "lvis": lvis}[tool]
    try:
        run = prepare(kind, folder / "annotations.json", columns)
    except ImportError as error:
        print(json.dumps({"skipped": f"{error}: pip install {tool}"}))
        return
    before, start = peak_memory(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        numbers = run()
    cpu = time.process_time() - start
    print(json.dumps({"cpu": cpu, "peak": peak_memory(), "before": before, "numbers": numbers}))


def peak_memory() -> float:
    """MiB of this process; not ``getrusage``, where a new process begins with the peak of the one that started it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def compare(kind: str, pictures: int) -> None:
    from prettytable import PrettyTable

    print(f"{kind.upper()}, {pictures:,} pictures, {SETS[kind][0]:,} classes, {SETS[kind][2]} detections a picture")
    table = PrettyTable(
        ["tool", "CPU s", "times ours", "memory MiB", "ours, of it", "process MiB", "largest difference"]
    )
    table.align = "r"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(kind, pictures, folder)
        first: dict[str, Any] = {}
        for tool in TOOLS[kind]:
            command = [sys.executable, __file__, "--run", tool, "--set", kind, "--folder", name]
            out = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout
            got = json.loads(out.splitlines()[-1])
            if "skipped" in got:
                print(f"no row for {tool}: {got['skipped']}")
                continue
            first = first or got
            mine, numbers = first["numbers"], got["numbers"]
            apart = max(abs(value - numbers[name]) for name, value in mine.items() if name in numbers)
            work, work_ours = (row["peak"] - row["before"] for row in (got, first))
            cells = [f"{got['cpu']:.2f}", f"{got['cpu'] / first['cpu']:.1f}", f"{work:.0f}", f"{work_ours / work:.0%}"]
            table.add_row([tool, *cells, f"{got['peak']:.0f}", f"{apart:.0e}"])
    print(f"AP {first['numbers']['AP']:.9f}\n{table}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="500 pictures instead of 5,000")
    parser.add_argument("--set", choices=list(SETS), help="only this one")
    parser.add_argument("--run", choices=["ours", "pycocotools", "lvis"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        measure(options.run, options.set, options.folder)
        return
    for kind in [options.set] if options.set else SETS:
        compare(kind, 500 if options.small else 5000)


if __name__ == "__main__":
    main()
