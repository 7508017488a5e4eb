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
from maskrcnn_benchmark.evaluation.report import table
from maskrcnn_benchmark.zero_shot import zero_shot


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_config_options(parser)
    parser.add_argument(
        "--weight", metavar="FILE", help="checkpoint: a path, or a name in MODEL/ (default MODEL.WEIGHT)"
    )
    parser.add_argument(
        "--task_config", "--task-config", metavar="A.yaml,B.yaml", help="task files, each evaluated by itself"
    )
    cli.add_launcher_options(parser)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    tasks = [task.strip() for task in (args.task_config or "").split(",") if task.strip()]
    results = zero_shot(args.config_file, args.weight, tasks, args.opts, args.strict_config, args.dry_run)
    if results:
        names = list(next(iter(results.values())))
        print(table(["data set", *names], [[name, *numbers.values()] for name, numbers in results.items()]))


if __name__ == "__main__":
    sys.exit(cli.run(main))
