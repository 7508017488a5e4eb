#!/usr/bin/env python3
"""Of boxes of a picture that overlap, whatever their category, keep the best one (DECOLA).

    python tools/deduplicate_pseudo_annotations.py --annotation_name NAME --iou_thres 0.9

Rewrites OUT_ROOT/NAME.json in place. As released, boxes are compared with x, y, w, h taken for two corners, so that
some duplicates stay; --boxes xywh compares what the numbers mean.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.data.pseudo_annotations import COMPARED, FOLDER, deduplicate, read_annotations, write_json
from maskrcnn_benchmark.errors import DataError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotation_name", required=True, metavar="NAME", help="of the file, without .json")
    parser.add_argument(
        *("--iou_thres", "--ioiu_thres"),
        dest="iou_thres",
        type=float,
        default=0.9,
        metavar="IOU",
        help="a box goes when it overlaps a better one by more (default %(default)s); the second spelling is that of "
        "DECOLA's documents",
    )
    parser.add_argument("--out_root", default=FOLDER, metavar="DIR", help="default %(default)s")
    parser.add_argument("--boxes", choices=COMPARED, default="released", help="how they compare (default %(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    path = Path(args.out_root, f"{args.annotation_name}.json")
    if not path.is_file():
        raise DataError(
            f"{path}: no such annotation file: make_multi_resolution_pseudo_annotations.py --annotation_name "
            f"{args.annotation_name} writes it; --out_root names another folder"
        )
    data = read_annotations(path)
    kept = deduplicate(data, args.iou_thres, args.boxes)
    write_json(path, kept)
    print(f"{len(kept['annotations'])} of {len(data['annotations'])} boxes stay: {path}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
