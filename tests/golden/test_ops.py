"""Operators against the reference kernels, each by every backend: golden cases ops_* of the operators that are in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskrcnn_benchmark.layers import ops
from tests.golden.common import golden_cases, load_case

BOTH = pytest.mark.parametrize("backend", ["torchvision", "torch"])


def assert_near(found: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    """Within ``tolerance`` of the largest value of ``expected``."""
    worst = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
    assert found.shape == expected.shape, name
    assert worst <= tolerance, f"{name}: {float(worst):.2e} of the largest value, more than {tolerance}"


@BOTH
@pytest.mark.parametrize("path", golden_cases("dap", "ops_nms*"))
def test_nms(path: Path, backend: str) -> None:
    _, t = load_case(path)
    checked = 0
    with ops.use_backend(backend):
        for name, expected in t.items():
            rule, _, percent = name.replace("_gt", "").rpartition("_keep_")
            if name.endswith("_ge") or not rule:  # >= is the rule of the reference's CPU kernel; ours is that of CUDA
                continue
            plus_one, threshold = rule.startswith("legacy"), int(percent) / 100
            sort = "index" if plus_one else "score"
            if rule in ("legacy", "standard"):
                found = ops.nms(t["boxes"], t["scores"], threshold, plus_one, sort)
            else:
                found = ops.batched_nms(t["boxes"], t["scores"], t["labels"], threshold, plus_one, sort)
            assert torch.equal(found, expected), name
            checked += 1
    assert checked


@BOTH
@pytest.mark.parametrize("path", golden_cases("dap", "ops_roi*"))
def test_roi_align(path: Path, backend: str) -> None:
    case, t = load_case(path)
    outputs = [name for name in t if name.startswith("align_") and "_out_" in name]
    assert outputs
    for name in outputs:
        kind, size, ratio = name.replace("align_aligned", "aligned").split("_out_")[0], *name.split("_")[-2:]
        input = t["input"].clone().requires_grad_()
        height, width = (int(side) for side in size.split("x"))
        with ops.use_backend(backend):
            out = ops.roi_align(
                input, t["rois"], (height, width), case["spatial_scale"], int(ratio[1:]), kind == "aligned"
            )
        assert_near(out, t[name], 1e-5, name)
        gradient = name.replace("_out_", "_grad_")
        if gradient in t:
            out.backward(t[name.replace("_out_", "_gout_")])
            assert_near(input.grad, t[gradient], 1e-5, gradient)


@BOTH
@pytest.mark.parametrize("path", golden_cases("dap", "ops_dcn*"))
def test_deform_conv2d(path: Path, backend: str) -> None:
    case, t = load_case(path)
    for version, names in (
        ("v1", ("input", "offset", "weight")),
        ("v2", ("input", "offset", "mask", "weight", "bias")),
    ):
        leaf = {name: t[name].clone().requires_grad_() for name in names}
        with ops.use_backend(backend):
            out = ops.deform_conv2d(
                leaf["input"],
                leaf["offset"],
                leaf.get("mask"),
                leaf["weight"],
                leaf.get("bias"),
                case["stride"],
                case["padding"],
                case["dilation"],
            )
        out.backward(t["gout"])
        assert_near(out, t[f"{version}_out"], 1e-4, f"{version}_out")
        for name in names:
            assert_near(leaf[name].grad, t[f"{version}_grad_{name}"], 1e-4, f"{version}_grad_{name}")


@pytest.mark.parametrize("path", golden_cases("dap", "ops_msda*"))
def test_ms_deform_attn(path: Path) -> None:
    _, t = load_case(path)
    names = ("value", "sampling_locations", "attention_weights")
    leaf = {name: t[name].clone().requires_grad_() for name in names}
    sizes = t["spatial_shapes"].prod(1)
    out = ops.ms_deform_attn(
        leaf["value"],
        t["spatial_shapes"],
        sizes.cumsum(0) - sizes,
        leaf["sampling_locations"],
        leaf["attention_weights"],
    )
    out.backward(t["gout"])
    assert_near(out, t["out"], 1e-4, "out")
    for name in names:
        assert_near(leaf[name].grad, t[f"grad_{name}"], 1e-4, name)
