"""Weights to begin a training with: a whole detector, or the parts of one that were trained elsewhere."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from maskrcnn_benchmark.checkpoint.fit import PREDICTORS, fit
from maskrcnn_benchmark.checkpoint.io import (
    Report,
    compare,
    file_digest,
    find_weights,
    load_weights,
    own_tables,
    read_state_dict,
)
from maskrcnn_benchmark.checkpoint.mdetr import start_mdetr
from maskrcnn_benchmark.checkpoint.names import rename
from maskrcnn_benchmark.checkpoint.rules import RELEASED, describe
from maskrcnn_benchmark.errors import WeightsError

logger = logging.getLogger(__name__)

NEW = (
    "*tunable_linear*",
    "*shallow_*",
    "rpn.head.mlm_head.*",
    "rpn.head.token_logits.*",
    "*contrastive_align*",
    "rpn.resizer.*",
)
"""What an option of a training adds to a detector; a checkpoint from before need not have it."""

PARTS = {  # first part of a name in the file -> place in a detector
    "vit_model": "backbone.body",  # FIBER's coarse-grained stage: Swin
    "text_transformer": "language_backbone.body.model",  # ... and RoBERTa
    "patch_embed": "backbone.body.patch_embed",  # Swin, trained as a classifier
    "layers": "backbone.body.layers",
}

DEFORMABLE = "DECOLA or Deformable DETR"
BODY = "detr.backbone.0.backbone."  # where its backbone is
OF_RESNET = re.compile(r"(stem|res[2-5])\.")  # what detectron2 calls the parts of a classifier


def start_from(model: nn.Module, name: str | os.PathLike[str]) -> Report:
    """Give a detector the weights of a file of its own kind, of a classifier, or of FIBER's coarse-grained stage.

    What the file does not have keeps its first values; both that, and what the detector has no place for, is told.
    Faster R-CNN, RetinaNet and CenterNet2 take the weights of ResNet classifiers (Caffe2's or torchvision's), and of
    detectors of other classes, all but the predictor: see :mod:`maskrcnn_benchmark.checkpoint.fit`. The backbone of
    DECOLA or Deformable DETR takes those of classifiers too. For MDETR see
    :func:`~maskrcnn_benchmark.checkpoint.mdetr.start_mdetr`.

    Raises:
        WeightsError: the file is missing or damaged, or its tensors have other shapes than the detector's.
    """
    kind = describe({key: tuple(value.shape) for key, value in model.state_dict().items()})
    if kind.startswith("MDETR"):
        return start_mdetr(model, name)
    path = find_weights(name)
    state = read_state_dict(path)
    if kind in PREDICTORS:
        return _fit_in(model.state_dict(), path, state)
    if kind == DEFORMABLE and not any(key.startswith("detr.") for key in state):
        body = {key: value for key, value in model.state_dict().items() if key.startswith(BODY)}
        return _fit_in(body, path, {f"{BODY}{key}" if OF_RESNET.match(key) else key: state[key] for key in state})
    parts = {key: value for key, value in state.items() if key.split(".")[0] in PARTS}
    if not parts:
        return load_weights(model, path, allow_missing=NEW)
    ours = model.state_dict()
    placed = _place(parts, "fusion_backbone." if any(key.startswith("fusion_backbone.") for key in ours) else "")
    fitting = {key: value for key, value in placed.items() if key in ours}
    report = compare(ours, fitting, ("*",), path, file_digest(path))
    if report.reshaped:
        raise WeightsError(f"{path}: does not fit the model: {report.problems()}: give the weights of the same size")
    with torch.no_grad():
        for key in report.loaded:
            ours[key].copy_(fitting[key])
    left_out = [key for key in state if key not in parts] + [key for key in placed if key not in ours]
    logger.info("%s: %d tensors loaded, %d of the model begin anew", path, len(report.loaded), len(report.left_alone))
    if left_out:
        logger.info("%s: the model has no place for %d tensors, such as %s", path, len(left_out), left_out[0])
    return report


def _fit_in(ours: Mapping[str, Tensor], path: Path, state: Mapping[str, Tensor]) -> Report:
    """Weights of a classifier or detector for a closed-vocabulary detector, or of a classifier for a backbone."""
    renamed = rename(state, RELEASED)
    file = {renamed[key]: value for key, value in state.items()}
    kept = own_tables(ours, file)
    found = fit(ours, {key: value for key, value in file.items() if key not in kept}, path)
    with torch.no_grad():
        for key, theirs in found.source.items():
            ours[key].copy_(file[theirs])
    logger.info("%s: %s", path, found.text())
    return replace(found.report(path, file_digest(path)), replaced=kept)


def _place(parts: Mapping[str, Tensor], root: str) -> dict[str, Tensor]:
    """Names of the file as names of a detector."""
    out = {}
    for key, value in parts.items():
        first, _, rest = key.partition(".")
        out[f"{root}{PARTS[first]}.{rest}"] = value
    return out
