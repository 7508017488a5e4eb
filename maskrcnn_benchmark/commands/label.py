"""``mrb label`` and ``mrb bank``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.api import check_query, load_model
from maskrcnn_benchmark.checkpoint.clip import load_clip_text
from maskrcnn_benchmark.commands.options import needed_model
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.classes import closed_vocabulary
from maskrcnn_benchmark.engine.log import setup_logging
from maskrcnn_benchmark.errors import ConfigError, PromptError
from maskrcnn_benchmark.labelling import Query, label_pictures
from maskrcnn_benchmark.text.class_bank import check_names, make_bank, read_names, write_bank
from maskrcnn_benchmark.text.clip_tokenizer import load_clip_tokenizer
from maskrcnn_benchmark.text.typed import split_names


def label(args: argparse.Namespace) -> None:
    """Find things named in words, and write them as COCO JSON."""
    from maskrcnn_benchmark.mrb import find_pictures

    setup_logging()
    files, names = find_pictures(args.pictures), _names(args)
    out = Path(args.output)
    if out.suffix != ".json":
        raise ConfigError(f"--output {args.output!r}: give a file that ends in .json")
    config_file, weight = needed_model(args)
    opts = ["MODEL.DEVICE", args.device, *args.opts]
    cfg = load_cfg(config_file, opts=opts)
    if names is None and not closed_vocabulary(cfg):
        raise PromptError("nothing is asked: give --labels or --labels-file")
    check_query(cfg, weight, names, None, None)  # before the network is built
    cli.output_folder(str(out.parent), "--output")
    model = load_model(config_file, weight, args.device, args.opts)
    query = Query(None if names is None else tuple(names), args.min_score, args.top)
    found = label_pictures(model, files, query, out)
    lost = len(files) - len(found["images"])
    print(
        f"{len(found['annotations'])} boxes in {len(found['images'])} pictures"
        f"{f', {lost} cannot be read' if lost else ''}: {out}\n"
        f"to check them: {shlex.join(['mrb', 'data', 'check', str(out), '--images', found['info']['pictures']])}"
    )


def _names(args: argparse.Namespace) -> list[str] | None:
    if args.labels_file:
        return list(read_names(args.labels_file))
    return None if args.labels is None else list(check_names(split_names(args.labels), "--labels"))


def bank(args: argparse.Namespace) -> None:
    """Embed class names, and write them as a class bank."""
    setup_logging()
    names = read_names(args.names)
    encoder = load_clip_text(args.weight, args.activation)
    made = make_bank(names, encoder, load_clip_tokenizer(args.tokenizer), args.template, args.names)
    path = write_bank(made, args.out)
    print(f"{len(made)} names, {made.table.shape[1]} numbers each, encoder {made.encoder[:12]}: {path}")
