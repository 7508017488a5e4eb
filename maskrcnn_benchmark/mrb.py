"""The console command ``mrb``.

mrb doctor
mrb data check my_data/
mrb finetune --data my_data/ --weight fiber.pth
mrb detect street.jpg holiday/ --labels "person, traffic light" --config-file configs/... --weight fiber.pth
"""

from __future__ import annotations

import argparse
import glob
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.commands import parsers
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.engine.log import setup_logging
from maskrcnn_benchmark.errors import BackendError, ConfigError, DataError, PromptError

logger = logging.getLogger(__name__)

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
    serve_parser = commands.add_parser("serve", help="a page that does the same", description=serve.__doc__)
    add_serve_options(serve_parser)
    commands.add_parser("doctor", help="versions, devices and the operators in use", description=doctor.__doc__)
    parsers.add(commands)
    args = parser.parse_args(argv)
    args.argv = argv
    (COMMANDS.get(args.command) or args.run)(args)


def add_detect_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURES", help="files, folders or quoted patterns like 'shots/*.jpg'"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--labels",
        help='names of things, separated by commas; "..." around one that has a comma (default: all classes of a '
        "detector that reads no text)",
    )
    what.add_argument("--caption", help="a sentence; what it speaks of is looked for")
    parser.add_argument(
        "--phrases", help="parts of the caption to look for, separated by commas (default: the whole of it)"
    )
    add_model_options(parser)
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


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parsers.add_model_options(parser, "checkpoint: a path, or a name in MODEL/")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps ... (default %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], dest="opts", metavar="KEY VALUE", help="config keys and values")


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets other machines in (default %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default %(default)s)")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which browsers may call this server",
    )
    parser.add_argument(
        "--max-upload", type=_count, default=20, metavar="MIB", help="of a picture (default %(default)s)"
    )
    parser.add_argument(
        "--memory", type=_count, default=1024, metavar="MIB", help="for encoded pictures (default %(default)s)"
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def detect(args: argparse.Namespace) -> None:
    """Find things named in words, or all that the detector knows.

    Writes each picture with its boxes, and detections.json, to the output folder. Pictures that cannot be read are
    told, and listed there with the reason.
    """
    from maskrcnn_benchmark.api import Predictor, as_record, check_query
    from maskrcnn_benchmark.commands.options import needed_model
    from maskrcnn_benchmark.data.classes import closed_vocabulary
    from maskrcnn_benchmark.engine.inference import load

    setup_logging()
    files, unreadable = _readable(find_pictures(args.pictures))  # bad pictures show before anything is written
    labels, caption, phrases = _query(args)
    config_file, weight = needed_model(args)
    cfg = load_cfg(config_file, opts=["MODEL.DEVICE", args.device, *args.opts])
    if labels is None and caption is None and not closed_vocabulary(cfg):
        raise PromptError("nothing is asked: give --labels or --caption")
    check_query(cfg, weight, labels, caption, phrases)  # and bad words before the network is built
    predictor = Predictor(load(cfg, weight))
    folder = Path(args.output)
    records: list[dict[str, object]] = []
    drawn: list[Path] = []
    for file in tqdm(files, unit="picture", disable=len(files) == 1 or None):
        found = predictor.set_image(file).predict(labels, caption, phrases, args.min_score, args.top)
        drawn.append(_save(found.draw(), folder, file, drawn))
        records.append({**as_record(found), "drawn": drawn[-1].name})
        words = ", ".join(f"{found.name(i)} {found.scores[i]:.2f}" for i in range(min(5, len(found))))
        tqdm.write(f"{file}: {len(found)} found{': ' if words else ''}{words}{' ...' if len(found) > 5 else ''}")
    records += [{"file": str(file), "error": reason} for file, reason in unreadable.items()]
    (folder / "detections.json").write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    lost = f", {len(unreadable)} cannot be read" if unreadable else ""
    print(f"{len(drawn)} pictures and detections.json in {folder}{lost}")


def doctor(args: argparse.Namespace) -> None:
    """Say what is installed and which implementation of each operator runs; an error when one gives wrong results."""
    from maskrcnn_benchmark.doctor import report

    text, sound = report()
    print(text)
    if not sound:
        raise BackendError("an operator fails its self-test; reinstall what it belongs to")


def serve(args: argparse.Namespace) -> None:
    """A page on this machine: drop a picture, type words, see boxes."""
    try:
        from maskrcnn_benchmark.demo import server
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"mrb serve needs {error.name}, which is not installed: pip install 'maskrcnn_benchmark[demo]'"
        ) from None
    from maskrcnn_benchmark.api import load_model
    from maskrcnn_benchmark.commands.options import needed_model
    from maskrcnn_benchmark.demo.desk import MIB, Limits

    setup_logging()
    source = server.Source(*needed_model(args), args.device, tuple(args.opts))
    with server.open_listener(
        args.host, args.port
    ) as listener:  # a port that is taken shows before the network is built
        model = load_model(source.config, source.weights, source.device, source.opts)
        if model.recipe.tokenizer is None:
            raise ConfigError("mrb serve is for detectors that read words, and this one knows a list: use mrb detect")
        limits = Limits(upload=args.max_upload * MIB, memory=args.memory * MIB)
        server.serve(server.build_app(model, source, limits, args.allow_host), listener)


def _query(args: argparse.Namespace) -> tuple[list[str] | None, str | None, list[str] | None]:
    """Labels, caption and phrases as :meth:`~maskrcnn_benchmark.api.Predictor.predict` takes them."""
    from maskrcnn_benchmark.text.typed import split_names

    if args.labels is not None:
        if args.phrases:
            raise PromptError("--phrases goes with --caption, not with --labels")
        return split_names(args.labels), None, None
    return None, args.caption, split_names(args.phrases) if args.phrases else None


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


def _readable(files: Sequence[Path]) -> tuple[list[Path], dict[Path, str]]:
    """Those of the pictures that can be read, and why the others cannot, which is logged.

    Raises:
        DataError: none of them can.
    """
    from maskrcnn_benchmark.data.pictures import open_picture

    unreadable = {}
    for file in files:
        try:
            open_picture(file)
        except DataError as error:
            if len(files) == 1:
                raise
            unreadable[file] = str(error)
            logger.warning("%s", error)
    if len(unreadable) == len(files):
        raise DataError(f"none of {len(files)} pictures can be read, such as {files[0]}: {unreadable[files[0]]}")
    return [file for file in files if file not in unreadable], unreadable


def _save(picture: Image.Image, folder: Path, source: Path, taken: Sequence[Path]) -> Path:
    """Write ``picture`` under the name of ``source``; pictures of one name from several folders get numbers."""
    cli.output_folder(str(folder), "--output")
    path, number = folder / f"{source.stem}.jpg", 1
    while path in taken:
        number += 1
        path = folder / f"{source.stem}_{number}.jpg"
    picture.save(path, quality=92)
    return path


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {"detect": detect, "serve": serve, "doctor": doctor}

if __name__ == "__main__":
    sys.exit(main())
