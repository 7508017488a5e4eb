"""MDETR by the options of its own ``main.py``: translated to config keys, then trained or scored as everything else."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskrcnn_benchmark.checkpoint import zoo
from maskrcnn_benchmark.checkpoint.io import find_weights
from maskrcnn_benchmark.checkpoint.resume import POINTER
from maskrcnn_benchmark.commands.mdetr_flags import Asked, body_of, plain_keys
from maskrcnn_benchmark.commands.mdetr_sets import TEST, TRAIN, VAL, entry
from maskrcnn_benchmark.engine.distributed import detect_world
from maskrcnn_benchmark.engine.log import say_what_others_cannot, setup_logging
from maskrcnn_benchmark.errors import ConfigError, WeightsError
from maskrcnn_benchmark.training import train_net
from maskrcnn_benchmark.zero_shot import zero_shot

logger = logging.getLogger(__name__)

CONFIG = "configs/base/mdetr.yaml"
OUTPUT = "OUTPUT/mdetr"
PUBLISHED = "checkpoint.pth"  # what the original calls the last checkpoint of a training
BATCH, DECAY = 2, 0.9998  # of the original

BODIES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet152": "resnet152-394f9c45.pth",
    "timm_tf_efficientnet_b3_ns": "tf_efficientnet_b3_ns-9d44bf68.pth",
    "timm_tf_efficientnet_b5_ns": "tf_efficientnet_b5_ns-6f26d0cf.pth",
}
"""``--backbone`` -> the file that torchvision or timm would download for a new network."""
WIDTHS = {"roberta-large": 1024}
"""``--text_encoder_type`` -> its width, where it is not the default."""


@dataclass(frozen=True)
class Job:
    """What the options come to.

    Attributes:
        keys: Config keys over :data:`CONFIG`.
        weight: What is scored; "": it is a training.
        notes: What is to be told.
        asked: Where all this comes from.
    """

    keys: Mapping[str, object]
    weight: str
    notes: tuple[str, ...]
    asked: Asked

    @property
    def opts(self) -> list[str]:
        """``[KEY, VALUE, ...]``."""
        return [*(str(part) for pair in self.keys.items() for part in pair), *self.asked.opts]

    @property
    def command(self) -> str:
        """The same with the tool that all detectors have."""
        tool = ["tools/test_grounding_net.py" if self.weight else "tools/train_net.py", "--config-file", CONFIG]
        weight = ["--weight", self.weight] if self.weight else ["--skip-test"]
        return shlex.join([*tool, *weight, *self.opts])


def run(asked: Asked, processes: int | None = None) -> dict[str, Any]:
    """Train, or with ``--eval`` score.

    Args:
        asked: From the command line.
        processes: That will share a batch; None: as many as were started.

    Returns:
        What :func:`train_net` or :func:`zero_shot` gives.

    Raises:
        UserError: anything that the user can mend.
    """
    world = detect_world(os.environ, asked.local_rank)
    setup_logging()
    if not world.main:
        say_what_others_cannot()
    job = plan(asked, processes or world.size)
    for note in job.notes:
        logger.info("%s", note)
    logger.info("the same as: %s", job.command)
    if job.weight:
        return dict(zero_shot(CONFIG, job.weight, (), job.opts, asked.strict, asked.dry_run, asked.local_rank))
    return train_net(CONFIG, None, job.opts, None, asked.local_rank, asked.dry_run, strict=asked.strict)


def plan(asked: Asked, processes: int) -> Job:
    """What the options mean, in config keys; see :func:`run`.

    Raises:
        ConfigError: options that do not go together, or data sets that are not known.
        WeightsError: a file of weights is not there.
    """
    options, notes = asked.options, [*asked.notes]
    keys: dict[str, object] = {"MODEL.META_ARCHITECTURE": "MDETR"}
    keys |= _network(options, notes)
    keys |= _solver(options, processes)
    keys |= _sets(options, notes)
    masks = options.get("mask_model") == "smallconv"
    folder = options.get("output_dir") or f"{OUTPUT}/{asked.json.stem}{'_masks' if masks else ''}"
    keys["OUTPUT_DIR"] = folder
    weight = ""
    if options.get("eval"):
        weight = _to_score(options)
        keys["TEST.USE_EMA"] = bool(options.get("ema"))
    else:
        keys |= _starts(options)
    return Job(keys, weight, tuple(notes), asked)


def _network(options: Mapping[str, Any], notes: list[str]) -> dict[str, object]:
    keys = plain_keys(options)
    body = body_of(options.get("backbone", "resnet101"))
    if "backbone" in options:
        keys["MODEL.BACKBONE.CONV_BODY"] = body
    if (width := WIDTHS.get(options.get("text_encoder_type", ""))) is not None:
        keys["MODEL.LANGUAGE_BACKBONE.LANG_DIM"] = width
    if options.get("mask_model") == "smallconv":
        keys["MODEL.META_ARCHITECTURE"] = "MDETR_SEGM"
        align = keys.pop("MODEL.MDETR.CONTRASTIVE_ALIGN", True)
        if align and not options.get("eval"):
            notes.append(
                "--mask_model smallconv: no loss that compares queries with tokens (the original fails here without "
                "--no_contrastive_align_loss)"
            )
    rate = options.get("lr_backbone")
    if rate is not None and rate <= 0 and body.startswith("R-"):
        keys["MODEL.BACKBONE.FREEZE"] = True
    if rate is not None:
        keys["SOLVER.BACKBONE_LR"] = max(rate, 0.0)
    return keys


def _solver(options: Mapping[str, Any], processes: int) -> dict[str, object]:
    batch = options.get("batch_size", BATCH)
    keys: dict[str, object] = {"SOLVER.IMS_PER_BATCH": batch * processes, "TEST.IMS_PER_BATCH": batch}
    if options.get("epoch_chunks", -1) > 0:
        keys["DATALOADER.EPOCH_CHUNKS"] = options["epoch_chunks"]
    if "optimizer" in options:
        keys["SOLVER.OPTIMIZER"] = "SGD" if options["optimizer"] == "sgd" else "ADAMW"
    if options.get("clip_max_norm", 1) <= 0:
        keys["SOLVER.CLIP_GRADIENTS.ENABLED"] = False
    if options.get("ema"):
        keys["SOLVER.MODEL_EMA"] = options.get("ema_decay", DECAY)
    return keys


def _sets(options: Mapping[str, Any], notes: list[str]) -> dict[str, object]:
    """``DATASETS``: the test split is for scoring alone (the original trains on it too)."""
    keys: dict[str, object] = {}
    training = not options.get("eval")
    split = TEST if options.get("test") else VAL
    if training and split == TEST:
        notes.append("--test: scores are of the test split, training is on the training split (not so in the original)")
    wanted = {"TRAIN": (options.get("combine_datasets", ["flickr"]), TRAIN)} if training else {}
    wanted["TEST"] = (options.get("combine_datasets_val", ["flickr"]), split)
    for group, (sets, part) in wanted.items():
        names = []
        for given in sets:
            name, row = entry(options, given, part)
            if part == TEST and name.endswith(f"_{VAL}"):
                notes.append(f"--test: {given} has no test split here, {name} is scored")
            names.append(name)
            keys |= {f"DATASETS.REGISTER.{name}.{key}": value for key, value in row.items()}
        keys[f"DATASETS.{group}"] = str(tuple(names))
    return keys


def _to_score(options: Mapping[str, Any]) -> str:
    for name in ("resume", "load"):
        if options.get(name):
            return weights(options[name], f"--{name}")
    raise ConfigError("--eval: no weights to score: give --resume FILE")


def _starts(options: Mapping[str, Any]) -> dict[str, object]:
    """What a training begins with."""
    keys: dict[str, object] = {}
    if options.get("resume"):
        keys["OUTPUT_DIR"] = _folder_to_go_on_in(options)
        return keys
    frozen, masks = options.get("frozen_weights"), options.get("mask_model") == "smallconv"
    if frozen and not masks:
        raise ConfigError(
            "--frozen_weights: a detector is frozen to train a mask head on it: add --mask_model smallconv"
        )
    if frozen:
        keys["MODEL.MDETR.FROZEN_WEIGHTS"] = weights(frozen, "--frozen_weights")
    if options.get("load"):
        keys["MODEL.WEIGHT"] = weights(options["load"], "--load")
    if not keys:
        keys |= _first_weights(options)
    return keys


def _first_weights(options: Mapping[str, Any]) -> dict[str, object]:
    """Of a new network: what is asked for, or what the original downloads, where that is in MODEL/."""
    backbone, text = options.get("backbone", "resnet101"), options.get("text_encoder_type", "roberta-base")
    usual = {
        "backbone_weights": (BODIES.get(backbone, ""),),
        "text_weights": (f"{text}/model.safetensors", f"{text}/pytorch_model.bin"),
    }
    places = {"backbone_weights": "MODEL.MDETR.BACKBONE_WEIGHT", "text_weights": "MODEL.MDETR.TEXT_WEIGHT"}
    keys: dict[str, object] = {}
    for name, key in places.items():
        files = [options[name]] if options.get(name) else [file for file in usual[name] if file]
        found = next((file for file in files if _is_there(file)), "")
        if options.get(name) or found:
            keys[key] = weights(found or files[0], f"--{name}")
        else:
            wanted = " or ".join(f"MODEL/{file}" for file in files) or "a file of your own"
            logger.warning("%s: random weights; for those of the original put %s, or give --%s", key, wanted, name)
    return keys


def _is_there(file: str) -> bool:
    try:
        find_weights(file)
    except WeightsError:
        return False
    return True


def weights(name: str, option: str) -> str:
    """The file that a path, a name in MODEL/, or the URL of a released file stands for.

    ``checkpoint.pth``, as the original calls the last checkpoint, is the last one of a folder of ours.

    Raises:
        WeightsError: it is not there; of a released file, with how to get it.
    """
    released = zoo.find_url(name)
    if released is not None:
        return str(zoo.weights_of(released))
    last = Path(name).parent / POINTER
    if Path(name).name == PUBLISHED and not Path(name).exists() and last.is_file():
        return str(find_weights(last))
    try:
        return str(find_weights(name))
    except WeightsError as error:
        raise WeightsError(f"{option}: {error}") from None


def _folder_to_go_on_in(options: Mapping[str, Any]) -> str:
    """The folder of a checkpoint of ours.

    Raises:
        ConfigError: it is not of a training of ours, or another folder is asked for.
    """
    path = Path(weights(options["resume"], "--resume"))
    folder = path.parent
    if not (folder / POINTER).is_file():
        raise ConfigError(
            f"--resume {path}: there is no training to go on with beside it ({POINTER} is not there): give --load to "
            "begin with its weights, or --eval to score them"
        )
    given = options.get("output_dir")
    if given and Path(given).resolve() != folder.resolve():
        raise ConfigError(f"--resume {path}: a training goes on in its own folder: leave out --output_dir {given}")
    return str(folder)
