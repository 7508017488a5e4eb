"""Operators by torchvision (``torchvision.ops``). Imported by ``backends`` only, and only where torchvision works."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from maskrcnn_benchmark.layers._torch_nms import nms_by_label
from maskrcnn_benchmark.layers._torch_regions import check_pictures
from maskrcnn_benchmark.layers.backends import register

Pair = tuple[int, int]
AFTER_TORCH = {"cpu": 20, "": 10}  # its CPU kernels are slower than the row gathers of _torch_ops (benchmarks/ops.py)

torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # a torchvision of another torch fails here, not later


@register("nms", "torchvision", 10)
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, plus_one: bool) -> Tensor:
    """x2 + 1, y2 + 1 turn standard areas into the "+1" ones.

    The threshold is rounded as the IoU is: the CPU kernel would compare a float32 IoU of 0.6 with a double 0.6.
    """
    if plus_one:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + 1), dim=1)
    kept: Tensor = torchvision.ops.nms(boxes, scores, float(torch.tensor(iou_threshold, dtype=boxes.dtype)))
    return kept


@register("batched_nms", "torchvision", 10)
def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, plus_one: bool) -> Tensor:
    return nms_by_label(nms, boxes, scores, labels, iou_threshold, plus_one)


@register("deform_conv2d", "torchvision", AFTER_TORCH)
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
    out: Tensor = torchvision.ops.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)
    return out


@register("roi_align", "torchvision", AFTER_TORCH)
def roi_align(
    input: Tensor, rois: Tensor, output_size: Pair, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    check_pictures(rois, len(input))
    out: Tensor = torchvision.ops.roi_align(input, rois, output_size, spatial_scale, sampling_ratio, aligned)
    return out


@register("roi_pool", "torchvision", 10)
def roi_pool(input: Tensor, rois: Tensor, output_size: Pair, spatial_scale: float) -> Tensor:
    check_pictures(rois, len(input))
    out: Tensor = torchvision.ops.roi_pool(input, rois, output_size, spatial_scale)
    return out
