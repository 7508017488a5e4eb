"""What the command lines share: options, the way a run is set up, and how mistakes are told."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from maskrcnn_benchmark.config import TRAINING_KEYS, Cfg, is_under
from maskrcnn_benchmark.engine.boards import BOARDS
from maskrcnn_benchmark.engine.log import setup_logging
from maskrcnn_benchmark.errors import ConfigError, UserError

logger = logging.getLogger(__name__)

EVALUATION_KEYS = ("TEST", "DATASETS.TEST")
OPTS_HELP = "config keys and values that win over every file: TEST.IMS_PER_BATCH 4 MODEL.DEVICE cpu"


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """``--config-file``, ``--strict-config``, ``--dry-run`` and ``KEY VALUE ...``."""
    parser.add_argument("--config-file", metavar="FILE", help="YAML config of the model")
    parser.add_argument(
        "--strict-config", action="store_true", help="a key that was set and that nothing read is an error"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check config, data and prompts, say what would be done, and stop"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help=OPTS_HELP)


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake becomes one line on stderr and exit code 2, Ctrl-C becomes 130."""
    try:
        main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def output_folder(path: str, option: str = "OUTPUT_DIR") -> Path:
    """The folder for results that ``option`` names, made when missing.

    Raises:
        ConfigError: it cannot be written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option} {path!r} cannot be made ({error.strerror}): choose another folder") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{option} {path!r} cannot be written to: choose another folder")
    return folder


def start(cfgs: Sequence[Cfg], folder: Path | None) -> None:
    """Begin the log, in ``folder`` too when it is given, and tell what the config loader noticed, once."""
    setup_logging(folder)
    for note in dict.fromkeys(note for cfg in cfgs for note in cfg.notes):
        logger.info(note)


def report_unread(cfgs: Sequence[Cfg], strict: bool, left_out: Sequence[str] = ()) -> None:
    """Tell which keys a user set and nothing read.

    Args:
        cfgs: The configs of one run, that of the network first; see :meth:`Cfg.unread`.
        strict: Make it an error.
        left_out: Keys, or what they begin with, beside those of training, that this run may leave unread.

    Raises:
        ConfigError: ``strict`` and there is such a key.
    """
    rows = cfgs[0].unread(*cfgs[1:])
    idle = list(dict.fromkeys(key for key, _, _ in rows if is_under(key, (*TRAINING_KEYS, *left_out))))
    others = [row for row in rows if row[0] not in idle]
    if strict and others:
        key, value, source = others[0]
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise ConfigError(f"{source}: {key} = {value!r} was set but nothing read it{more}: take it out")
    for key, value, source in others:
        logger.warning("%s: %s = %r was set but nothing read it", source, key, value)
    if idle:
        logger.info("%d keys (%s, ...) were set and have no effect in this run", len(idle), idle[0])


def without_option(argv: Sequence[str], name: str) -> list[str]:
    """A command line without one of its options, written ``--name VALUE`` or ``--name=VALUE``."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word == name:
            next(words, None)
        elif not word.startswith(f"{name}="):
            kept.append(word)
    return kept


def add_launcher_options(parser: argparse.ArgumentParser) -> None:
    """What ``torch.distributed.launch`` and old scripts pass."""
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    for flag in ("--world-size", "--dist-url"):
        parser.add_argument(flag, help=argparse.SUPPRESS)


def add_board_options(parser: argparse.ArgumentParser) -> None:
    """``--use-tensorboard`` and the like; their names come as ``boards``."""
    for name in BOARDS:
        text = f"send scalars to {name} too (needs the package {BOARDS[name]})"
        parser.add_argument(f"--use-{name}", dest="boards", action="append_const", const=name, default=[], help=text)
