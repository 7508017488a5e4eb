"""Operators of detection with several implementations behind one call (see ``backends``).

Every function checks its shapes, computes half precision in float32 and casts the result back. Boxes are xyxy in
pixels. ``plus_one`` counts both border pixels (width = x2 - x1 + 1), the convention of maskrcnn-benchmark.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from maskrcnn_benchmark.layers.backends import available_backends, backend, call, operators, use_backend

__all__ = [
    "available_backends",
    "backend",
    "batched_nms",
    "deform_conv2d",
    "deform_psroi",
    "ms_deform_attn",
    "nms",
    "operators",
    "roi_align",
    "roi_pool",
    "sigmoid_focal_loss",
    "soft_nms",
    "use_backend",
]

Order = Literal["score", "index"]
Pair = int | tuple[int, int]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, plus_one: bool = False, sort: Order = "score") -> Tensor:
    """Greedy non-maximum suppression; equal scores go in index order, IoU > threshold (in float32) suppresses.

    Args:
        boxes: (N, 4). scores: (N,).
        sort: "score" returns the best first, "index" in ascending index order.

    Returns:
        (M,) int64 indices of the boxes kept.
    """
    _check_boxes(boxes, scores)
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    boxes, scores = _precise(boxes.detach(), scores.detach())
    return _ordered(call("nms", boxes.device, boxes, scores, iou_threshold, plus_one), scores, sort)


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou_threshold: float,
    plus_one: bool = False,
    sort: Order = "score",
) -> Tensor:
    """:func:`nms` among boxes of equal label (N,) only; exact, no offsets are added to the boxes."""
    _check_boxes(boxes, scores)
    if labels.shape != scores.shape:
        raise ValueError(f"labels must be ({len(boxes)},), got {tuple(labels.shape)}")
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    boxes, scores = _precise(boxes.detach(), scores.detach())
    return _ordered(call("batched_nms", boxes.device, boxes, scores, labels, iou_threshold, plus_one), scores, sort)


def soft_nms(boxes: Tensor, scores: Tensor, score_threshold: float, sigma: float) -> tuple[Tensor, Tensor]:
    """Overlapping boxes lose score and are not dropped at once (https://arxiv.org/abs/1704.04503).

    The best box is selected and the scores of the others are multiplied by exp(-IoU^2 / sigma), IoU with both border
    pixels counted; those that fall below the threshold are dropped. Equal scores go in index order.

    Args:
        boxes: (N, 4). scores: (N,).

    Returns:
        (M,) int64 indices in the order selected, and (M,) the scores they had then.
    """
    _check_boxes(boxes, scores)
    dtype = scores.dtype
    boxes, scores = _precise(boxes.detach(), scores.detach())
    kept, decayed = call("soft_nms", boxes.device, boxes, scores, score_threshold, sigma)
    return kept, decayed.to(dtype)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    flat_offset: bool = False,
) -> Tensor:
    """Deformable convolution (https://arxiv.org/abs/1703.06211), modulated when ``mask`` is given (1811.11168).

    Args:
        input: (N, C, H, W); fastest in channels_last memory order, and so is ``weight``.
        offset: (N, G * 2 * K, Ho, Wo) pixels: channel (g * K + k) * 2 is dy, the next one dx of tap k.
        mask: (N, G * K, Ho, Wo) factor of each sample, or None.
        weight: (O, C / groups, Kh, Kw). bias: (O,).
        flat_offset: offset and mask belong to a larger map; the first values of each picture are read as if they had
            been written for this one. The CUDA kernel that FIBER and GLIP were trained with did so.

    Returns:
        (N, O, Ho, Wo); its memory may be in channels_last order.
    """
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    _check_deform_conv(input, weight, bias)
    size = tuple(
        (input.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    )
    if min(size) <= 0:
        raise ValueError(f"a map of {tuple(input.shape[2:])} is too small for a kernel of {tuple(weight.shape[2:])}")
    if flat_offset:
        offset = _flat(offset, size, "offset")
        mask = None if mask is None else _flat(mask, size, "mask")
    _check_offset(input, offset, mask, weight, size)
    dtype = input.dtype
    input, offset, weight = _precise(input, offset, weight)
    mask, bias = (None if x is None else x.to(input.dtype) for x in (mask, bias))
    out: Tensor = call("deform_conv2d", input.device, input, offset, mask, weight, bias, stride, padding, dilation)
    return out.to(dtype)


def roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: Pair,
    spatial_scale: float,
    sampling_ratio: int = 0,
    aligned: bool = False,
) -> Tensor:
    """Average of bilinear samples in each cell of each region (https://arxiv.org/abs/1703.06870).

    Args:
        input: (N, C, H, W).
        rois: (R, 5) picture number, x1, y1, x2, y2 in pixels of the picture; no gradient.
        sampling_ratio: samples per cell and axis; 0 means one per cell of the map.
        aligned: shift by half a pixel (detectron2); False is the first version (maskrcnn-benchmark).

    Returns:
        (R, C, Ph, Pw); its memory may be in channels_last order.
    """
    _check_rois(input, rois)
    if len(rois) == 0:
        return input.flatten()[:0].view(0, input.shape[1], *_pair(output_size))
    (full,) = _precise(input)
    rois = rois.detach().to(full.dtype)
    args = (_pair(output_size), spatial_scale, sampling_ratio, aligned)
    out: Tensor = call("roi_align", input.device, full, rois, *args)
    return out.to(input.dtype)


def roi_pool(input: Tensor, rois: Tensor, output_size: Pair, spatial_scale: float) -> Tensor:
    """The largest value in each cell of each region, whose corners are rounded to cells of the map (Fast R-CNN).

    Args:
        input: (N, C, H, W).
        rois: (R, 5) picture number, x1, y1, x2, y2 in pixels of the picture; no gradient.

    Returns:
        (R, C, Ph, Pw), 0 in cells outside of the map.
    """
    _check_rois(input, rois)
    (full,) = _precise(input)
    out: Tensor = call("roi_pool", input.device, full, rois.detach().to(full.dtype), _pair(output_size), spatial_scale)
    return out.to(input.dtype)


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
    """Deformable position-sensitive pooling of regions (https://arxiv.org/abs/1703.06211).

    Args:
        input: (N, out_channels * group_size^2, H, W).
        rois: (R, 5) picture number, x1, y1, x2, y2 in pixels of the picture; no gradient.
        trans: (R, 2 * classes, part_size, part_size) shifts in x and y of the parts of a region, None for no shifts.
        samples: Samples per cell and axis.
        trans_std: What the shifts are multiplied with, besides the size of the region.

    Returns:
        (R, out_channels, out_size, out_size).
    """
    _check_rois(input, rois)
    if input.shape[1] != out_channels * group_size**2:
        raise ValueError(f"input must have {out_channels * group_size**2} channels, got {input.shape[1]}")
    if trans is not None:
        classes = trans.shape[1] // 2 if trans.ndim == 4 else 0
        if trans.shape != (len(rois), 2 * classes, part_size, part_size) or not classes or out_channels % classes:
            raise ValueError(
                f"trans must be ({len(rois)}, 2 * classes, {part_size}, {part_size}) with a number of classes that "
                f"divides {out_channels}, got {tuple(trans.shape)}"
            )
    dtype = input.dtype
    (input,) = _precise(input)
    rois, trans = rois.detach().to(input.dtype), None if trans is None else trans.to(input.dtype)
    sizes = (out_channels, group_size, out_size, part_size, samples)
    out: Tensor = call("deform_psroi", input.device, input, rois, trans, spatial_scale, *sizes, trans_std)
    return out.to(dtype)


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Focal loss of a fixed list of classes (https://arxiv.org/abs/1708.02002).

    Args:
        logits: (N, C); column k - 1 is class k.
        targets: (N,) int64 from 1; 0 is background, a row of -1 costs nothing.

    Returns:
        (N, C).
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(f"sigmoid_focal_loss needs logits (N, C) and targets (N,), got {_shapes(logits, targets)}")
    (full,) = _precise(logits)
    out: Tensor = call("sigmoid_focal_loss", logits.device, full, targets, gamma, alpha)
    return out.to(logits.dtype)


def ms_deform_attn(
    value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """Multi-scale deformable attention (https://arxiv.org/abs/2010.04159): a weighted sum of bilinear samples.

    Args:
        value: (N, S, M, D) of all levels, level after level, row by row.
        spatial_shapes: (L, 2) int64 (h, w). level_start_index: (L,) int64.
        locations: (N, Q, M, L, P, 2) x, y in 0..1 of each level; pixel = location * size - 0.5, zeros outside.
        weights: (N, Q, M, L, P).

    Returns:
        (N, Q, M * D).
    """
    n, _, m, _ = value.shape
    levels = len(spatial_shapes)
    if locations.ndim != 6 or locations.shape[-1] != 2 or weights.shape != locations.shape[:-1]:
        raise ValueError(f"locations (N, Q, M, L, P, 2) and weights (N, Q, M, L, P), got {_shapes(locations, weights)}")
    if (locations.shape[0], *locations.shape[2:4]) != (n, m, levels):
        raise ValueError(f"locations {tuple(locations.shape)} do not fit value {tuple(value.shape)}, {levels} levels")
    dtype = value.dtype
    value, locations, weights = _precise(value, locations, weights)
    out: Tensor = call("ms_deform_attn", value.device, value, spatial_shapes, level_start_index, locations, weights)
    return out.to(dtype)


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _precise(*tensors: Tensor) -> tuple[Tensor, ...]:
    """float64 if any of them is, else float32."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return tuple(t.to(dtype) for t in tensors)


def _ordered(kept: Tensor, scores: Tensor, sort: Order) -> Tensor:
    kept = kept.sort().values
    if sort == "index":
        return kept
    return kept[scores[kept].argsort(descending=True, stable=True)]


def _flat(values: Tensor, size: tuple[int, ...], name: str) -> Tensor:
    channels, needed = values.shape[1], values.shape[1] * size[0] * size[1]
    flat = values.flatten(1)
    if flat.shape[1] < needed:
        raise ValueError(f"flat_offset needs {name} of a map of at least {size}, got {tuple(values.shape[2:])}")
    return flat[:, :needed].view(-1, channels, *size)


def _shapes(*tensors: Tensor) -> str:
    return " and ".join(str(tuple(t.shape)) for t in tensors)


def _check_boxes(boxes: Tensor, scores: Tensor) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise ValueError(f"nms needs boxes (N, 4) and scores (N,), got {_shapes(boxes, scores)}")


def _check_rois(input: Tensor, rois: Tensor) -> None:
    if input.ndim != 4 or rois.ndim != 2 or rois.shape[1] != 5:
        raise ValueError(f"regions need input (N, C, H, W) and rois (R, 5), got {_shapes(input, rois)}")


def _check_deform_conv(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if input.ndim != 4 or weight.ndim != 4:
        raise ValueError(f"deform_conv2d needs input (N, C, H, W) and a 4-d weight, got {_shapes(input, weight)}")
    if input.shape[1] % weight.shape[1] or weight.shape[0] % (input.shape[1] // weight.shape[1]):
        raise ValueError(f"weight {tuple(weight.shape)} does not fit {input.shape[1]} input channels in equal groups")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({len(weight)},), got {tuple(bias.shape)}")


def _check_offset(input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, size: tuple[int, ...]) -> None:
    taps = weight.shape[2] * weight.shape[3]
    groups, rest = divmod(offset.shape[1], 2 * taps)
    if rest or groups == 0 or input.shape[1] % groups:
        raise ValueError(
            f"offset must have a multiple of {2 * taps} channels whose count of groups divides {input.shape[1]}, "
            f"got {offset.shape[1]}"
        )
    wanted = (len(input), groups * 2 * taps, *size)
    if offset.shape != wanted:
        raise ValueError(f"offset must be {wanted}, got {tuple(offset.shape)}; flat_offset reads that of a larger map")
    if mask is not None and mask.shape != (len(input), groups * taps, *size):
        raise ValueError(f"mask must be {(len(input), groups * taps, *size)}, got {tuple(mask.shape)}")
