"""Weights to begin a training of MDETR with: a file of MDETR, with other heads beside the detector or with none."""

from __future__ import annotations

import logging
import os
from fnmatch import fnmatchcase

import torch
from torch import nn

from maskrcnn_benchmark.checkpoint.io import Report, compare, file_digest, find_weights, read_state_dict
from maskrcnn_benchmark.errors import WeightsError

logger = logging.getLogger(__name__)

PREFIX = "detr."  # of the detector's names, where there is a mask head
MASKS = ("bbox_attention.", "mask_head.")
HEADS = (
    "*contrastive_align_projection_*",
    "*contrastive_projection_*",
    "*transformer.CLS.*",
    *(f"{name}*" for name in MASKS),
)
"""What one training has and another has not."""
BODY, TEXT = "backbone.0.body.", "transformer.text_encoder."
"""What the names of two parts of the detector begin with; each may come from a network that did something else."""


def start_mdetr(model: nn.Module, name: str | os.PathLike[str]) -> Report:
    """Give MDETR, with or without a mask head, the detector of a file; its averaged weights, where there are any.

    Heads that the file does not have keep their first values, heads that the model does not have are left out; both is
    told.

    Raises:
        WeightsError: the file is missing or damaged, or its detector is another.
    """
    path = find_weights(name)
    ours = model.state_dict()
    prefix = PREFIX if any(key.startswith(PREFIX) for key in ours) else ""
    file = {
        key if key.startswith(MASKS) else prefix + key.removeprefix(PREFIX): value
        for key, value in read_state_dict(path, ema="preferred").items()
    }
    left_out = [key for key in file if key not in ours and any(fnmatchcase(key, head) for head in HEADS)]
    wanted = {key: value for key, value in file.items() if key not in left_out}
    report = compare(ours, wanted, HEADS, path, file_digest(path))
    if not report.fits:
        raise WeightsError(
            f"{path}: does not fit the model: {report.problems()}: give the weights of the same detector"
        )
    with torch.no_grad():
        for key in report.loaded:
            if not key.endswith(".position_ids"):
                ours[key].copy_(wanted[key])
    logger.info("%s: %d tensors loaded, %d of the model begin anew", path, len(report.loaded), len(report.left_alone))
    if left_out:
        logger.info("%s: the model has no place for %d tensors, such as %s", path, len(left_out), left_out[0])
    return report


def start_body(model: nn.Module, name: str | os.PathLike[str]) -> Report:
    """Give MDETR's backbone the weights of a classifier of torchvision or timm; its last layers are left out, and told.

    Raises:
        WeightsError: the file is missing or damaged, or of another network.
    """
    return _start_part(model, name, BODY, "")


def start_text(model: nn.Module, name: str | os.PathLike[str]) -> Report:
    """Give MDETR's text encoder the weights of RoBERTa, as Hugging Face has them; the guessing of words is left out.

    Raises:
        WeightsError: the file is missing or damaged, or of another network.
    """
    return _start_part(model, name, TEXT, "roberta.", optional=("*.pooler.*",))


def _start_part(
    model: nn.Module, name: str | os.PathLike[str], part: str, wrapper: str, optional: tuple[str, ...] = ()
) -> Report:
    """Weights of a file for the names that begin with ``part``, less ``wrapper`` in the file."""
    path = find_weights(name)
    whole = model.state_dict()
    prefix = PREFIX + part if any(key.startswith(PREFIX) for key in whole) else part
    ours = {key: value for key, value in whole.items() if key.startswith(prefix)}
    file = {prefix + key.removeprefix(wrapper): value for key, value in read_state_dict(path).items()}
    wanted = {key: value for key, value in file.items() if key in ours}
    report = compare(ours, wanted, optional, path, file_digest(path))
    if not report.fits:
        raise WeightsError(f"{path}: does not fit {part[:-1]} of the model: {report.problems()}: give another file")
    with torch.no_grad():
        for key in report.loaded:
            if not key.endswith(".position_ids"):
                ours[key].copy_(wanted[key])
    told = f"{path}: {len(report.loaded)} tensors loaded into {part[:-1]}, {len(report.left_alone)} begin anew"
    logger.info("%s, %d of the file have no place there", told, len(file) - len(wanted))
    return report
