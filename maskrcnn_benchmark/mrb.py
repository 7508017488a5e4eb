"""The console command ``mrb``.

mrb detect street.jpg holiday/ --labels "person, traffic light" --config-file configs/... --weight fiber.pth
"""

from __future__ import annotations

import argparse
import csv
import glob
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.engine.log import setup_logging
from maskrcnn_benchmark.errors import DataError, PromptError

logger = logging.getLogger(__name__)

DEFAULT_CONFIG = "configs/pretrain/mixed_nococo_flickr_objects365.yaml"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cli.run(_dispatch, argv)


def _dispatch(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="mrb", description="Text-prompted object detection.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    detect_parser = commands.add_parser(
        "detect", help="find things named in words in pictures", description=detect.__doc__
    )
    add_detect_options(detect_parser)
    args = parser.parse_args(argv)
    COMMANDS[args.command](args)


def add_detect_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURES", help="files, folders or quoted patterns like 'shots/*.jpg'"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--labels", help='names of things, separated by commas; "..." around one that has a comma')
    what.add_argument("--caption", help="a sentence; what it speaks of is looked for")
    parser.add_argument(
        "--phrases", help="parts of the caption to look for, separated by commas (default: the whole of it)"
    )
    parser.add_argument(
        "--config-file", default=DEFAULT_CONFIG, metavar="FILE", help="config of the model (default: FIBER-B)"
    )
    parser.add_argument("--weight", required=True, metavar="FILE", help="checkpoint: a path, or a name in MODEL/")
    parser.add_argument(
        "--output", default="OUTPUT/detect", metavar="DIR", help="where pictures and JSON go (default %(default)s)"
    )
    parser.add_argument(
        "--min-score",
        type=float,
        default=0.3,
        help="leave out what scores lower (default %(default)s); MODEL.ATSS.INFERENCE_TH leaves out more",
    )
    parser.add_argument("--top", type=_count, default=100, help="at most so many a picture (default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps ... (default %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], dest="opts", metavar="KEY VALUE", help="config keys and values")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def detect(args: argparse.Namespace) -> None:
    """Find things named in words; writes each picture with its boxes, and detections.json, to the output folder."""
    from maskrcnn_benchmark.api import Predictor, as_record, write_query
    from maskrcnn_benchmark.data.pictures import open_picture
    from maskrcnn_benchmark.engine.inference import build_recipe, load

    setup_logging()
    files = find_pictures(args.pictures)
    labels, caption, phrases = _query(args)
    for file in files:
        open_picture(file)  # a bad picture shows before anything is written
    cfg = load_cfg(args.config_file, opts=["MODEL.DEVICE", args.device, *args.opts])
    write_query(build_recipe(cfg), labels, caption, phrases)  # and bad words before the network is built
    predictor = Predictor(load(cfg, args.weight))
    folder = Path(args.output)
    records: list[dict[str, object]] = []
    drawn: list[Path] = []
    for file in tqdm(files, unit="picture", disable=len(files) == 1 or None):
        found = predictor.set_image(file).predict(labels, caption, phrases, args.min_score, args.top)
        drawn.append(_save(found.draw(), folder, file, drawn))
        records.append({**as_record(found), "drawn": drawn[-1].name})
        words = ", ".join(f"{found.name(i)} {found.scores[i]:.2f}" for i in range(min(5, len(found))))
        tqdm.write(f"{file}: {len(found)} found{': ' if words else ''}{words}{' ...' if len(found) > 5 else ''}")
    (folder / "detections.json").write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    print(f"{len(drawn)} pictures and detections.json in {folder}")


def _query(args: argparse.Namespace) -> tuple[list[str] | None, str | None, list[str] | None]:
    """Labels, caption and phrases as :meth:`~maskrcnn_benchmark.api.Predictor.predict` takes them."""
    if args.labels is not None:
        if args.phrases:
            raise PromptError("--phrases goes with --caption, not with --labels")
        return split_names(args.labels), None, None
    return None, args.caption, split_names(args.phrases) if args.phrases else None


def split_names(text: str) -> list[str]:
    """Names between commas, without the spaces around them; one in double quotes may have commas of its own."""
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), []) if name.strip()]


def find_pictures(patterns: Sequence[str]) -> list[Path]:
    """The pictures that files, folders (not searched deeper) and patterns name, each once, in the order given.

    Raises:
        DataError: a pattern names nothing.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        elif path.exists():
            matches = [path]
        else:
            matches = [
                Path(p) for p in sorted(glob.glob(pattern, recursive=True)) if Path(p).suffix.lower() in SUFFIXES
            ]
        if not matches:
            kind = "no pictures in folder" if path.is_dir() else "no such picture or folder:"
            raise DataError(f"{kind} {pattern!r}: give files, folders or quoted patterns")
        files.update(dict.fromkeys(matches))
    return list(files)


def _save(picture: Image.Image, folder: Path, source: Path, taken: Sequence[Path]) -> Path:
    """Write ``picture`` under the name of ``source``; pictures of one name from several folders get numbers."""
    cli.output_folder(str(folder), "--output")
    path, number = folder / f"{source.stem}.jpg", 1
    while path in taken:
        number += 1
        path = folder / f"{source.stem}_{number}.jpg"
    picture.save(path, quality=92)
    return path


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {"detect": detect}

if __name__ == "__main__":
    sys.exit(main())
