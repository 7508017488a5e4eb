"""``python -m maskrcnn_benchmark.demo``: a report of what a tiny FIBER finds by words and learns from examples."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.demo.measure import CONFIG, WEIGHT, Subject
from maskrcnn_benchmark.demo.show import show
from maskrcnn_benchmark.errors import ConfigError


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m maskrcnn_benchmark.demo", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("OUTPUT/demo"), help="folder for everything (default %(default)s)"
    )
    parser.add_argument("--pictures", type=int, default=60, help="drawn for each test set (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1001, help="of the pictures (default %(default)s)")
    parser.add_argument("--config-file", default=CONFIG, metavar="FILE", help="of the detector (default %(default)s)")
    parser.add_argument("--weight", default=WEIGHT, metavar="FILE", help="its weights (default %(default)s)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help=cli.OPTS_HELP)
    args = parser.parse_intermixed_args(argv)
    if args.pictures < 1:
        raise ConfigError(f"--pictures {args.pictures}: draw at least one")
    print(show(Subject(args.config_file, args.weight, tuple(args.opts)), args.output, args.pictures, args.seed))


if __name__ == "__main__":
    sys.exit(cli.run(main))
