#!/usr/bin/env python3
"""Train a detector (FIBER, GLIP, Faster R-CNN, DECOLA); run again after an interruption, it goes on.

    python tools/train_net.py --config-file configs/pretrain/mixed_nococo_flickr_objects365.yaml \\
        --skip-test --override_output_dir OUTPUT/pretrain MODEL.WEIGHT MODEL/fiber_coarse_init.pt
    python tools/train_net.py --num-gpus 8 --config-file DECOLA_PHASE1_Lbase_CLIP_R5021k_4x.yaml

With --eval-only nothing is trained: MODEL.WEIGHT, or with --resume the last checkpoint of OUTPUT_DIR, is scored on
DATASETS.TEST; of configs for self-labelling, boxes are found for the pictures of DATASETS.TEST.

SIGTERM and SIGUSR1 let it finish its step, save, and exit with code 143; after SIGUSR1 a job of Slurm also asks to be
queued again (sbatch --signal=USR1@120). Other exit codes: 0 done, 2 a mistake in what it was given, 3 out of memory.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint.resume import find_latest
from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.data.samplers import refuse_unequal
from maskrcnn_benchmark.engine.distributed import launch
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.evaluation.report import print_results
from maskrcnn_benchmark.self_labelling import self_label
from maskrcnn_benchmark.training import train_net
from maskrcnn_benchmark.zero_shot import zero_shot


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_config_options(parser)
    parser.add_argument("--task_config", "--task-config", metavar="FILE", help="task file with data sets")
    parser.add_argument("--override_output_dir", metavar="DIR", help="folder in place of OUTPUT_DIR")
    parser.add_argument("--num-gpus", type=int, metavar="N", help="start N processes on this machine")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--skip-test", action="store_true", help="do not score the final weights on DATASETS.TEST")
    cli.add_board_options(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="says what happens anyway: go on from the last checkpoint of OUTPUT_DIR; with --eval-only, score it",
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="train nothing, score MODEL.WEIGHT on DATASETS.TEST, or label pictures"
    )
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    several = args.num_gpus is not None and args.num_gpus != 1
    if several and not args.dry_run:
        launch(args.num_gpus, [sys.argv[0], *cli.without_option(argv, "--num-gpus")])
    if several and args.config_file and not args.eval_only:
        refuse_unequal(load_cfg(args.config_file, args.task_config, args.opts).SOLVER.IMS_PER_BATCH, args.num_gpus)
    if args.eval_only:
        evaluate(args)
        return
    result = train_net(
        args.config_file,
        args.task_config,
        args.opts,
        args.override_output_dir,
        args.local_rank,
        dry_run=args.dry_run,
        test=not args.skip_test,
        boards=args.boards,
        strict=args.strict_config,
    )
    if result:
        best = f", best score {result['best']:.4f} after step {result['best_step']}" if result["best_step"] else ""
        test = f", AP {result['test']:.4f} at the end" if "test" in result else ""
        print(f"{result['steps']} steps{best}{test}")


def evaluate(args: argparse.Namespace) -> None:
    """Score weights, or label pictures with them, as the config says."""
    if not args.config_file:
        raise ConfigError("no config: give --config-file configs/....yaml")
    output = ["OUTPUT_DIR", args.override_output_dir] if args.override_output_dir else []
    opts = [*args.opts, *output]
    cfg = load_cfg(args.config_file, args.task_config, opts)
    weight = _weight(cfg, args.resume)
    if cfg.TEST.SELF_LABEL.ENABLED:
        for file in self_label(
            args.config_file, weight, (), opts, args.dry_run, args.strict_config, local_rank=args.local_rank
        ):
            print(file)
        return
    tasks = [args.task_config] if args.task_config else []
    print_results(zero_shot(args.config_file, weight, tasks, opts, args.strict_config, args.dry_run, args.local_rank))


def _weight(cfg: Cfg, resume: bool) -> str:
    """The last checkpoint of a training, if that is asked for and there is one, else ``MODEL.WEIGHT``."""
    folder = Path(cfg.OUTPUT_DIR)
    found = find_latest(folder) if resume and folder.is_dir() else None
    return str(found or cfg.MODEL.WEIGHT)


if __name__ == "__main__":
    sys.exit(cli.run(main))
