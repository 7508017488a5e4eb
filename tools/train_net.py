#!/usr/bin/env python3
"""Train a grounding detector (FIBER, GLIP); run again after an interruption, it goes on.

    python tools/train_net.py --config-file configs/pretrain/mixed_nococo_flickr_objects365.yaml \\
        --skip-test --override_output_dir OUTPUT/pretrain MODEL.WEIGHT MODEL/fiber_coarse_init.pt

SIGTERM and SIGUSR1 let it finish its step, save, and exit with code 143; after SIGUSR1 a job of Slurm also asks to be
queued again (sbatch --signal=USR1@120). Other exit codes: 0 done, 2 a mistake in what it was given, 3 out of memory.
"""

import argparse
import sys
from collections.abc import Sequence

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.engine.distributed import launch
from maskrcnn_benchmark.training import train_net


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
        "--resume", action="store_true", help="says what happens anyway: go on from the last checkpoint of OUTPUT_DIR"
    )
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    if args.num_gpus is not None and args.num_gpus != 1:
        launch(args.num_gpus, [sys.argv[0], *cli.without_option(argv, "--num-gpus")])
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


if __name__ == "__main__":
    sys.exit(cli.run(main))
