"""``python -m maskrcnn_benchmark.demo``: evaluate a narrow FIBER with random weights on drawn scenes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.demo.show import show


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m maskrcnn_benchmark.demo", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("OUTPUT/demo"), help="folder for everything (default %(default)s)"
    )
    parser.add_argument("--pictures", type=int, default=6, help="how many scenes to draw (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and of the weights (default %(default)s)")
    args = parser.parse_args(argv)
    print(show(args.output, args.pictures, args.seed))


if __name__ == "__main__":
    sys.exit(cli.run(main))
