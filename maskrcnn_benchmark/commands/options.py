"""What options mean that several sub-commands have."""

from __future__ import annotations

import argparse
from pathlib import Path

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint import zoo
from maskrcnn_benchmark.commands.parsers import GPUS
from maskrcnn_benchmark.engine.distributed import launch
from maskrcnn_benchmark.errors import ConfigError

DEFAULT_CONFIG = "configs/pretrain/mixed_nococo_flickr_objects365.yaml"


def config_and_weight(args: argparse.Namespace) -> tuple[str, str]:
    """The config file and the weights ("": none named) that the options mean.

    Raises:
        ConfigError: there is no such model, or it has no config here.
        WeightsError: the weights of the model are not in MODEL/.
    """
    if args.model is None:
        return args.config_file or DEFAULT_CONFIG, args.weight or ""
    entry = zoo.find(args.model)
    if not entry.config and not args.config_file:
        raise ConfigError(f"--model {args.model}: this version has no config for it: give --config-file")
    return args.config_file or entry.config, args.weight or str(zoo.weights_of(entry))


def needed_model(args: argparse.Namespace) -> tuple[str, str]:
    """As :func:`config_and_weight`, where there is nothing to do without weights.

    Raises:
        ConfigError: none are named; see there too.
    """
    config, weight = config_and_weight(args)
    if not weight:
        raise ConfigError("no weights: give --weight FILE, or --model NAME of `mrb models`")
    return config, weight


def several_processes(args: argparse.Namespace) -> None:
    """Start the command once for each of ``--gpus``, in place of this process.

    Raises:
        ConfigError: not a sensible number.
    """
    if args.gpus is not None and args.gpus != 1:
        launch(args.gpus, ["-m", "maskrcnn_benchmark.mrb", *cli.without_option(args.argv, GPUS)])


def existing_file(path: str, option: str) -> Path:
    """The file that an option names.

    Raises:
        ConfigError: it is not there.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{option} {path!r}: no such file")
    return Path(path)
