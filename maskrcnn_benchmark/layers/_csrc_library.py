"""The compiled operators torch.ops.maskrcnn_benchmark.*: their shapes, gradients and precision under autocast.

Imported by ``_csrc_ops`` only, after the objects are loaded. Schemas are in ``csrc/schemas.cpp``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "maskrcnn_benchmark"
DEVICES = ("cpu", "cuda")  # that have kernels
IN_ORDER = ("sigmoid_focal_loss",)  # operators whose gradients are not sums
_ops = torch.ops.maskrcnn_benchmark

# Shapes. Maps (N, C, H, W) and gradients of maps and of weights come in channels_last memory order.


def _map(like: Tensor, n: int, c: int, h: int, w: int, dtype: torch.dtype | None = None) -> Tensor:
    return like.new_empty((n, h, w, c), dtype=dtype).permute(0, 3, 1, 2)


def _like(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape)


def _fake(name: str) -> Any:
    return torch.library.register_fake(f"{NAMESPACE}::{name}")


def _some(boxes: Tensor) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@_fake("nms")
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, plus_one: bool) -> Tensor:
    return _some(boxes)


@_fake("batched_nms")
def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, plus_one: bool) -> Tensor:
    return _some(boxes)


@_fake("soft_nms")
def _(boxes: Tensor, scores: Tensor, score_threshold: float, sigma: float) -> tuple[Tensor, Tensor]:
    kept = _some(boxes)
    return kept, scores.new_empty(kept.shape)


@_fake("roi_align")
def _(input: Tensor, rois: Tensor, scale: float, ph: int, pw: int, ratio: int, aligned: bool) -> Tensor:
    return _map(input, rois.shape[0], input.shape[1], ph, pw)


@_fake("roi_align_backward")
def _(
    grad: Tensor,
    rois: Tensor,
    scale: float,
    ph: int,
    pw: int,
    ratio: int,
    aligned: bool,
    n: int,
    c: int,
    h: int,
    w: int,
) -> Tensor:
    return _map(grad, n, c, h, w)


@_fake("roi_pool")
def _(input: Tensor, rois: Tensor, scale: float, ph: int, pw: int) -> tuple[Tensor, Tensor]:
    size = (rois.shape[0], input.shape[1], ph, pw)
    return _map(input, *size), _map(input, *size, dtype=torch.int32)


@_fake("roi_pool_backward")
def _(grad: Tensor, argmax: Tensor, rois: Tensor, n: int, c: int, h: int, w: int) -> Tensor:
    return _map(grad, n, c, h, w)


@_fake("deform_psroi")
def _(input: Tensor, rois: Tensor, trans: Tensor | None, scale: float, channels: int, *settings: Any) -> Tensor:
    return input.new_empty(rois.shape[0], channels, settings[1], settings[1])


@_fake("deform_psroi_backward")
def _(grad: Tensor, input: Tensor, rois: Tensor, trans: Tensor | None, *settings: Any) -> tuple[Tensor, Tensor]:
    return _like(input), input.new_empty(0) if trans is None else _like(trans)


@_fake("deform_conv2d")
def _(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    return _map(input, input.shape[0], weight.shape[0], offset.shape[2], offset.shape[3])


@_fake("deform_conv2d_backward")
def _(
    grad: Tensor, input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_mask = input.new_empty(0) if mask is None else _like(mask)
    return _map(input, *input.shape), _like(offset), d_mask, _map(weight, *weight.shape)


@_fake("sigmoid_focal_loss")
def _(logits: Tensor, targets: Tensor, gamma: float, alpha: float) -> Tensor:
    return _like(logits)


@_fake("sigmoid_focal_loss_backward")
def _(grad: Tensor, logits: Tensor, targets: Tensor, gamma: float, alpha: float) -> Tensor:
    return _like(logits)


@_fake("ms_deform_attn")
def _(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@_fake("ms_deform_attn_backward")
def _(
    grad: Tensor, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(value), _like(locations), _like(weights)


# Gradients: what each backward operator needs is kept, and settings get none.


def _differentiable(name: str, keep: Callable[..., None], backward: Callable[..., Sequence[Tensor | None]]) -> None:
    def run(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if name not in IN_ORDER:
            _check_order(name, grads[0])
        found = backward(ctx, grads[0])
        return (*found, *[None] * (ctx.count - len(found)))

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.count = len(inputs)
        keep(ctx, inputs, output)

    torch.library.register_autograd(f"{NAMESPACE}::{name}", run, setup_context=setup)


def _check_order(name: str, grad: Tensor) -> None:
    """torch's rule for sums in changing order: where results must repeat they are an error, or a warning."""
    if grad.device.type != "cpu" and torch.are_deterministic_algorithms_enabled():
        text = f"the gradient of {name} is summed in changing order on {grad.device.type}; on the CPU it is not"
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(text)
        warnings.warn(text, stacklevel=2)


