"""Tables and files of an evaluation."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from prettytable import PrettyTable

from maskrcnn_benchmark.evaluation.columns import Floats
from maskrcnn_benchmark.evaluation.engine import AREAS, IOU_THRESHOLDS


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


def lvis_csv(stats: Mapping[str, float], limit: int) -> str:
    """FIBER's ``bbox.csv`` of LVIS: the numbers as lvis-api prints them, with three decimals.

    Args:
        stats: Name -> number, of :class:`~maskrcnn_benchmark.evaluation.lvis_engine.LvisScores`.
        limit: Best detections of a picture that counted, -1 for all.
    """
    return "metric, avg \n" + "".join(_lvis_row(name.partition("@")[0], value, limit) for name, value in stats.items())


def _lvis_row(name: str, value: float, limit: int) -> str:
    kind, what = name[:2], name[2:]
    title = {"AP": "Average Precision", "AR": "Average Recall"}[kind]
    iou = f"0.{what}" if what.isdigit() else f"{IOU_THRESHOLDS[0]:0.2f}:{IOU_THRESHOLDS[-1]:0.2f}"
    area = what if what in ("s", "m", "l") else "all"
    group = what if what in ("r", "c", "f") else "all"
    place = f"IoU={iou:<9} | area={area:>6s} | maxDets={limit:>3d} catIds={group:>3s}"
    return f" {title:<18} ({kind}) @[ {place}], {value:0.3f} \n"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A printed table; numbers with four decimals."""
    printed = PrettyTable(list(header))
    printed.align = "r"
    printed.align[header[0]] = "l"
    for row in rows:
        printed.add_row([f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row])
    return str(printed.get_string())


def print_results(results: Mapping[str, Mapping[str, float]]) -> None:
    """Print the numbers of all data sets; evaluators have numbers of their own, and each a table."""
    for names in dict.fromkeys(tuple(numbers) for numbers in results.values()):
        rows = [[name, *numbers.values()] for name, numbers in results.items() if tuple(numbers) == names]
        print(table(["data set", *names], rows))


Content = bytes | Iterable[bytes] | Callable[[Path], object]


def write_files(folder: Path, files: Mapping[str, Content]) -> None:
    """Write all files or none: they get their names only when every one of them is whole.

    Args:
        folder: Where to; made if need be.
        files: Name -> what it holds, in one piece or in many, or a function that writes it to the path it is given.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder, prefix=".partial-"))
    try:
        for name, content in files.items():
            _write(partial / name, content)
        for name in files:
            os.replace(partial / name, folder / name)
        made = False
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):  # others may have put something there
                folder.rmdir()


def _write(path: Path, content: Content) -> None:
    if callable(content):
        content(path)
        return
    with path.open("wb") as file:
        file.writelines([content] if isinstance(content, bytes) else content)
