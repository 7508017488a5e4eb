#!/usr/bin/env python3
"""Pseudo boxes for ImageNet-1k from the class activation maps of a classifier (DAP, step 2).

    python tools/compute_box_imagenet1k.py
    mpirun -n 4 python tools/compute_box_imagenet1k.py --pictures 24

Reads imagenet2012Full/train.binary and train.binary.label below DATASET (or $DATASET), and writes beside them
train.cam3xyxy.npz and, after non-maximum suppression, train.cam3nms{9,8,7,6,5}xyxy.npz. The weights are torchvision's
resnet101-63fe2227.pth in MODEL/. Several processes share the pictures. Run again after an interruption, it goes on.
"""

import argparse
import sys
from collections.abc import Sequence

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.commands.parsers import add_classifier_options
from maskrcnn_benchmark.commands.pseudo_boxes import chosen
from maskrcnn_benchmark.pseudo_boxes import imagenet1k


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="", metavar="DIR", help="in place of imagenet2012Full")
    parser.add_argument("--split", default="train", help="default %(default)s")
    parser.add_argument("--name", default="cam3", help="of the boxes, in the names of the files (default %(default)s)")
    add_classifier_options(parser, "resnet101")
    cli.add_launcher_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    imagenet1k(args.split, args.name, chosen(args), args.local_rank, args.folder)


if __name__ == "__main__":
    sys.exit(cli.run(main))
