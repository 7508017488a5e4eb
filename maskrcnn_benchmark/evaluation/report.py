"""Tables and files of an evaluation."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from prettytable import PrettyTable

from maskrcnn_benchmark.evaluation.engine import AREAS, IOU_THRESHOLDS, Floats


def coco_csv(precision: Floats, names: Sequence[str]) -> str:
    """FIBER's ``bbox.csv``: AP of every class, in five rows.

    As in FIBER, a class without ground truth counts as -1, also in the last column (which is therefore not AP), class
    names are not quoted, and a row for which there is no ground truth at all ends without values and without a newline.

    Args:
        precision: (thresholds, recalls, K, areas, limits) of :class:`~maskrcnn_benchmark.evaluation.engine.CocoScores`.
        names: The K class names, by ascending category id.
    """
    rows = [(None, "all"), (0.5, "all"), *((None, area) for area in AREAS[1:])]
    return "".join(
        ["metric, ", *(f"{name}, " for name in names), "avg \n", *(_csv_row(precision, *row) for row in rows)]
    )


def _csv_row(precision: Floats, threshold: float | None, area: str) -> str:
    span = f"{IOU_THRESHOLDS[0]:0.2f}:{IOU_THRESHOLDS[-1]:0.2f}" if threshold is None else f"{threshold:0.2f}"
    head = f" {'Average Precision':<18} (AP) @[ IoU={span:<9} | area={area:>6s} | maxDets=100 ], "
    chosen = precision if threshold is None else precision[threshold == IOU_THRESHOLDS]
    chosen = chosen[:, :, :, [AREAS.index(area)], [-1]]  # lists keep the last axis, and with it the order of the sums
    if not (chosen > -1).any():
        return head
    values = [np.mean(chosen[:, :, k, :]) for k in range(chosen.shape[2])]
    return head + "".join(f"{value}, " for value in values) + f"{sum(values, 0.0) / len(values)} \n"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A printed table; numbers with four decimals."""
    printed = PrettyTable(list(header))
    printed.align = "r"
    printed.align[header[0]] = "l"
    for row in rows:
        printed.add_row([f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row])
    return str(printed.get_string())


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all files or none: they get their names only when every one of them is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder, prefix=".partial-"))
    try:
        for name, content in files.items():
            (partial / name).write_bytes(content)
        for name in files:
            os.replace(partial / name, folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
