"""``mrb pseudo-boxes``, and the options that it shares with ``tools/compute_box_imagenet1k.py`` and ``...22k.py``."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.pseudo_boxes import Options, folder


def pseudo_boxes(args: argparse.Namespace) -> None:
    """Boxes for pictures of which only the class is known."""
    out = cli.output_folder(args.out, "--out")
    images, classes = (None if name is None else Path(name) for name in (args.images, args.classes))
    folder(Path(args.source), out, chosen(args), images, classes)
    print(f"boxes, and COCO JSON, in {out}")


def chosen(args: argparse.Namespace) -> Options:
    """What the options of :func:`maskrcnn_benchmark.commands.parsers.add_classifier_options` say."""
    said = {field.name: getattr(args, field.name) for field in fields(Options)}
    return Options(**{**said, "scales": tuple(args.scales)})
