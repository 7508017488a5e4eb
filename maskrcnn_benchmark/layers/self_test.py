"""A short comparison of a backend with the operators in torch alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from maskrcnn_benchmark.layers import _torch_nms, _torch_ops, _torch_regions

TOLERANCE = 1e-4  # of the largest value
PURE: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        _torch_nms.nms,
        _torch_nms.batched_nms,
        _torch_nms.soft_nms,
        _torch_ops.deform_conv2d,
        _torch_ops.roi_align,
        _torch_ops.ms_deform_attn,
        _torch_ops.sigmoid_focal_loss,
        _torch_regions.roi_pool,
        _torch_regions.deform_psroi,
    )
}
DIFFERENTIABLE: dict[str, tuple[int, ...]] = {  # places of the arguments
    "deform_conv2d": (0, 1, 2, 3, 4),
    "roi_align": (0,),
    "roi_pool": (0,),
    "deform_psroi": (0, 2),
    "sigmoid_focal_loss": (0,),
    "ms_deform_attn": (0, 3, 4),
}


def failures(functions: Mapping[str, Callable[..., Any]], device: torch.device) -> list[str]:
    """Names of the operators that fail, or whose results or gradients differ from those of the pure path.

    This may run inside a network, at its first use of an operator. The mode of the network is not for the tensors here,
    and neither is what its hooks do with tensors that are kept for the backward pass (activation checkpointing).
    """
    with torch.inference_mode(False), saved_tensors_hooks(_as_it_is, _as_it_is):
        return [name for name in PURE if name in functions and not _same(functions[name], name, device)]


def _same(function: Callable[..., Any], name: str, device: torch.device) -> bool:
    try:
        with torch.autocast(device.type, enabled=False):
            found = _run(function, name, device)
        expected = _run(PURE[name], name, torch.device("cpu"))
    except RuntimeError:  # what a kernel that does not fit this torch or this GPU raises
        return False
    return len(found) == len(expected) and all(_close(a.cpu(), b) for a, b in zip(found, expected, strict=True))


def _run(function: Callable[..., Any], name: str, device: torch.device) -> list[Tensor]:
    """Results and gradients."""
    args = [x.to(device, copy=True) if isinstance(x, Tensor) else x for x in _arguments(name)]
    leaves = [args[i].requires_grad_() for i in DIFFERENTIABLE.get(name, ())]
    with torch.enable_grad():
        out = function(*args)
        if not leaves:
            return [x.sort().values for x in out] if isinstance(out, tuple) else [out.sort().values]
        slope = torch.linspace(-1, 1, out.numel(), device=device).view(out.shape)
        return [out.detach(), *torch.autograd.grad(out, leaves, slope)]


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    scale = expected.abs().max() if expected.is_floating_point() else 0
    return bool(((found - expected).abs() <= TOLERANCE * scale).all())


def _arguments(name: str) -> tuple[Any, ...]:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random)

    corner = draw(40, 2) * 10
    boxes = torch.cat((corner, corner + draw(40, 2) * 10), dim=1)
    rois = torch.cat((torch.arange(40.0)[:, None] % 2, boxes), dim=1)[:6]
    image = draw(2, 18, 7, 9)
    levels = torch.tensor([[4, 5], [2, 3]])
    return {
        "nms": (boxes, draw(40), 0.4, True),
        "batched_nms": (boxes, draw(40), torch.arange(40) % 3, 0.4, False),
        "soft_nms": (boxes, draw(40), 0.2, 0.5),
        "deform_conv2d": (
            *(image, draw(2, 36, 7, 9) * 4 - 2, draw(2, 18, 7, 9), draw(4, 9, 3, 3), draw(4)),
            *((1, 1), (1, 1), (1, 1)),
        ),
        "roi_align": (image, rois, (3, 2), 0.5, 0, True),
        "roi_pool": (image, rois, (3, 2), 0.5),
        "deform_psroi": (image, rois, draw(6, 4, 2, 2), 0.5, 2, 3, 3, 2, 2, 0.1),
        "sigmoid_focal_loss": (draw(9, 5) * 8 - 4, torch.arange(9) % 7 - 1, 2.0, 0.25),
        "ms_deform_attn": (
            *(draw(2, 26, 3, 18), levels, torch.tensor([0, 20])),
            *(draw(2, 4, 3, 2, 4, 2) * 1.4 - 0.2, draw(2, 4, 3, 2, 4)),
        ),
    }[name]
