"""The training run behind ``tools/train_net.py``: a config in, checkpoints and numbers out."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint.io import Report, find_weights
from maskrcnn_benchmark.checkpoint.mdetr import start_body, start_mdetr, start_text
from maskrcnn_benchmark.checkpoint.start import start_from
from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.config.node import DEFAULT
from maskrcnn_benchmark.data.catalog import UnknownKind, resolve
from maskrcnn_benchmark.data.class_counts import class_chances
from maskrcnn_benchmark.data.classes import closed_vocabulary
from maskrcnn_benchmark.data.modulated_set import ARCHITECTURES
from maskrcnn_benchmark.data.training import TrainingData, build_training_data
from maskrcnn_benchmark.demo.seen import Seen
from maskrcnn_benchmark.demo.watch import Watch
from maskrcnn_benchmark.engine import distributed, evaluate
from maskrcnn_benchmark.engine.amp import Precision, pick_precision
from maskrcnn_benchmark.engine.boards import UNNAMED, Run, need_boards
from maskrcnn_benchmark.engine.device import pick_device
from maskrcnn_benchmark.engine.distributed import World
from maskrcnn_benchmark.engine.freeze import count_table, freeze, with_tuning
from maskrcnn_benchmark.engine.inference import Model, build_recipe
from maskrcnn_benchmark.engine.lock import lock
from maskrcnn_benchmark.engine.log import say_what_others_cannot
from maskrcnn_benchmark.engine.rng import seed_all
from maskrcnn_benchmark.engine.self_label import build_teacher, check_teacher
from maskrcnn_benchmark.engine.tasks import Task, plan_tasks, problem_of
from maskrcnn_benchmark.engine.train import Training, train
from maskrcnn_benchmark.engine.vocabulary import build_vocabulary, refuse_other_embeddings
from maskrcnn_benchmark.errors import ConfigError, WeightsError
from maskrcnn_benchmark.evaluation.caption_table import caption_columns
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.heads.zero_shot import without_embeddings
from maskrcnn_benchmark.modeling.interface import Detector
from maskrcnn_benchmark.solver.build import Solver, build_solver
from maskrcnn_benchmark.solver.plan import Plan, make_plan

logger = logging.getLogger(__name__)


def train_net(
    config_file: str | None,
    task_file: str | None = None,
    opts: Sequence[str] = (),
    output: str | None = None,
    local_rank: int | None = None,
    dry_run: bool = False,
    test: bool = False,
    boards: Sequence[str] = (),
    strict: bool = False,
) -> dict[str, Any]:
    """Train the detector of a config on ``DATASETS.TRAIN``; goes on where an earlier run of the folder ended.

    Args:
        config_file: YAML config of the model.
        task_file: YAML file of a data set; its values reach the model too.
        opts: ``[KEY, VALUE, ...]``.
        output: Folder in place of ``OUTPUT_DIR``.
        local_rank: What an old launcher passes.
        dry_run: Check config, data, and that the weights are there, say what would be done, and stop; nothing is
            written.
        test: Score the final weights on ``DATASETS.TEST``.
        boards: Where scalars go too; see :data:`maskrcnn_benchmark.engine.boards.BOARDS`.
        strict: A key that was set and that nothing read is an error.

    Returns:
        Steps done, and the best score; empty after a dry run, and in all processes but the first.

    Raises:
        UserError: anything that the user can mend.
    """
    if not config_file:
        raise ConfigError("no config: give --config-file configs/....yaml")
    extra = ["OUTPUT_DIR", output] if output else []
    cfg = with_tuning(load_cfg(config_file, task_file, [*opts, *extra]))
    need_boards(_boards(cfg, boards))
    world = distributed.detect_world(os.environ, local_rank)
    device = distributed.local_device(world, pick_device(cfg.MODEL.DEVICE))
    folder = cli.output_folder(cfg.OUTPUT_DIR)
    with lock(folder) if world.main and not dry_run else nullcontext():
        cli.start([cfg], folder if world.main and not dry_run else None)
        if not world.main:
            say_what_others_cannot()
        distributed.init(world, device)
        try:
            run = build_training(cfg, folder, world, device, with_model=not dry_run, test=test)
            if run is None:
                check_start(cfg)
                return {}
            if world.main:
                (folder / "config.yml").write_text(cfg.dump_with_sources(), encoding="utf-8")
                scored = run.evaluate is not None or run.test is not None
                idle = ("TEST.USE_EMA",) if scored else cli.EVALUATION_KEYS  # SOLVER.USE_EMA_FOR_MONITOR decides
                cli.report_unread([cfg], strict, idle)
            run.boards = _boards(cfg, boards)
            found = train(run)
            return found if world.main else {}
        finally:
            distributed.shutdown()


def _boards(cfg: Cfg, asked: Sequence[str]) -> tuple[str, ...]:
    """Where scalars go too: what the command line asks for, and the config."""
    return tuple(dict.fromkeys((*asked, *(() if cfg.WANDB.DISABLE_WANDB else ("wandb",)))))


def _watch(cfg: Cfg, model: Detector, data: TrainingData) -> tuple[Run, Watch | None]:
    """What ``WANDB`` says of a run and of its pictures."""
    if cfg.WANDB.DISABLE_WANDB:
        return UNNAMED, None
    wandb, shown = cfg.WANDB, {key: value for key, value in cfg.keys_and_values() if cfg.source(key) != DEFAULT}
    called = Run(wandb.PROJECT or None, wandb.GROUP or None, wandb.RUN_NAME or None, shown)
    if not wandb.VIS_PERIOD:
        return called, None
    if not data.classes:
        raise ConfigError(
            f"WANDB.VIS_PERIOD {wandb.VIS_PERIOD} ({cfg.source('WANDB.VIS_PERIOD')}) is for detectors with a list of "
            "classes: set SOLVER.PICTURES_PERIOD instead"
        )
    return called, Watch(wandb.VIS_PERIOD, model, data.normalise, data.classes)


def build_training(
    cfg: Cfg, folder: Path, world: World, device: torch.device, with_model: bool = True, test: bool = False
) -> Training | None:
    """Data, network, solver of a config; None where ``with_model`` is off and all that can be checked without is right.

    Args:
        cfg: From :func:`maskrcnn_benchmark.engine.freeze.with_tuning`.
        folder: For all results.
        world: Which of how many processes this is.
        device: Of this process.
        with_model: Off: only check.
        test: Score the final weights on ``DATASETS.TEST``, besides what ``TEST.DURING_TRAINING`` asks for.
    """
    recipe = build_recipe(cfg)
    data = build_training_data(cfg, recipe.tokenizer)
    plan = _plan(cfg, data, world)
    during, test, tasks = _scoring(cfg, plan, folder, test)
    precision = pick_precision(cfg, device)
    chances = class_chances(cfg, data.sets)
    if not with_model:
        _check_weights(cfg)
        check_teacher(cfg)
        return None
    model, solver = _build_model(cfg, plan, precision, device, chances)
    teacher = build_teacher(cfg, device)
    seed_all(cfg.SOLVER.SEED, world.rank)  # the network was the same for all processes, what each of them draws is not
    averaged = cfg.SOLVER.USE_EMA_FOR_MONITOR
    vocabulary = build_vocabulary(cfg, model)
    run = distributed.broadcast(time.time_ns())  # weights of one training are never taken for those of another

    def score(step: int) -> float:
        stamp = f"step {step} of training {run}"
        now = Model(model, recipe, device, _in_training(folder, step), stamp, tuple(data.classes), vocabulary)
        return _score(solver, now, tasks, averaged, world)

    called, watch = _watch(cfg, model, data)
    return Training(
        model=model,
        solver=solver,
        data=data,
        plan=plan,
        precision=precision,
        folder=folder,
        device=device,
        world=world,
        evaluate=score if during else None,
        test=score if test else None,
        on_bad_loss=cfg.SOLVER.ON_BAD_LOSS,
        keep=cfg.SOLVER.CHECKPOINTS_KEPT,
        find_unused=cfg.SOLVER.FIND_UNUSED_PARAMETERS,
        classes=data.classes,
        look=Seen(folder / "seen", cfg.SOLVER.PICTURES_PERIOD, recipe.tokenizer, data.normalise, data.classes),
        log_period=cfg.SOLVER.LOG_PERIOD,
        called=called,
        watch=watch,
        label=teacher,
        labeller=teacher.digest if teacher else "",
    )


def _plan(cfg: Cfg, data: TrainingData, world: World) -> Plan:
    """How many steps there are, and what happens after which of them."""
    batches = len(data.loader(0, 0, world.size, world.rank))
    whole = data.plan.samples / data.plan.batch_size if closed_vocabulary(cfg) else None
    plan = make_plan(cfg, batches, whole)
    logger.info(
        "%d steps (%.1f epochs of %d batches), a checkpoint every %d", plan.steps, plan.epochs, batches, plan.period
    )
    return plan


def _scoring(cfg: Cfg, plan: Plan, folder: Path, test: bool) -> tuple[bool, bool, list[Task]]:
    """Whether weights are scored in training, whether at its end, and on what."""
    during = cfg.TEST.DURING_TRAINING or plan.test_period > 0
    if not (cfg.DATASETS.TEST or cfg.TEST.DURING_TRAINING):
        logger.info("DATASETS.TEST names no data set: nothing is scored in this run")
        during = test = False
    if (during or test) and not _can_score(cfg):
        during = test = False
    return during, test, plan_tasks(cfg, folder / "inference") if during or test else []


def _build_model(
    cfg: Cfg, plan: Plan, precision: Precision, device: torch.device, chances: Tensor | None = None
) -> tuple[Detector, Solver]:
    """The network with its first weights, the same in every process, and its solver.

    Args:
        cfg: See :func:`build_training`.
        plan: Of the training.
        precision: That it computes in.
        device: Of this process.
        chances: (C,) how often each class is drawn for the losses of a step; None: no classes are drawn.
    """
    model = starting_model(cfg)
    if chances is not None:
        model.weigh_classes(chances)
    freeze(cfg, model)
    logger.info("%s", count_table(model))
    model.to(device)
    return model, build_solver(cfg, model, plan, precision.scaler())


def starting_model(cfg: Cfg) -> Detector:
    """The network that a training begins with, on the CPU, frozen only where its own build freezes it."""
    seed_all(cfg.SOLVER.SEED)
    model = build_detector(cfg)
    starts = _starts(cfg)
    for _, name, start in starts:
        refuse_other_embeddings(cfg, model, start(model, name))
    if not starts:
        logger.warning("MODEL.WEIGHT is empty: the network begins with random weights")
    if nothing := without_embeddings(model, cfg.MODEL.DECOLA.PROB_OBJECT_PROMPT > 0):
        raise WeightsError(
            f"{nothing} has no embedding: neither MODEL.WEIGHT nor MODEL.ZEROSHOT_CLS.WEIGHT_PATH and "
            "OBJECT_WEIGHT_PATH brought it; `mrb bank` writes such files"
        )
    return model


def check_start(cfg: Cfg) -> None:
    """Whether the weights to begin with fit the network of a config; takes no memory for the network.

    Raises:
        UserError: the config describes no network, or names or shapes of the weights are others.
    """
    with torch.device("meta"):
        model = build_detector(cfg)
        for _, name, start in _starts(cfg):
            start(model, name)


def _starts(cfg: Cfg) -> list[tuple[str, str, Callable[[nn.Module, str], Report]]]:
    """Key, file and reader of the weights to begin with; where several have the same tensor, the last one counts.

    Raises:
        ConfigError: a key is for another network.
    """
    rows: list[tuple[str, str, Callable[[nn.Module, str], Report]]] = []
    architecture = cfg.MODEL.META_ARCHITECTURE
    if architecture in ARCHITECTURES:
        mdetr = cfg.MODEL.MDETR
        rows += [("MODEL.MDETR.BACKBONE_WEIGHT", mdetr.BACKBONE_WEIGHT, start_body)]
        rows += [("MODEL.MDETR.TEXT_WEIGHT", mdetr.TEXT_WEIGHT, start_text)]
    rows += [("MODEL.WEIGHT", cfg.MODEL.WEIGHT, start_from)]
    if architecture in ARCHITECTURES:
        key = "MODEL.MDETR.FROZEN_WEIGHTS"
        if mdetr.FROZEN_WEIGHTS and not ARCHITECTURES[architecture]:
            raise ConfigError(
                f"{key} {mdetr.FROZEN_WEIGHTS!r} ({cfg.source(key)}): a detector is frozen to train a mask head on it, "
                "which MODEL.META_ARCHITECTURE MDETR has not: set MDETR_SEGM"
            )
        rows += [(key, mdetr.FROZEN_WEIGHTS, start_mdetr)]
    return [row for row in rows if row[1]]


def _can_score(cfg: Cfg) -> bool:
    """Whether there is an evaluator for every test set of a config; a training does not fail for the lack of one."""
    problem = ""
    try:
        entries = [resolve(cfg, name, "test") for name in cfg.DATASETS.TEST]
        problem = next(filter(None, (problem_of(cfg, entry) for entry in entries)), "")
    except UnknownKind as error:
        problem = str(error)
    if problem:
        logger.warning("DATASETS.TEST: %s; nothing is scored in this run", problem)
    return not problem


def _check_weights(cfg: Cfg) -> None:
    """That the weights to begin with are there.

    Raises:
        WeightsError: they are not.
    """
    starts = _starts(cfg)
    for key, name, _ in starts:
        what = "begins" if key == "MODEL.WEIGHT" else f"{key}: begins"
        logger.info("%s with the weights of %s", what, find_weights(name))
    if not starts:
        logger.warning("MODEL.WEIGHT is empty: the network would begin with random weights")


def _score(solver: Solver, model: Model, tasks: Sequence[Task], averaged: bool, world: World) -> float:
    """The main number of the first test set, of the averaged weights where there are such; NaN but in one process.

    Of sets of captions, as MDETR has them: the mean over the sets of AP50 of all boxes.
    """
    with solver.ema.applied() if solver.ema is not None and averaged else nullcontext():
        model.detector.eval()
        results = evaluate.evaluate_all(model, tasks, world)
    if not world.main:
        return math.nan
    which = "averaged" if solver.ema is not None and averaged else "raw"
    boxes = {column: value for column, value in caption_columns(results).items() if column.endswith(" AP")}
    if len(boxes) == len(results):
        told = ", ".join(f"{column} {value:.4f}" for column, value in boxes.items())
        logger.info("%s with the %s weights", told, which)
        return sum(boxes.values()) / len(boxes)
    name, number = next(iter(results[tasks[0].name].items()))
    logger.info("%s %.4f on %s with the %s weights", name, number, tasks[0].name, which)
    return number


def _in_training(folder: Path, step: int) -> Report:
    """Stands for the checkpoint that these weights will be in."""
    return Report(folder / f"model_{step:07d}.pth", "", (), (), (), {})
