"""The demonstration: a tiny detector on drawn pictures, through the same functions that the tools call."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint.io import file_digest, find_weights
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.drawn import NEW_SHAPE
from maskrcnn_benchmark.demo import measure
from maskrcnn_benchmark.demo.chart import line_chart
from maskrcnn_benchmark.demo.command_lines import command_lines
from maskrcnn_benchmark.demo.gallery import make_gallery
from maskrcnn_benchmark.demo.measure import Subject
from maskrcnn_benchmark.demo.report import Findings, write_page
from maskrcnn_benchmark.demo.sets import RETAINED, SHOTS, TUNED, draw_sets, plan_sets, write_tasks
from maskrcnn_benchmark.engine.curves import series
from maskrcnn_benchmark.engine.journal import METRICS
from maskrcnn_benchmark.engine.log import setup_logging
from maskrcnn_benchmark.errors import ConfigError

MARK = ".demo"  # file that says that a folder may be emptied
LOSSES = {"all": "loss", "words": "loss_dot_product_token", "boxes": "loss_reg", "centres": "loss_centerness"}
PACKAGES = ("maskrcnn_benchmark", "torch", "torchvision", "numpy")


class Clock:
    """Seconds of each step; says what begins."""

    def __init__(self, steps: int) -> None:
        self.seconds: dict[str, float] = {}
        self._steps = steps

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        print(f"{len(self.seconds) + 1}/{self._steps} {name}", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def show(subject: Subject, folder: Path, count: int, seed: int) -> Path:
    """Draw test sets, score and fine-tune on them, write a report and all numbers; returns the report.

    What an earlier call left in ``folder`` is made anew.

    Args:
        subject: The detector; a narrow or untrained one will do, and the report then tells so by its numbers.
        folder: For everything.
        count: Pictures of each test set.
        seed: Of the pictures.

    Raises:
        ConfigError: the folder holds other files, or its name has a comma.
        WeightsError: the weights are missing or do not fit.
    """
    weight = find_weights(subject.weight)
    load_cfg(subject.config, opts=subject.opts)
    _empty(folder)
    setup_logging()
    clock = Clock(5)
    with clock.step("draw the pictures"):
        drawn = draw_sets(folder / "data", count, seed)
        tasks = write_tasks(folder / "tasks", drawn)
    with clock.step("score what it finds by words"):
        scores = measure.score(subject, tasks, folder)
    predictor = subject.predictor()
    with clock.step("ask for absent things"):
        absent = measure.ask_absent(predictor, drawn[RETAINED].annotations, seed)
    with clock.step(f"learn the {NEW_SHAPE} from {SHOTS} pictures, and score it before and after"):
        tuned = measure.tune(subject, tasks[TUNED], folder / "tuned")
    with clock.step("draw what was found"):
        gallery = make_gallery(predictor, subject.predictor(tuned.weight), drawn, seed)
    numbers = {"numbers": measure.as_rows(scores, absent, tuned), "seconds": clock.seconds}
    (folder / "demo.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    commands = command_lines(subject, plan_sets(count, seed), tasks, folder / "again", tuned, gallery)
    chart = line_chart("losses of the fine-tuning", losses(tuned.folder), "step")
    found = Findings(count, scores, absent, tuned, gallery, chart, commands, clock.seconds, _versions(subject, weight))
    page = folder / "index.html"
    page.write_text(write_page(found), encoding="utf-8")
    return page


def losses(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Name -> (step, loss), of a training."""
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {name: points for name, key in LOSSES.items() if (points := series(rows, key))}


def _empty(folder: Path) -> None:
    """Make the folder, or what an earlier call made of it, new."""
    if "," in str(folder):
        raise ConfigError(f"--output {str(folder)!r}: a comma cannot be in the name of this folder: choose another")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise ConfigError(f"--output {str(folder)!r} holds files of another kind: choose another folder")
    shutil.rmtree(folder, ignore_errors=True)
    cli.output_folder(str(folder), "--output")
    (folder / MARK).touch()


def _versions(subject: Subject, weight: Path) -> dict[str, str]:
    size = f"{weight.stat().st_size / 1e6:.1f} MB, sha256 {file_digest(weight)[:16]}..."
    about = {"config": subject.config, "weights": f"{subject.weight} ({size})", "Python": platform.python_version()}
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return {**about, **{name: version(name) for name in PACKAGES}, "machine": machine}