def _keep_roi_align(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, rois, *ctx.settings = inputs
    ctx.save_for_backward(rois)
    ctx.shape = input.shape


def _roi_align_backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
    return (_ops.roi_align_backward(grad, *ctx.saved_tensors, *ctx.settings, *ctx.shape),)


def _keep_roi_pool(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], inputs[1])
    ctx.shape = inputs[0].shape
    ctx.mark_non_differentiable(output[1])


def _roi_pool_backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
    return (_ops.roi_pool_backward(grad, *ctx.saved_tensors, *ctx.shape),)


def _keep_psroi(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, rois, trans, *ctx.settings = inputs
    ctx.save_for_backward(input, rois, trans)


def _psroi_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # to be read once, for activation checkpointing
    d_input, d_trans = _ops.deform_psroi_backward(grad, *saved, *ctx.settings)
    return d_input, None, None if saved[2] is None else d_trans


def _keep_conv(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, mask, weight, bias, *ctx.settings = inputs
    ctx.save_for_backward(input, offset, mask, weight)
    ctx.bias_type = None if bias is None else bias.dtype


def _conv_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # to be read once, for activation checkpointing
    d_input, d_offset, d_mask, d_weight = _ops.deform_conv2d_backward(grad, *saved, *ctx.settings)
    d_bias = None if ctx.bias_type is None else grad.sum((0, 2, 3)).to(ctx.bias_type)
    return d_input, d_offset, None if saved[2] is None else d_mask, d_weight, d_bias


def _keep_focal(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, targets, *ctx.settings = inputs
    ctx.save_for_backward(logits, targets)


def _focal_backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
    return (_ops.sigmoid_focal_loss_backward(grad, *ctx.saved_tensors, *ctx.settings),)


def _keep_attention(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _attention_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    d_value, d_locations, d_weights = _ops.ms_deform_attn_backward(grad, *ctx.saved_tensors)
    return d_value, None, None, d_locations, d_weights


_differentiable("roi_align", _keep_roi_align, _roi_align_backward)
_differentiable("roi_pool", _keep_roi_pool, _roi_pool_backward)
_differentiable("deform_psroi", _keep_psroi, _psroi_backward)
_differentiable("deform_conv2d", _keep_conv, _conv_backward)
_differentiable("sigmoid_focal_loss", _keep_focal, _focal_backward)
_differentiable("ms_deform_attn", _keep_attention, _attention_backward)

NAMES = (
    "nms",
    "batched_nms",
    "soft_nms",
    "roi_align",
    "roi_pool",
    "deform_psroi",
    "deform_conv2d",
    "sigmoid_focal_loss",
    "ms_deform_attn",
)

# Under autocast they compute in float32, as the kernels of maskrcnn-benchmark did.
for _name in NAMES:
    for _device in DEVICES:
        torch.library.register_autocast(f"{NAMESPACE}::{_name}", _device, torch.float32)
