#!/usr/bin/env python3
"""Join the annotations that predictions at several input sizes have given (DECOLA).

    python tools/make_multi_resolution_pseudo_annotations.py --sizes 240 280 320 360 400 --annotation_name NAME

Reads OUT_ROOT/NAME_minsize_240.json and so on, writes OUT_ROOT/NAME.json.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.data.pseudo_annotations import FOLDER, join, read_annotations, sized, write_json
from maskrcnn_benchmark.errors import DataError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", required=True, type=int, nargs="+", metavar="N", help="short sides of the input")
    parser.add_argument("--annotation_name", required=True, metavar="NAME", help="without _minsize_N and .json")
    parser.add_argument("--out_root", default=FOLDER, metavar="DIR", help="default %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    out = Path(args.out_root, f"{args.annotation_name}.json")
    files = [sized(out, size) for size in args.sizes]
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(
            f"{missing[0]}: no such annotation file: convert_predictions_to_pseudo_annotations.py --annotation_name "
            f"{missing[0].stem} writes it; --out_root names another folder"
        )
    joined = join([read_annotations(file) for file in files], files)
    write_json(out, joined)
    print(f"{len(joined['annotations'])} boxes of {len(files)} sizes: {out}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
