"""The evaluation run behind ``tools/test_grounding_net.py``: configs in, result folders out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint.io import find_weights
from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.engine import evaluate
from maskrcnn_benchmark.engine.inference import check_weights, load
from maskrcnn_benchmark.errors import ConfigError

logger = logging.getLogger(__name__)


def zero_shot(
    config_file: str | None,
    weight: str | None,
    task_files: Sequence[str] = (),
    opts: Sequence[str] = (),
    strict: bool = False,
    dry_run: bool = False,
) -> dict[str, dict[str, float]]:
    """Evaluate one checkpoint on the data sets of each task file; without task files on those of the config.

    The network comes from the config file and ``opts`` alone; a task file decides data, prompts and evaluator, and
    ``opts`` win over both. Whatever can be wrong with config, data or prompts is found before the network is built.

    Args:
        config_file: YAML config of the model.
        weight: Checkpoint; default ``MODEL.WEIGHT``.
        task_files: YAML files, each evaluated by itself.
        opts: ``[KEY, VALUE, KEY, VALUE, ...]``.
        strict: A key that was set and that nothing read is an error.
        dry_run: Check everything, names and shapes in the checkpoint included, say what would be done, and stop.

    Returns:
        ``{data set: numbers}``, the name of the task file before a name that several of them use; empty after a dry
        run.

    Raises:
        UserError: anything that the user can mend.
    """
    cli.single_process()
    if not config_file:
        raise ConfigError("no config: give --config-file configs/....yaml")
    cfg = load_cfg(config_file, opts=opts)
    task_cfgs = _task_cfgs(config_file, task_files, opts) or {"": cfg}
    weight = weight or cfg.MODEL.WEIGHT
    if not weight:
        raise ConfigError("no weights to evaluate: give --weight FILE, or set MODEL.WEIGHT")
    path = find_weights(weight)
    folder = cli.output_folder(cfg.OUTPUT_DIR)
    results = folder / "eval" / path.stem / "inference"
    cfgs = [cfg, *task_cfgs.values()]
    cli.start(cfgs, folder)
    tasks = evaluate.plan_all(task_cfgs, results)
    (folder / "config.yml").write_text(cfg.dump_with_sources(), encoding="utf-8")
    if dry_run:
        for task in tasks:
            logger.info(evaluate.describe(task))
        logger.info(check_weights(cfg, path).summary())
    else:
        model = load(cfg, path)
        logger.info(model.weights.summary())
    cli.report_unread(cfgs, strict)
    return {} if dry_run else evaluate.evaluate_all(model, tasks)


def _task_cfgs(config_file: str, task_files: Sequence[str], opts: Sequence[str]) -> dict[str, Cfg]:
    """Name of each task file, without folder and ending -> its config."""
    cfgs: dict[str, Cfg] = {}
    for file in task_files:
        name = Path(file).stem
        if name in cfgs:
            raise ConfigError(f"--task_config names two files called {name!r}: evaluate them one at a time")
        cfgs[name] = load_cfg(config_file, file, opts)
    return cfgs
