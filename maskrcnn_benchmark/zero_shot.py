"""The evaluation run behind ``tools/test_grounding_net.py``: configs in, result folders out."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint.io import find_weights
from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.engine.device import pick_device
from maskrcnn_benchmark.engine.distributed import detect_world, local_device
from maskrcnn_benchmark.engine.evaluate import evaluate_all
from maskrcnn_benchmark.engine.inference import check_weights, load
from maskrcnn_benchmark.engine.log import say_what_others_cannot
from maskrcnn_benchmark.engine.tasks import Task, describe, plan_all_tasks
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.evaluation.caption_table import caption_table
from maskrcnn_benchmark.evaluation.suite import suite

logger = logging.getLogger(__name__)


def zero_shot(
    config_file: str | None,
    weight: str | None,
    task_files: Sequence[str] = (),
    opts: Sequence[str] = (),
    strict: bool = False,
    dry_run: bool = False,
    local_rank: int | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluate one checkpoint on the data sets of each task file; without task files on those of the config.

    The network comes from the config file and ``opts`` alone; a task file decides data, prompts and evaluator, and
    ``opts`` win over both. Whatever can be wrong with config, data or prompts is found before the network is built.
    Several processes share the work; they meet in ``OUTPUT_DIR``, which has to be one folder for all of them.

    Args:
        config_file: YAML config of the model.
        weight: Checkpoint; default ``MODEL.WEIGHT``.
        task_files: YAML files, each evaluated by itself.
        opts: ``[KEY, VALUE, KEY, VALUE, ...]``.
        strict: A key that was set and that nothing read is an error.
        dry_run: Check everything, names and shapes in the checkpoint included, say what would be done, and stop.
        local_rank: What an old launcher passes.

    Returns:
        ``{data set: numbers}``, the name of the task file before a name that several of them use; empty after a dry
        run and in all processes but the first.

    Raises:
        UserError: anything that the user can mend.
    """
    if not config_file:
        raise ConfigError("no config: give --config-file configs/....yaml")
    cfg = load_cfg(config_file, opts=opts)
    task_cfgs = _task_cfgs(config_file, task_files, opts) or {"": cfg}
    path = _weights(weight or cfg.MODEL.WEIGHT)
    world = detect_world(os.environ, local_rank)
    device = local_device(world, pick_device(cfg.MODEL.DEVICE))
    folder = cli.output_folder(cfg.OUTPUT_DIR)
    cfgs = [cfg, *task_cfgs.values()]
    cli.start(cfgs, folder if world.main else None)
    if not world.main:
        say_what_others_cannot()
    inference = folder / "eval" / path.stem / "inference"
    tasks = plan_all_tasks(task_cfgs, inference)
    if world.main:
        (folder / "config.yml").write_text(cfg.dump_with_sources(), encoding="utf-8")
    if dry_run:
        for task in tasks:
            logger.info(describe(task))
        logger.info(check_weights(cfg, path).summary())
        cli.report_unread(cfgs, strict)
        return {}
    model = load(cfg, path, device)
    logger.info(model.weights.summary())
    cli.report_unread(cfgs, strict)
    results = evaluate_all(model, tasks, world)
    if world.main:
        _sum_up(tasks, results, inference, path.stem)
    return results if world.main else {}


def _weights(name: str) -> Path:
    if not name:
        raise ConfigError("no weights to evaluate: give --weight FILE, or set MODEL.WEIGHT")
    return find_weights(name)


def _sum_up(tasks: Sequence[Task], results: Mapping[str, Mapping[str, float]], folder: Path, model: str) -> None:
    """Mean and median over several tasks, where all of them are scored by AP; those of captions in one row."""
    if text := caption_table(model, results):
        logger.info("captions\n%s", text)
    if len(tasks) > 1 and all({"AP", "AP50"} <= set(numbers) for numbers in results.values()):
        together = suite(results, {task.name: task.entry.name for task in tasks})
        together.write(folder)
        logger.info("%s\nmean and median: %s", together.text(), folder / "summary.json")


def _task_cfgs(config_file: str, task_files: Sequence[str], opts: Sequence[str]) -> dict[str, Cfg]:
    """Name of each task file, without folder and ending -> its config."""
    cfgs: dict[str, Cfg] = {}
    for file in task_files:
        name = Path(file).stem
        if name in cfgs:
            raise ConfigError(f"--task_config names two files called {name!r}: evaluate them one at a time")
        cfgs[name] = load_cfg(config_file, file, opts)
    return cfgs
