#!/usr/bin/env python3
"""Train or evaluate MDETR with the options of its own main.py; they are translated to config keys, which are told.

    python tools/main.py --dataset_config configs/pretrain.json --ema
    python tools/main.py --dataset_config configs/phrasecut.json --mask_model smallconv --ema --eval --test \\
        --no_contrastive_align_loss --resume phrasecut_resnet101_checkpoint.pth
    python -m torch.distributed.launch --nproc_per_node=8 --use_env tools/main.py --dataset_config configs/pretrain.json

Values of the JSON file count where the command line says nothing. Run again after an interruption, a training goes on.
"""

import argparse
import sys
from collections.abc import Sequence

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.commands import mdetr
from maskrcnn_benchmark.commands.mdetr_flags import add_options, read
from maskrcnn_benchmark.evaluation.report import table


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_options(parser)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str]) -> None:
    asked = read(parse(argv))
    found = mdetr.run(asked)
    if "steps" in found:
        best = f", best score {found['best']:.4f} after step {found['best_step']}" if found["best_step"] else ""
        print(f"{found['steps']} steps{best}")
        return
    for name, numbers in found.items():
        print(table(["data set", *numbers], [[name, *numbers.values()]]))


if __name__ == "__main__":
    sys.exit(cli.run(main))
