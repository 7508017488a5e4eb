"""Classifiers of torchvision and timm by name, with weights of a file, as networks that give class activation maps."""

from __future__ import annotations

import difflib
import logging
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torchvision import models

from maskrcnn_benchmark.checkpoint.io import find_weights, load_weights, read_state_dict
from maskrcnn_benchmark.data.transforms import Normalise
from maskrcnn_benchmark.errors import ConfigError, WeightsError
from maskrcnn_benchmark.modeling.cam.fused import for_inference
from maskrcnn_benchmark.modeling.cam.graph import split
from maskrcnn_benchmark.modeling.cam.maps import ClassMaps

logger = logging.getLogger(__name__)

TIMM = "timm/"  # in front of timm's names
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet: red, green, blue from 0 to 1
IMAGENET = Normalise(MEAN, STD, bgr=False)
COUNTERS = ("*num_batches_tracked",)  # older files lack them, and evaluation does not use them
CPU = torch.device("cpu")


def released_weights(name: str) -> str:
    """The file of torchvision's first ImageNet weights of a classifier, such as resnet101-63fe2227.pth.

    Raises:
        ConfigError: there are none, so that the user must name a file.
    """
    if name in _torchvision_names():
        for weights in models.get_model_weights(name):
            if weights.name == "IMAGENET1K_V1":
                return str(weights.url).rsplit("/", 1)[-1]
    raise ConfigError(f"classifier {name!r}: say with --weight in which file its weights are")


def build_class_maps(
    name: str, weight: str, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> tuple[ClassMaps, str]:
    """A classifier with the number of classes that its weights have, and the sha256 of their file.

    Args:
        name: Of torchvision (resnet101), or of timm with ``timm/`` in front (timm/resnet50).
        weight: A file, or a name in MODEL/; nothing is downloaded.
        device: Where it will run.
        dtype: Of the features.

    Raises:
        ConfigError: there is no such classifier, or maps cannot be made with it.
        WeightsError: the weights cannot be read, are of another network, or hold numbers that are not finite.
    """
    with torch.device("meta"):
        head = split(_create(name).eval(), name).head
    path = find_weights(weight)
    state = read_state_dict(path)
    if f"{head}.weight" not in state:
        raise WeightsError(f"{path}: holds no {head}.weight, the last layer of {name}: give weights of this classifier")
    broken = next((key for key, value in state.items() if not bool(torch.isfinite(value).all())), None)
    if broken is not None:
        raise WeightsError(f"{path}: {broken} holds numbers that are not finite: give other weights")
    net = _create(name, num_classes=len(state[f"{head}.weight"]))
    del state
    report = load_weights(net, path, allow_missing=COUNTERS)
    logger.info(report.summary())
    mean, std = _normalisation(net)
    return map_net(net.eval(), name, device, dtype, Normalise(mean, std, bgr=False)), report.digest


def map_net(
    net: nn.Module,
    name: str,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    normalise: Normalise = IMAGENET,
) -> ClassMaps:
    """Any classifier in evaluation mode, in memory, as one that gives maps.

    Raises:
        ConfigError: it does not end with feature map, global average and one linear layer.
    """
    parts = split(net, name)
    features = for_inference(parts.features, device, dtype)
    return ClassMaps(features, parts.weight, parts.bias, normalise, dtype).to(device)


def _torchvision_names() -> list[str]:
    return models.list_models(module=models)


def _create(name: str, **options: Any) -> nn.Module:
    """A classifier with random weights."""
    if not name.startswith(TIMM):
        known = _torchvision_names()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f", closest: {', '.join(near)}" if near else ""
            raise ConfigError(f"no classifier of torchvision is called {name!r}{hint}; one of timm: {TIMM}NAME")
        return models.get_model(name, weights=None, **options)
    try:
        timm = import_module("timm")
    except ModuleNotFoundError:
        raise ConfigError(
            f"classifier {name!r} needs timm, which is not installed: pip install 'maskrcnn_benchmark[timm]'"
        ) from None
    bare = name.removeprefix(TIMM)
    if not timm.is_model(bare):
        near = difflib.get_close_matches(bare, timm.list_models(), n=3)
        hint = f", closest: {', '.join(TIMM + other for other in near)}" if near else ""
        raise ConfigError(f"no classifier of timm is called {bare!r}{hint}")
    return timm.create_model(bare, pretrained=False, **options)


def _normalisation(net: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that a classifier was trained with; timm's say so."""
    told = getattr(net, "pretrained_cfg", None) or {}
    return tuple(told.get("mean", MEAN)), tuple(told.get("std", STD))
