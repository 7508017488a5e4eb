"""Operators compiled from ``csrc/``, the backend "csrc". Imported by ``backends`` only.

The object ``_C`` holds the schemas and the CPU kernels, ``_C_cuda`` the CUDA kernels. Both use the stable interface of
libtorch: one build serves torch 2.11 and later. Where an object was not built, does not load, or differs from the pure
path in a short test at first use, its operators are left to the other backends.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from functools import cache

import torch
from torch import Tensor

from maskrcnn_benchmark.errors import BackendError
from maskrcnn_benchmark.layers.backends import register
from maskrcnn_benchmark.layers.self_test import failures

logger = logging.getLogger(__name__)
PACKAGE = "maskrcnn_benchmark"
OBJECTS = {"cpu": "_C", "cuda": "_C_cuda"}
Pair = tuple[int, int]


def _load(name: str) -> None:
    try:
        importlib.import_module(f"{PACKAGE}.{name}")
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(f"{PACKAGE}/{name} does not load with torch {torch.__version__}: {error}") from error


def _built(name: str) -> bool:
    return importlib.util.find_spec(f"{PACKAGE}.{name}") is not None


if not _built("_C"):
    raise ModuleNotFoundError("the operators of csrc/ are not compiled; `pip install -v .` says why", name="_C")
_load("_C")
importlib.import_module(f"{__package__}._csrc_library")
_ops = torch.ops.maskrcnn_benchmark


@cache
def usable(device: str) -> bool:
    """Whether the kernels for a type of device are there and pass the self-test; says why if they do not."""
    if device not in OBJECTS or not _built(OBJECTS[device]):
        return False
    try:
        _load(OBJECTS[device])
        found = failures(FUNCTIONS, torch.device(device))
    except BackendError as error:
        logger.warning("set aside: %s", error)
        return False
    if found:
        logger.warning(
            "%s/%s is set aside: it differs from the pure path in %s", PACKAGE, OBJECTS[device], ", ".join(found)
        )
    return not found


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, plus_one: bool) -> Tensor:
    return _ops.nms(boxes, scores, iou_threshold, plus_one)


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, plus_one: bool) -> Tensor:
    return _ops.batched_nms(boxes, scores, labels, iou_threshold, plus_one)


def soft_nms(boxes: Tensor, scores: Tensor, score_threshold: float, sigma: float) -> tuple[Tensor, Tensor]:
    kept, decayed = _ops.soft_nms(boxes.cpu(), scores.cpu(), score_threshold, sigma)  # one box after the other
    return kept.to(boxes.device), decayed.to(boxes.device)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    return _ops.deform_conv2d(input, offset, mask, weight, bias, stride, padding, dilation)


def roi_align(
    input: Tensor, rois: Tensor, output_size: Pair, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    return _ops.roi_align(input, rois, spatial_scale, *output_size, sampling_ratio, aligned)


def roi_pool(input: Tensor, rois: Tensor, output_size: Pair, spatial_scale: float) -> Tensor:
    return _ops.roi_pool(input, rois, spatial_scale, *output_size)[0]


def deform_psroi(
    input: Tensor,
    rois: Tensor,
    trans: Tensor | None,
    spatial_scale: float,
    out_channels: int,
    group_size: int,
    out_size: int,
    part_size: int,
    samples: int,
    trans_std: float,
) -> Tensor:
    return _ops.deform_psroi(
        input, rois, trans, spatial_scale, out_channels, group_size, out_size, part_size, samples, trans_std
    )


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, gamma: float, alpha: float) -> Tensor:
    return _ops.sigmoid_focal_loss(logits, targets, gamma, alpha)


def ms_deform_attn(
    value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    return _ops.ms_deform_attn(value, spatial_shapes, level_start_index, locations, weights)


FUNCTIONS = {
    function.__name__: function
    for function in (
        nms,
        batched_nms,
        soft_nms,
        deform_conv2d,
        roi_align,
        roi_pool,
        deform_psroi,
        sigmoid_focal_loss,
        ms_deform_attn,
    )
}
for _name, _function in FUNCTIONS.items():
    register(_name, "csrc", 1, usable)(_function)
