#!/usr/bin/env python3
"""Pseudo boxes for ImageNet-22k from the class activation maps of a classifier (DAP, step 2).

    mpirun -n 4 python tools/compute_box_imagenet22k.py
    mpirun -n 4 python tools/compute_box_imagenet22k.py 36

Reads TaxImageNet22kSplit64/trainval_<i>_64.tsv below DATASET (or $DATASET), and writes beside it
trainval_<i>_64.cam1xyxy.pth and, after non-maximum suppression, trainval_<i>_64.cam1nms8xyxy.pth. Without a number,
process r of R works on the splits r, r + R, ... and leaves out those that are done; with one, all processes share that
split. For a ResNet-101: --model resnet101 --weight FILE --name cam2. Run again after an interruption, it goes on.
"""

import argparse
import sys
from collections.abc import Sequence

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.commands.parsers import add_classifier_options
from maskrcnn_benchmark.commands.pseudo_boxes import chosen
from maskrcnn_benchmark.pseudo_boxes import imagenet22k


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", nargs="?", type=int, help="number of one split, 0 to 63")
    parser.add_argument("--folder", default="", metavar="DIR", help="in place of TaxImageNet22kSplit64")
    parser.add_argument("--name", default="cam1", help="of the boxes, in the names of the files (default %(default)s)")
    numbers = "label files hold class numbers from N, not names"
    parser.add_argument("--class-base", type=int, choices=(0, 1), metavar="N", help=numbers)
    add_classifier_options(parser, "resnet50", "model_r50_imagenet22k.old_format.pt")
    cli.add_launcher_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    imagenet22k(args.split, args.name, chosen(args), args.local_rank, args.folder, args.class_base)


if __name__ == "__main__":
    sys.exit(cli.run(main))
