#!/usr/bin/env python3
"""Fine-tune a grounding detector (FIBER, GLIP) on one or more tasks, with few or all pictures, and tabulate the scores.

    python tools/finetune.py --config-file configs/pretrain/mixed_nococo_flickr_objects365.yaml \\
        --ft-tasks "configs/odinw_13/*.yaml" --custom_shot_and_epoch_and_general_copy 5_200_2 \\
        --shuffle_seeds 3,30,300 MODEL.WEIGHT MODEL/fiber.pth TEST.DURING_TRAINING True
"""

import argparse
import sys
from collections.abc import Sequence

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.engine.distributed import launch
from maskrcnn_benchmark.engine.finetune_report import summary_table
from maskrcnn_benchmark.finetuning import Stages, finetune

SWITCHES = {
    "--skip-train": "score the weights that an earlier call trained",
    "--skip-test": "score nothing after training",
    "--evaluate_only_best_on_test": "score the best weights on the test split, also with --skip-test",
    "--keep_testing": "the same",
    "--push_both_val_and_test": "score the best weights on DATASETS.TEST too, beside the test split",
    "--skip_optimizer_resume": "an interrupted training goes on with a fresh optimizer",
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_config_options(parser)
    parser.add_argument("--ft-tasks", default="", metavar="GLOB[,GLOB]", help="task files; default: the config file")
    shots = "such as 3_200_4; 0 shots: all pictures, 10000 shots: only zero-shot scores"
    parser.add_argument(
        "--custom_shot_and_epoch_and_general_copy", dest="shots", default="", metavar="SHOTS_EPOCHS_COPIES", help=shots
    )
    parser.add_argument("--shuffle_seeds", default="", metavar="N[,N]", help="a training for each, on other shots")
    parser.add_argument("--num-gpus", type=int, metavar="N", help="start N processes on this machine")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    cli.add_board_options(parser)
    for flag, text in SWITCHES.items():
        parser.add_argument(flag, action="store_true", help=text)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    if args.num_gpus is not None and args.num_gpus != 1:
        launch(args.num_gpus, [sys.argv[0], *cli.without_option(argv, "--num-gpus")])
    scoring = not args.skip_test or args.evaluate_only_best_on_test or args.keep_testing
    val, fresh = args.push_both_val_and_test, args.skip_optimizer_resume
    stages = Stages(not args.skip_train, scoring, val, not fresh, args.boards, args.strict_config)
    words = (args.config_file, args.ft_tasks, args.opts, args.shots, args.shuffle_seeds)
    summary = finetune(*words, stages=stages, local_rank=args.local_rank, dry_run=args.dry_run)
    if summary:
        print(summary_table(summary))


if __name__ == "__main__":
    sys.exit(cli.run(main))
