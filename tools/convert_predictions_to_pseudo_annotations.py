#!/usr/bin/env python3
"""Make annotations to train on from predictions for pictures with names of classes only (DECOLA).

    python tools/convert_predictions_to_pseudo_annotations.py --annotation_name NAME_minsize_240 \\
        --prediction_path output/pseudo_labels/inference_imagenet_lvis_v1/lvis_instances_results.json

Writes OUT_ROOT/NAME_minsize_240.json. Where lvis_instances_results_minsize_240.json, which self-labelling writes for
each size, stands beside the named file, it is taken in its place, so that one path serves every size of a loop.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.data.catalog import find_path
from maskrcnn_benchmark.data.pseudo_annotations import (
    FOLDER,
    IMAGE_INFO,
    convert,
    predictions_for,
    read_annotations,
    read_predictions,
    write_json,
)
from maskrcnn_benchmark.engine.log import setup_logging
from maskrcnn_benchmark.errors import DataError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotation_name", required=True, metavar="NAME", help="of the file to write, without .json")
    parser.add_argument("--prediction_path", required=True, metavar="FILE", help="predictions, COCO results")
    parser.add_argument(
        "--annotation_path", default=IMAGE_INFO, metavar="FILE", help="pictures and categories (default %(default)s)"
    )
    parser.add_argument("--out_root", default=FOLDER, metavar="DIR", help="default %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    setup_logging()
    info = read_annotations(find_path(args.annotation_path))
    source = predictions_for(Path(args.prediction_path), args.annotation_name)
    if not source.is_file():
        raise DataError(
            f"{source}: no such predictions: `mrb self-label` writes them, to OUTPUT_DIR/inference_<data set>"
        )
    found = convert(info, read_predictions(source), source)
    out = Path(args.out_root, f"{args.annotation_name}.json")
    write_json(out, found)
    print(f"{len(found['annotations'])} boxes for {len(found['images'])} pictures: {out}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
