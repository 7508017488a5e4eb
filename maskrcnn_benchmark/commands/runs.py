"""``mrb eval`` and ``mrb train``: what the tools of the same purpose do, with other options."""

from __future__ import annotations

import argparse

from maskrcnn_benchmark.commands.options import config_and_weight, several_processes
from maskrcnn_benchmark.config.task_files import find_task_files
from maskrcnn_benchmark.evaluation.report import table
from maskrcnn_benchmark.training import train_net
from maskrcnn_benchmark.zero_shot import zero_shot


def evaluate(args: argparse.Namespace) -> None:
    """Score a checkpoint on the data sets of task files, or on those of the config."""
    config, weight = config_and_weight(args)
    several_processes(args)
    tasks = [str(file) for file in find_task_files(args.tasks)]
    opts = [*args.opts, *(["OUTPUT_DIR", args.output] if args.output else [])]
    results = zero_shot(config, weight, tasks, opts, args.strict_config, args.dry_run)
    if results:
        names = list(next(iter(results.values())))
        print(table(["data set", *names], [[name, *numbers.values()] for name, numbers in results.items()]))


def train(args: argparse.Namespace) -> None:
    """Train on DATASETS.TRAIN; run again after an interruption, it goes on."""
    config, weight = config_and_weight(args)
    several_processes(args)
    opts = [*args.opts, *(["MODEL.WEIGHT", weight] if weight else [])]
    result = train_net(
        config,
        args.task,
        opts,
        args.output,
        dry_run=args.dry_run,
        test=not args.no_test,
        boards=args.boards,
        strict=args.strict_config,
    )
    if result:
        best = f", best score {result['best']:.4f} after step {result['best_step']}" if result["best_step"] else ""
        test = f", AP {result['test']:.4f} at the end" if "test" in result else ""
        print(f"{result['steps']} steps{best}{test}")
