"""``mrb self-label``."""

from __future__ import annotations

import argparse
from pathlib import Path

from maskrcnn_benchmark.checkpoint import zoo
from maskrcnn_benchmark.commands.options import several_processes
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.catalog import resolve
from maskrcnn_benchmark.data.pseudo_annotations import (
    convert,
    deduplicate,
    join,
    read_annotations,
    read_predictions,
    write_json,
)
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.self_labelling import self_label as label


def self_label(args: argparse.Namespace) -> None:
    """Boxes for pictures that have names only, at several sizes; with --join, one annotation file of all of them."""
    if not args.config_file:
        raise ConfigError("no config: give --config-file DECOLA_SELF_LABELING_....yaml")
    several_processes(args)
    weight = args.weight or (str(zoo.weights_of(zoo.find(args.model))) if args.model else None)
    opts = [*args.opts, *(["OUTPUT_DIR", args.output] if args.output else [])]
    files = label(args.config_file, weight, args.sizes, opts, args.dry_run, args.strict_config)
    if args.dry_run or not args.join:
        print("\n".join(map(str, files)))
        return
    if not all(file.is_file() for file in files):
        return  # another process writes them
    cfg = load_cfg(args.config_file, opts=opts)
    info = read_annotations(resolve(cfg, cfg.DATASETS.TEST[0], "train").annotations)
    whole = join([convert(info, read_predictions(file), file) for file in files], files)
    kept = deduplicate(whole, args.iou_thres, args.boxes)
    write_json(Path(args.join), kept)
    print(f"{len(kept['annotations'])} of {len(whole['annotations'])} boxes of {len(files)} sizes: {args.join}")
