"""Operators against the reference kernels, each by every backend that is here: golden cases ops_* and msda_*."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn_benchmark.layers import ops
from tests.golden.common import fill, golden_cases, load_case

ON_EACH = {op: pytest.mark.parametrize("backend", ops.available_backends(op)) for op in ops.operators()}


def assert_near(found: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    """Within ``tolerance`` of the largest value of ``expected``."""
    worst = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
    assert found.shape == expected.shape, name
    assert worst <= tolerance, f"{name}: {float(worst):.2e} of the largest value, more than {tolerance}"


@ON_EACH["nms"]
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


@ON_EACH["roi_align"]
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


@ON_EACH["deform_conv2d"]
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


@ON_EACH["soft_nms"]
@pytest.mark.parametrize("path", golden_cases("dap", "ops_nms*", but=["ops_nms_ties"]))
def test_soft_nms(path: Path, backend: str) -> None:
    _, t = load_case(path)
    names = [name for name in t if name.startswith("soft_") and name.endswith("_inds")]
    assert names
    for name in names:
        sigma, threshold = (int(part[1:]) for part in name.split("_")[1:3])
        with ops.use_backend(backend):
            kept, scores = ops.soft_nms(t["boxes"], t["scores"], threshold / 1000, sigma / 100)
        assert torch.equal(kept, t[name]), name
        torch.testing.assert_close(scores, t[name.replace("_inds", "_scores")], rtol=1e-5, atol=0)


@ON_EACH["roi_pool"]
@pytest.mark.parametrize("path", golden_cases("dap", "ops_roi*"))
def test_roi_pool(path: Path, backend: str) -> None:
    case, t = load_case(path)
    outputs = [name for name in t if name.startswith("pool_out_")]
    assert outputs
    for name in outputs:
        size = name.removeprefix("pool_out_")
        height, width = (int(side) for side in size.split("x"))
        input = t["input"].clone().requires_grad_()
        with ops.use_backend(backend):
            out = ops.roi_pool(input, t["rois"], (height, width), case["spatial_scale"])
        out.backward(t[f"align_gout_{size}_s2"])
        assert torch.equal(out, t[name]), name
        assert_near(input.grad, t[f"pool_grad_{size}"], 1e-5, f"pool_grad_{size}")


@ON_EACH["deform_psroi"]
@pytest.mark.parametrize("path", golden_cases("dap", "ops_psroi*"))
def test_deform_psroi(path: Path, backend: str) -> None:
    case, t = load_case(path)
    sizes = [case[key] for key in ("out_channels", "group_size", "out_size", "part_size", "sample_per_part")]
    for kind in ("notrans", "trans"):
        input = t["input"].clone().requires_grad_()
        trans = t["trans"].clone().requires_grad_() if kind == "trans" else None
        with ops.use_backend(backend):
            out = ops.deform_psroi(input, t["rois"], trans, case["spatial_scale"], *sizes, case["trans_std"])
        out.backward(t["gout"])
        assert_near(out, t[f"{kind}_out"], 1e-4, f"{kind}_out")
        assert_near(input.grad, t[f"{kind}_grad_input"], 1e-4, f"{kind}_grad_input")
        if trans is not None:
            assert_near(trans.grad, t["trans_grad_trans"], 1e-4, "trans_grad_trans")


@ON_EACH["sigmoid_focal_loss"]
@pytest.mark.parametrize("path", golden_cases("dap", "ops_focal*"))
def test_sigmoid_focal_loss(path: Path, backend: str) -> None:
    case, t = load_case(path)
    logits = t["logits"].clone().requires_grad_()
    with ops.use_backend(backend):
        loss = ops.sigmoid_focal_loss(logits, t["targets"], case["gamma"], case["alpha"])
    loss.backward(t["gout"])
    torch.testing.assert_close(loss, t["loss"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits.grad, t["grad"], rtol=1e-4, atol=1e-5)


def attend(
    backend: str, shapes: Tensor, value: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    sizes = shapes.prod(1)
    with ops.use_backend(backend):
        return ops.ms_deform_attn(value, shapes, sizes.cumsum(0) - sizes, sampling_locations, attention_weights)


@ON_EACH["ms_deform_attn"]
@pytest.mark.parametrize("path", [*golden_cases("dap", "ops_msda*"), *golden_cases("decola", "msda_core*")])
def test_ms_deform_attn(path: Path, backend: str) -> None:
    case, t = load_case(path)
    shapes = t["spatial_shapes"] if "spatial_shapes" in t else torch.tensor(case["spatial_shapes_HW"])
    names = ("value", "sampling_locations", "attention_weights")
    leaf = {name: t[name].clone().requires_grad_() for name in names}
    out = attend(backend, shapes, **leaf)
    expected, upstream = (t[k] for k in (("out", "gout") if "out" in t else ("output", "grad_output")))
    out.backward(upstream)
    assert_near(out, expected, 1e-4, "out")
    for name in names:
        assert_near(leaf[name].grad, t[f"grad_{name}"], 1e-4, name)


@ON_EACH["ms_deform_attn"]
@pytest.mark.parametrize("path", golden_cases("decola", "msda_module*"))
def test_ms_deform_attn_between_projections(path: Path, backend: str) -> None:
    """The operator where a transformer has it: projections around it, points relative to places and to boxes."""
    case, t = load_case(path)
    heads, points, width = 8, 4, t["query"].shape[-1]
    shapes = torch.tensor(case["spatial_shapes_HW"])
    rows = {"sampling_offsets": heads * len(shapes) * points * 2, "attention_weights": heads * len(shapes) * points}

    def project(name: str, x: Tensor) -> Tensor:
        n = rows.get(name, width)
        weight, bias = (
            fill.values(f"{name}.{k}", s, case["seed"]) for k, s in (("weight", (n, width)), ("bias", (n,)))
        )
        return F.linear(x, torch.from_numpy(weight), torch.from_numpy(bias))

    value = project("value_proj", t["input"])
    offsets = project("sampling_offsets", t["query"]).unflatten(-1, (heads, len(shapes), points, 2))
    weights = project("attention_weights", t["query"]).unflatten(-1, (heads, -1)).softmax(-1)
    weights = weights.unflatten(-1, (len(shapes), points))
    place, box = (t[f"ref_points_{n}"][:, :, None, :, None] for n in (2, 4))
    padded = value.masked_fill(t["padding_mask"].bool()[..., None], 0)
    for name, of, locations in (
        ("out_ref2_masked", padded, place + offsets / shapes.flip(1)[:, None]),
        ("out_ref4", value, box[..., :2] + offsets / points * box[..., 2:] * 0.5),
    ):
        out = attend(backend, shapes, of.unflatten(-1, (heads, -1)), locations, weights)
        assert_near(project("output_proj", out), t[name], case["tolerance"], name)
