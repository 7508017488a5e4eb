"""How long a fine-tuning will take and how much memory it needs, from a step that is really made."""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from maskrcnn_benchmark.engine import distributed
from maskrcnn_benchmark.engine.device import pick_device
from maskrcnn_benchmark.engine.distributed import World
from maskrcnn_benchmark.engine.finetune import plan_runs
from maskrcnn_benchmark.engine.journal import memory
from maskrcnn_benchmark.engine.tasks import plan_tasks
from maskrcnn_benchmark.engine.train import Training
from maskrcnn_benchmark.training import build_training

FORWARD = 1 / 3  # of the time of a training step: what an evaluation takes per batch (forward; backward takes two)
MEASURED = 2  # steps; the first one, which also prepares things, is not counted


@dataclass(frozen=True)
class Estimate:
    """What was measured, and what follows.

    Attributes:
        seconds: Of one step.
        batch: Pictures in it.
        steps: Of the whole training, when nothing ends it sooner.
        scored: Pictures in all evaluations together.
        gigabytes: Most memory held, on the accelerator or of the process.
        device: Where.
    """

    seconds: float
    batch: int
    steps: int
    scored: int
    gigabytes: float
    device: str

    @property
    def total(self) -> float:
        """Seconds of the training with its evaluations."""
        return self.seconds * (self.steps + FORWARD * self.scored / self.batch)

    def __str__(self) -> str:
        return (
            f"estimate: at most {duration(self.total)} and {self.gigabytes:.1f} GiB on {self.device} (measured: "
            f"{self.seconds:.2f} s for a step of {self.batch} pictures, memory of this process; {self.steps} steps, "
            f"and {self.scored} pictures scored, each at a third of its time in a step)"
        )


def estimate(config_file: str, task: Path, opts: Sequence[str]) -> Estimate:
    """Build the training of a task file, make two of its steps, and time the second; nothing is kept of them.

    Args:
        config_file: Of the model.
        task: Task file.
        opts: ``[KEY, VALUE, ...]``.

    Raises:
        UserError: anything that would stop the training itself.
    """
    plan = plan_runs(config_file, str(task), opts)[0]
    during = plan.cfg.TEST.DURING_TRAINING
    device = pick_device(plan.cfg.MODEL.DEVICE)
    logging.disable(logging.WARNING)  # the training itself will tell all of it
    try:
        tasks = plan_tasks(plan.cfg.override({"DATASETS.TEST": plan.sets}, "estimate"), Path())
        sizes = {name: len(task.dataset) for name, task in zip(plan.sets, tasks, strict=True)}
        cfg = plan.cfg.override({"TEST.DURING_TRAINING": False, "SOLVER.PICTURES_PERIOD": 0}, "estimate")
        with TemporaryDirectory() as folder:
            run = build_training(cfg, Path(folder), World(), device)
    finally:
        logging.disable(logging.NOTSET)
    assert run is not None
    seconds = _step_time(run)
    scored = 2 * sizes[plan.sets[0]]  # before and after
    if during:
        scored += run.plan.steps // run.plan.period * sum(sizes[name] for name in cfg.DATASETS.TEST)
    batch = cfg.SOLVER.IMS_PER_BATCH * run.plan.accumulation
    made = Estimate(seconds, batch, run.plan.steps, scored, memory(device), str(device))
    del run
    _give_back(device)
    return made


def _step_time(run: Training) -> float:
    """Seconds of the last of a few steps."""
    model = run.model.train()
    batches = iter(run.data.loader(0, 0, 1, 0, endless=True))
    seconds = 0.0
    for _ in range(MEASURED):
        begun = time.perf_counter()
        for _ in range(run.plan.accumulation):
            batch = run.data.prepare(next(batches), run.device)
            with run.precision.autocast():
                losses = model(batch, distributed.peers())
            run.solver.backward(losses.total(), run.plan.accumulation)
        run.solver.step()
        if run.device.type != "cpu":
            torch.accelerator.synchronize(run.device)
        seconds = time.perf_counter() - begun
    return seconds


def _give_back(device: torch.device) -> None:
    """Memory that is held for later, so that the training itself has all of it."""
    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def duration(seconds: float) -> str:
    """ "40 s", "12 min", "3.5 h" or "2.1 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def workers() -> int:
    """Processes that read pictures: at most four, and one less than this machine has cores."""
    return max(0, min(4, (os.cpu_count() or 1) - 1))
