#!/usr/bin/env python3
"""Hand in MDETR as a job of Slurm; without Slurm it runs in the background of this machine.

    python tools/run_with_submitit.py --dataset_config configs/pretrain.json --ngpus 8 --nodes 4 --ema

Takes all options of tools/main.py too. A job that is stopped, or runs out of time, is queued again and goes on.
"""

import argparse
import sys
from collections.abc import Sequence

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.commands import submit
from maskrcnn_benchmark.commands.mdetr_flags import read


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    args = submit.parse(parser, argv)
    asked, job = read(args), submit.wanted(args)
    if args.dry_run:
        submit.check(asked, job)
    else:
        print(f"job {submit.submit(argv, asked, job)}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
