"""The suite behind ``tools/finetune.py``: each task and seed trained and scored, and one table of it all.

In ``OUTPUT_DIR``: ``finetune.json`` with every number, and for each training ``ft_task_<i>[_seed_<s>]`` with its
checkpoints, ``result.json`` (what is done, so that the command goes on where it was interrupted), and the result files
of its evaluations: ``zero_shot/<set>``, ``eval/<weights>/<set>``, ``.../retention/<set>``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint import resume
from maskrcnn_benchmark.checkpoint.io import Report, load_weights
from maskrcnn_benchmark.checkpoint.start import start_from
from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.config.load import COMMAND_LINE
from maskrcnn_benchmark.engine import distributed, evaluate
from maskrcnn_benchmark.engine.boards import need_boards
from maskrcnn_benchmark.engine.device import pick_device
from maskrcnn_benchmark.engine.distributed import World
from maskrcnn_benchmark.engine.finetune import SEEDS_OPTION, TEST_SPLIT, Run, plan_runs
from maskrcnn_benchmark.engine.finetune_report import SUMMARY, Row, read_record, summarise, write_record
from maskrcnn_benchmark.engine.freeze import with_tuning
from maskrcnn_benchmark.engine.inference import Model
from maskrcnn_benchmark.engine.lock import lock
from maskrcnn_benchmark.engine.log import say_what_others_cannot
from maskrcnn_benchmark.engine.tasks import Task, describe, plan_tasks
from maskrcnn_benchmark.engine.train import train
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.evaluation.report import write_files
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.training import build_training, starting_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stages:
    """What is done with each task and seed.

    Attributes:
        training: Train; without it, weights that an earlier call left are scored.
        scoring: Score the starting and the best weights, on the test split, or ``DATASETS.TEST`` where there is none.
        val_too: Score ``DATASETS.TEST`` as well where there is a test split.
        resume_optimizer: An interrupted training takes up the averages of its optimizer.
        boards: Where scalars go too; see :data:`maskrcnn_benchmark.engine.boards.BOARDS`.
        strict: A key that was set and that nothing read is an error.
    """

    training: bool = True
    scoring: bool = True
    val_too: bool = False
    resume_optimizer: bool = True
    boards: Sequence[str] = ()
    strict: bool = False


@dataclass
class Job:
    """A training, what of it is done, and the evaluations that belong to it."""

    run: Run
    record: Row
    tasks: list[Task]
    retention: list[Task]  # one or none


def finetune(
    config_file: str | None,
    tasks: str = "",
    opts: Sequence[str] = (),
    shots: str = "",
    seeds: str = "",
    *,
    stages: Stages | None = None,
    local_rank: int | None = None,
    dry_run: bool = False,
) -> Row:
    """Fine-tune a detector on each task with each seed; what an earlier call finished is not done again.

    Args:
        config_file: YAML file of the model.
        tasks: Globs of task files with commas between; empty: the config file has the data sets itself.
        opts: ``[KEY, VALUE, ...]``.
        shots: ``SHOTS_EPOCHS_COPIES``; with 10000 shots only the starting weights are scored.
        seeds: ``3,30,300``: that many trainings of each task, with other shots.
        stages: What is done.
        local_rank: What an old launcher passes.
        dry_run: Check everything that can be without a network, say what would be done, and stop.

    Returns:
        See :func:`~maskrcnn_benchmark.engine.finetune_report.summarise`; empty after a dry run, and in all
        processes but the first.

    Raises:
        UserError: anything that the user can mend; mistakes in config, data and weights before the first training.
    """
    if not config_file:
        raise ConfigError("no config: give --config-file configs/....yaml")
    stages = stages or Stages()
    need_boards(stages.boards)
    base = with_tuning(load_cfg(config_file, opts=opts))
    runs = plan_runs(config_file, tasks, opts, shots, seeds)
    world = distributed.detect_world(os.environ, local_rank)
    device = distributed.local_device(world, pick_device(base.MODEL.DEVICE))
    folder = cli.output_folder(base.OUTPUT_DIR)
    writes = world.main and not dry_run
    with lock(folder) if writes else nullcontext():
        cli.start([base, *(run.cfg for run in runs)], folder if writes else None)
        if not world.main:
            say_what_others_cannot()
        _warn(base, seeds, runs, stages)
        distributed.init(world, device)
        try:
            jobs = _check(base, runs, stages, world, device)
            if dry_run:
                return {}
            for job in jobs:
                _work(job, jobs, stages, world, device)
                if world.main:
                    write_files(folder, {SUMMARY: json.dumps(_summary(jobs), indent=1).encode()})
            return _summary(jobs) if world.main else {}
        finally:
            distributed.shutdown()


def _summary(jobs: Sequence[Job]) -> Row:
    return summarise([job.record for job in jobs])


def _warn(base: Cfg, seeds: str, runs: Sequence[Run], stages: Stages) -> None:
    """Tell of what is allowed, and seldom meant."""
    if seeds and base.source("DATASETS.SHUFFLE_SEED") == COMMAND_LINE:
        logger.warning("DATASETS.SHUFFLE_SEED of the command line wins over %s: all have one seed", SEEDS_OPTION)
    for run in runs:
        if stages.training and run.trains and not run.cfg.TEST.DURING_TRAINING:
            logger.warning("%s: TEST.DURING_TRAINING is off: the last weights count as the best", run.task)


def _check(base: Cfg, runs: Sequence[Run], stages: Stages, world: World, device: torch.device) -> list[Job]:
    """Find every mistake that can be found before anything is trained."""
    jobs, seen = [], set()
    for run in runs:
        network = json.dumps(dict(run.cfg.MODEL), sort_keys=True)
        if run.cfg.MODEL.WEIGHT and network not in seen:  # once for each kind of network: big files
            with torch.device("meta"):
                start_from(build_detector(run.cfg), run.cfg.MODEL.WEIGHT)
        seen.add(network)
        pick_device(run.cfg.MODEL.DEVICE)
        logger.info("%s%s: %s", run.task, "" if run.seed is None else f", seed {run.seed}", run.folder)
        if stages.training and run.trains:
            build_training(run.cfg, run.folder, world, device, with_model=False)
        begun = (run.folder / resume.POINTER).is_file()
        tasks = _tasks(run, stages)
        for task in tasks:
            logger.info(describe(task))
        jobs.append(Job(run, read_record(run, begun), tasks, _retention(base, run.cfg) if stages.scoring else []))
    distributed.barrier()  # all have read the records before one of them writes
    return jobs


def _tasks(run: Run, stages: Stages) -> list[Task]:
    """The evaluations of a training; their folders come later."""
    if not stages.scoring:
        return []
    if not run.sets:
        raise ConfigError(
            f"{run.task}: nothing to score: DATASETS.TEST names no data set, and no {TEST_SPLIT} is given"
        )
    names = run.sets if stages.val_too or run.sets[0] != TEST_SPLIT else run.sets[:1]
    return plan_tasks(run.cfg.override({"DATASETS.TEST": names}, "sets to score"), Path())


def _retention(base: Cfg, cfg: Cfg) -> list[Task]:
    """As without a task file, with class names from the annotations: the same for every training."""
    name = cfg.TEST.RETENTION_DATASET
    if not name:
        return []
    values = {
        "DATASETS.TEST": (name,),
        "DATASETS.REGISTER": dict(cfg.DATASETS.REGISTER),
        "DATASETS.USE_OVERRIDE_CATEGORY": False,
        "DATASETS.USE_CAPTION_PROMPT": False,
    }
    source = f"TEST.RETENTION_DATASET, {cfg.source('TEST.RETENTION_DATASET')}"
    return plan_tasks(base.override(values, source), Path())


def _work(job: Job, jobs: Sequence[Job], stages: Stages, world: World, device: torch.device) -> None:
    """Do what is not done yet of one training; the record is written after every part."""
    run, record = job.run, job.record
    _borrow(job, jobs)
    if world.main:
        write_files(run.folder, {"config.yml": run.cfg.dump_with_sources().encode()})
        write_record(run.folder, record)
    if world.main and _missing(job, "zero_shot", "before"):
        start = Report(Path(run.cfg.MODEL.WEIGHT or "random weights"), "", (), (), (), {})
        _score(job, "zero_shot", "before", starting_model(run.cfg), start, device, run.folder / "zero_shot")
    distributed.barrier()
    if run.trains and stages.training and record["trained"] is None:
        logger.info("training %s", run.folder)
        _train(job, stages, world, device)
    elif record["trained"] is not None:
        logger.info("%s: trained before (%d steps)", run.folder, record["trained"]["steps"])
    if world.main and run.trains and _missing(job, "fine_tuned", "after"):
        _score_tuned(job, device)
    distributed.barrier()


def _borrow(job: Job, jobs: Sequence[Job]) -> None:
    """Take numbers of the starting weights from another seed of the task, and the retention before from any task."""
    for other in jobs:
        if other.run.index == job.run.index:
            job.record["zero_shot"] = {**other.record["zero_shot"], **job.record["zero_shot"]}
        theirs = other.record["retention"]
        if job.retention and theirs.get("set") == job.retention[0].name and "before" in theirs:
            if job.record["retention"].get("set") != theirs["set"]:
                job.record["retention"] = {}
            job.record["retention"] = {"set": theirs["set"], "before": theirs["before"], **job.record["retention"]}


def _missing(job: Job, sets: str, side: str) -> bool:
    """Whether an evaluation is still to be done."""
    kept = job.record["retention"]
    retained = all(kept.get("set") == task.name and side in kept for task in job.retention)
    return not retained or any(task.name not in job.record[sets] for task in job.tasks)


def _train(job: Job, stages: Stages, world: World, device: torch.device) -> None:
    training = build_training(job.run.cfg, job.run.folder, world, device)
    assert training is not None
    training.resume_optimizer, training.boards = stages.resume_optimizer, stages.boards
    if world.main:
        idle = () if training.evaluate is not None or stages.scoring else cli.EVALUATION_KEYS
        cli.report_unread([job.run.cfg], stages.strict, idle)
    job.record["trained"] = train(training)
    job.record["fine_tuned"] = {}
    job.record["retention"].pop("after", None)
    if world.main:
        write_record(job.run.folder, job.record)


def _score_tuned(job: Job, device: torch.device) -> None:
    """Score the weights that were best on the validation set, or the last ones where there was no such choice."""
    cfg, folder = job.run.cfg, job.run.folder
    path = next((folder / name for name in ("model_best.pth", "model_final.pth") if (folder / name).is_file()), None)
    path = path or resume.find_latest(folder)
    if path is None:
        logger.warning("%s: there are no trained weights to score", folder)
        return
    averaged = cfg.SOLVER.MODEL_EMA > 0 and cfg.SOLVER.USE_EMA_FOR_MONITOR
    detector = build_detector(cfg)
    report = load_weights(detector, path, ema=averaged)
    _score(job, "fine_tuned", "after", detector, report, device, folder / "eval" / path.stem)


def _score(job: Job, sets: str, side: str, detector: Any, weights: Report, device: torch.device, folder: Path) -> None:
    """Score weights on the sets that have no number yet, and on the retention set."""
    recipe = (job.tasks or job.retention)[0].recipe
    model = Model(detector.to(device).eval().requires_grad_(False), recipe, device, weights)
    for task in job.tasks:
        if task.name not in job.record[sets]:
            job.record[sets][task.name] = _main_number(model, replace(task, folder=folder / task.name))
            write_record(job.run.folder, job.record)
    for task in job.retention:
        kept = job.record["retention"] if job.record["retention"].get("set") == task.name else {}
        if side not in kept:
            ap = _main_number(model, replace(task, folder=folder / "retention" / task.name))
            job.record["retention"] = {"set": task.name, **kept, side: ap}
            write_record(job.run.folder, job.record)


def _main_number(model: Model, task: Task) -> float:
    """AP, or what stands for all of the numbers of another evaluator."""
    return next(iter(evaluate.evaluate(model, task).values()))
