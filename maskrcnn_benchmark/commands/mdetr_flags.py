"""The options of MDETR's ``main.py`` (https://github.com/ashkamath/mdetr), and the config keys that they stand for."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.paths import repository_root

_M = "MODEL.MDETR."
KEYS: dict[str, tuple[type, tuple[str, ...]]] = {
    "lr": (float, ("SOLVER.BASE_LR",)),
    "text_encoder_lr": (float, ("SOLVER.LANG_LR",)),
    "weight_decay": (float, ("SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_BIAS")),
    "epochs": (int, ("SOLVER.MAX_EPOCH",)),
    "lr_drop": (int, ("SOLVER.MDETR_LR_DROP",)),
    "schedule": (str, ("SOLVER.MDETR_SCHEDULE",)),
    "fraction_warmup_steps": (float, ("SOLVER.WARMUP_FRACTION",)),
    "clip_max_norm": (float, ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE",)),
    "eval_skip": (int, ("TEST.EVAL_EPOCH_PERIOD",)),
    "num_queries": (int, (f"{_M}NUM_QUERIES",)),
    "enc_layers": (int, (f"{_M}ENC_LAYERS",)),
    "dec_layers": (int, (f"{_M}DEC_LAYERS",)),
    "dim_feedforward": (int, (f"{_M}FFN_DIM",)),
    "hidden_dim": (int, (f"{_M}HIDDEN_DIM",)),
    "nheads": (int, (f"{_M}NHEADS",)),
    "dropout": (float, (f"{_M}DROPOUT",)),
    "position_embedding": (str, (f"{_M}POS_EMBED",)),
    "contrastive_loss_hdim": (int, (f"{_M}PROJ_DIM",)),
    "temperature_NCE": (float, (f"{_M}TEMPERATURE",)),
    "set_cost_class": (float, (f"{_M}COST_CLASS",)),
    "set_cost_bbox": (float, (f"{_M}COST_BBOX",)),
    "set_cost_giou": (float, (f"{_M}COST_GIOU",)),
    "ce_loss_coef": (float, (f"{_M}CE_LOSS_COEF",)),
    "bbox_loss_coef": (float, (f"{_M}BBOX_LOSS_COEF",)),
    "giou_loss_coef": (float, (f"{_M}GIOU_LOSS_COEF",)),
    "mask_loss_coef": (float, (f"{_M}MASK_LOSS_COEF",)),
    "dice_loss_coef": (float, (f"{_M}DICE_LOSS_COEF",)),
    "contrastive_loss_coef": (float, (f"{_M}CONTRASTIVE_LOSS_COEF",)),
    "contrastive_align_loss_coef": (float, (f"{_M}CONTRASTIVE_ALIGN_LOSS_COEF",)),
    "eos_coef": (float, (f"{_M}EOS_COEF",)),
    "text_encoder_type": (str, ("MODEL.LANGUAGE_BACKBONE.MODEL_TYPE",)),
    "device": (str, ("MODEL.DEVICE",)),
    "seed": (int, ("SOLVER.SEED",)),
    "num_workers": (int, ("DATALOADER.NUM_WORKERS",)),
    "GT_type": (str, ("DATASETS.FLICKR_GT_TYPE",)),
}
"""Options that become keys as they are."""

VALUES: dict[str, type] = {
    "backbone": str,
    "backbone_weights": str,
    "text_weights": str,
    "lr_backbone": float,
    "batch_size": int,
    "epoch_chunks": int,
    "optimizer": str,
    "ema_decay": float,
    "mask_model": str,
    "load": str,
    "resume": str,
    "frozen_weights": str,
    "output_dir": str,
    "test_type": str,
}
"""Further options with a value; :mod:`maskrcnn_benchmark.commands.mdetr` says what they mean."""

SWITCHES: dict[str, tuple[str, object] | None] = {
    "no_aux_loss": (f"{_M}AUX_LOSS", False),
    "no_contrastive_align_loss": (f"{_M}CONTRASTIVE_ALIGN", False),
    "contrastive_loss": (f"{_M}CONTRASTIVE", True),
    "dilation": (f"{_M}DILATION", True),
    "freeze_text_encoder": ("MODEL.LANGUAGE_BACKBONE.FREEZE", True),
    "ema": None,
    "eval": None,
    "test": None,
}
"""Options without a value, and the key that they set by themselves."""

PATHS = (
    *("coco_path", "vg_img_path", "flickr_img_path", "flickr_dataset_path", "flickr_ann_path", "refexp_ann_path"),
    *("gqa_ann_path", "phrasecut_ann_path", "phrasecut_orig_ann_path", "refexp_dataset_name"),
)
"""Where data are; see :mod:`maskrcnn_benchmark.commands.mdetr_sets`."""
LISTS = ("combine_datasets", "combine_datasets_val")

IDLE = {
    "masks": "--mask_model says whether there are masks",
    "run_name": "nothing reads it in the original either",
    "remove_difficult": "nothing reads it in the original either",
    "gqa_split_type": "it is for answers to questions",
}
"""Options that change nothing, and why."""
IDLE_SWITCHES = ("masks", "remove_difficult")

_HEADS = "this version has no heads for answers to questions"
REFUSED: dict[str, tuple[object, str]] = {
    "do_qa": (False, _HEADS),
    "split_qa_heads": (False, _HEADS),
    "no_detection": (False, _HEADS),
    "predict_final": (False, "this version has no head for what CLEVR-Ref+ calls final"),
    "pre_norm": (False, "it fails in the original, and no released network has it"),
    "no_pass_pos_and_query": (False, "it fails in the original, and no released network has it"),
    "start_epoch": (0, "a training goes on where the last checkpoint of its folder is"),
    "set_loss": ("hungarian", "there is no other than hungarian"),
}
"""Options that this version has not -> the value that does no harm, and the reason."""

ENDS = {
    "optimizer": ("adam", "adamw", "sgd"),
    "mask_model": ("none", "smallconv"),
    "test_type": ("testA", "testB", "test"),
}
"""Options with few values; those that become keys are checked with the keys."""

Given = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What a command line with its JSON file says.

    Attributes:
        options: Name without dashes -> value; only what was said.
        json: The JSON file.
        opts: Config keys and values that win over all.
        notes: What is to be told.
        strict: A key that nothing reads is an error.
        dry_run: Check, tell, and stop.
        local_rank: What an old launcher passes.
    """

    options: Given
    json: Path
    opts: tuple[str, ...]
    notes: tuple[str, ...]
    strict: bool
    dry_run: bool
    local_rank: int | None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Every option of the original; those that were not given leave no trace."""
    parser.add_argument(
        "--dataset_config", required=True, metavar="JSON", help="data sets, and values of other options"
    )
    for name, (kind, keys) in KEYS.items():
        _add(parser, name, type=kind, help=", ".join(keys))
    for name, kind in VALUES.items():
        _add(parser, name, type=kind, choices=ENDS.get(name), help=HELP.get(name))
    for name, key in SWITCHES.items():
        _add(parser, name, action="store_true", help=f"{key[0]} {key[1]}" if key else HELP.get(name))
    for name in PATHS:
        _add(parser, name, help="as in the JSON file")
    for name in LISTS:
        _add(parser, name, nargs="+", help="as in the JSON file")
    for name in IDLE:
        action: dict[str, Any] = {"action": "store_true"} if name in IDLE_SWITCHES else {}
        _add(parser, name, help=argparse.SUPPRESS, **action)
    for name, (harmless, _) in REFUSED.items():
        action = {"action": "store_true"} if harmless is False else {"type": type(harmless)}
        _add(parser, name, help=argparse.SUPPRESS, **action)
    parser.add_argument("--strict-config", action="store_true", help="a key that nothing reads is an error")
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be done, and stop")
    cli.add_launcher_options(parser)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help=cli.OPTS_HELP)


HELP = {
    "backbone": "resnet18 ... resnet152, or timm_NAME for a network of timm",
    "backbone_weights": "file that the backbone of a new network begins with",
    "text_weights": "file that the text encoder of a new network begins with",
    "lr_backbone": "SOLVER.BACKBONE_LR; 0 freezes a ResNet",
    "batch_size": "pictures for each process",
    "epoch_chunks": "DATALOADER.EPOCH_CHUNKS, parts of the data; an epoch is one of them",
    "ema": "average the weights, and score the average",
    "mask_model": "smallconv: with masks",
    "load": "weights to begin with: a file, a name in MODEL/, or the URL of a released file that is there",
    "resume": "with --eval the weights to score; else the checkpoint of the folder in which a training is to go on",
    "frozen_weights": "detector that a mask head is trained on",
    "output_dir": "default: OUTPUT/mdetr/ and the name of the JSON file",
    "eval": "score --resume, and stop",
    "test": "score the test split in place of the one for validation",
}


def _add(parser: argparse.ArgumentParser, name: str, **how: Any) -> None:
    """An option under its name, with dashes too where it has underscores."""
    names = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
    parser.add_argument(*names, dest=name, default=argparse.SUPPRESS, **how)


def read(args: argparse.Namespace) -> Asked:
    """What a command line says, together with its JSON file.

    Raises:
        ConfigError: the file is not there or damaged, or says something that is not known or not in this version.
    """
    known = (*KEYS, *VALUES, *SWITCHES, *PATHS, *LISTS, *IDLE, *REFUSED)
    said = {name: value for name, value in vars(args).items() if name in known}
    path = Path(args.dataset_config)
    tree, notes = _read_json(path, known), []
    for name in tree:
        if name in said and said[name] != tree[name]:
            notes.append(f"--{name} {said[name]} counts, not {tree[name]!r} of {path}; in the original the file won")
    options = {**tree, **said}
    for name, (harmless, reason) in REFUSED.items():
        if options.pop(name, harmless) != harmless:
            where = "" if name in said else f" ({path})"
            raise ConfigError(f"--{name}{where}: {reason}: leave it out")
    for name in [name for name in IDLE if name in options]:
        options.pop(name)
        notes.append(f"--{name} has no effect: {IDLE[name]}")
    return Asked(options, path, tuple(args.opts), tuple(notes), args.strict_config, args.dry_run, args.local_rank)


def _read_json(path: Path, known: Sequence[str]) -> Given:
    root = repository_root()
    place = path if path.exists() or path.is_absolute() or root is None else root / path
    try:
        tree = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--dataset_config {str(path)!r}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{path}: is no JSON ({error})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds a {type(tree).__name__}, not options of MDETR with their values")
    for name, value in tree.items():
        if name not in known:
            raise ConfigError(f"{path}: {name!r} is no option of MDETR: take it out")
        _check(path, name, value)
    return {name: value for name, value in tree.items() if not (name in SWITCHES and not value)}


def _check(path: Path, name: str, value: object) -> None:
    """Refuse a value of another type than the option has.

    Raises:
        ConfigError: see above.
    """
    kind: type = KEYS[name][0] if name in KEYS else VALUES.get(name, object)
    fits: Callable[[object], bool] = {
        float: lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
        int: lambda v: isinstance(v, int) and not isinstance(v, bool),
        str: lambda v: isinstance(v, str),
    }.get(kind, lambda v: True)
    if name in PATHS:
        fits, kind = (lambda v: isinstance(v, str)), str
    if name in LISTS:
        fits, kind = (lambda v: isinstance(v, list) and all(isinstance(part, str) for part in v)), list
    if not fits(value):
        raise ConfigError(f"{path}: {name} = {value!r} is no {kind.__name__}")
    if name in ENDS and value not in ENDS[name]:
        raise ConfigError(f"{path}: {name} = {value!r} is not one of {', '.join(ENDS[name])}")


def plain_keys(options: Mapping[str, Any]) -> dict[str, object]:
    """Keys and values of the options that say all about a key."""
    keys: dict[str, object] = {}
    for name, (_, places) in KEYS.items():
        if name in options:
            keys |= dict.fromkeys(places, options[name])
    for name, place in SWITCHES.items():
        if name in options and place:
            keys[place[0]] = place[1]
    return keys


def body_of(backbone: str) -> str:
    """``MODEL.BACKBONE.CONV_BODY`` of ``--backbone``.

    Raises:
        ConfigError: it is not known.
    """
    if found := re.fullmatch(r"resnet(18|34|50|101|152)", backbone):
        return f"R-{found[1]}-MDETR"
    if backbone.startswith("timm_"):
        return backbone
    raise ConfigError(f"--backbone {backbone!r} is not known: give resnet18, 34, 50, 101 or 152, or timm_NAME")
