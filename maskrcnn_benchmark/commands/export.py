"""``mrb export``: the weights of a training alone, in a form that any program can read."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from maskrcnn_benchmark.checkpoint.io import file_digest, find_weights, read_classes, read_state_dict, save_weights
from maskrcnn_benchmark.engine.log import setup_logging
from maskrcnn_benchmark.errors import ConfigError

logger = logging.getLogger(__name__)


def export(args: argparse.Namespace) -> None:
    """Write the weights of a checkpoint, or with ``--ema`` their averages, without optimizer and the like."""
    setup_logging()
    source, out = find_weights(args.checkpoint), Path(args.out)
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {args.out!r}: the name must end in .safetensors")
    if out.resolve() == source.resolve():
        raise ConfigError(f"--out {args.out!r} is the checkpoint itself: choose another name")
    if read_classes(source):
        logger.warning("%s: its class names do not go along; keep it for `mrb detect` without --labels", source)
    state = read_state_dict(source, args.ema)
    try:
        save_weights(state, out)
    except OSError as error:
        raise ConfigError(f"--out {args.out!r} cannot be written ({error.strerror}): choose another place") from None
    numbers = sum(tensor.numel() for tensor in state.values())
    print(f"{out}: {len(state)} tensors, {numbers:,} numbers, {out.stat().st_size / 1e6:.1f} MB, {file_digest(out)}")
