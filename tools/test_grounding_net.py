#!/usr/bin/env python3
"""Evaluate a grounding detector (FIBER, GLIP) on data sets in COCO format.

    python tools/test_grounding_net.py --config-file configs/pretrain/mixed_nococo_flickr_objects365.yaml \\
        --weight MODEL/fiber.pth --task_config configs/odinw/Aquarium_Aquarium_Combined.v2-raw-1024.coco.yaml \\
        TEST.IMS_PER_BATCH 1 TEST.EVAL_TASK detection DATASETS.USE_CAPTION_PROMPT True
"""

import argparse
import sys
from collections.abc import Sequence

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.config.task_files import find_task_files
from maskrcnn_benchmark.engine.distributed import launch
from maskrcnn_benchmark.evaluation.report import print_results
from maskrcnn_benchmark.zero_shot import zero_shot

TASKS_HELP = "task files, each evaluated by itself; also folders (configs/odinw_13) and quoted globs"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_config_options(parser)
    parser.add_argument(
        "--weight", metavar="FILE", help="checkpoint: a path, or a name in MODEL/ (default MODEL.WEIGHT)"
    )
    parser.add_argument("--task_config", "--task-config", metavar="A.yaml,B.yaml", help=TASKS_HELP)
    parser.add_argument("--num-gpus", type=int, metavar="N", help="evaluate in N processes of this machine")
    cli.add_launcher_options(parser)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    if args.num_gpus is not None and args.num_gpus != 1:
        launch(args.num_gpus, [sys.argv[0], *cli.without_option(argv, "--num-gpus")])
    tasks = [str(file) for file in find_task_files(args.task_config or "")]
    results = zero_shot(
        args.config_file, args.weight, tasks, args.opts, args.strict_config, args.dry_run, args.local_rank
    )
    print_results(results)


if __name__ == "__main__":
    sys.exit(cli.run(main))
