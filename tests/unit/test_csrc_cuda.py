"""The CUDA kernels: on a GPU where one is at hand, and without nvcc as loops on the CPU (see csrc/cuda/launch.cuh).

The loops prove the arithmetic and the indexing of every kernel and the code around them, but not what only a GPU does:
that threads run at the same time, sums over a warp, atomic additions.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.cpp_extension import include_paths, library_paths

from maskrcnn_benchmark.layers import _torch_nms, _torch_ops, _torch_regions
from tests.conftest import golden_cases, load_case

CSRC = Path(__file__).resolve().parents[2] / "csrc"
CUDA_SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
COMPILERS, PATIENCE = 2, 1800  # compilers at once, and seconds for each
LOOPS = "maskrcnn_benchmark_loops"  # namespace of the operators that run the kernels as loops
FLAGS = ["-std=c++20", "-DTORCH_TARGET_VERSION=0x020b000000000000", *(f"-I{p}" for p in include_paths())]


class Kernels(NamedTuple):
    ops: Any  # torch.ops.<namespace>
    device: str

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Run an operator with its tensors on the device; results come back to the CPU."""
        there = [x.to(self.device) if isinstance(x, Tensor) else x for x in arguments]
        found = getattr(self.ops, name)(*there)
        return found.cpu() if isinstance(found, Tensor) else tuple(x.cpu() for x in found)


def compile_all(jobs: Sequence[list[str]]) -> None:
    with ThreadPoolExecutor(COMPILERS) as pool:
        for done in pool.map(lambda job: subprocess.run(job, capture_output=True, text=True, timeout=PATIENCE), jobs):
            assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("loops")
    python = f"-I{sysconfig.get_path('include')}"
    sources = {folder / f"{p.stem}.o": p for p in [CSRC / "schemas.cpp", *CUDA_SOURCES]}
    options = ["-O1", "-fPIC", "-ffp-contract=off", f"-Dmaskrcnn_benchmark={LOOPS}", "-w", python, *FLAGS]
    compile_all([["g++", *options, "-xc++", "-c", str(source), "-o", str(to)] for to, source in sources.items()])
    libraries = [*(f"-L{p}" for p in library_paths()), "-ltorch", "-ltorch_cpu", "-lc10"]
    compile_all([["g++", "-shared", *map(str, sources), *libraries, "-o", str(folder / "loops.so")]])
    torch.ops.load_library(folder / "loops.so")
    return Kernels(getattr(torch.ops, LOOPS), "cpu")


@pytest.fixture(scope="module")
def gpu() -> Kernels:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    pytest.importorskip("maskrcnn_benchmark._C", reason="needs the compiled operators")
    pytest.importorskip("maskrcnn_benchmark._C_cuda", reason="needs the compiled CUDA operators")
    return Kernels(torch.ops.maskrcnn_benchmark, "cuda")


@pytest.fixture(params=[pytest.param("loops", marks=pytest.mark.full), "gpu"])
def run(request: pytest.FixtureRequest) -> Kernels:
    torch.manual_seed(0)
    kernels: Kernels = request.getfixturevalue(request.param)
    return kernels


def assert_near(found: Tensor, expected: Tensor, tolerance: float, name: str = "") -> None:
    """Within ``tolerance`` of the largest value of ``expected``."""
    assert found.shape == expected.shape, name
    scale = expected.abs().max().clamp(min=1e-12) if expected.numel() else 1
    away = (found - expected).abs()
    assert torch.all(away <= tolerance * scale), f"{name}: {away.max()} of {scale}"


@pytest.mark.full
def test_sources_compile_for_sm_90(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    options = ["-O3", "-gencode=arch=compute_90,code=sm_90", "-DUSE_CUDA", "-Xcompiler=-fPIC", "-w", *FLAGS]
    compile_all([[nvcc, *options, "-c", str(p), "-o", str(tmp_path / f"{p.stem}.o")] for p in CUDA_SOURCES])


@pytest.mark.parametrize("path", golden_cases("dap", "ops_nms*"))
def test_nms_golden(run: Kernels, path: Path) -> None:
    _, t = load_case(path)
    for name, expected in t.items():
        rule, _, percent = name.replace("_gt", "").rpartition("_keep_")
        if name.endswith("_ge") or not rule:
            continue
        arguments = (int(percent) / 100, rule.startswith("legacy"))
        if rule in ("legacy", "standard"):
            found = run("nms", t["boxes"], t["scores"], *arguments)
        else:
            found = run("batched_nms", t["boxes"], t["scores"], t["labels"], *arguments)
        assert t["scores"][found].diff().le(0).all()
        assert torch.equal(found.sort().values, expected.sort().values), name


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("count", [0, 1, 64, 65, 1500])
def test_nms_of_any_number_of_boxes(run: Kernels, count: int, plus_one: bool) -> None:
    corner = torch.rand(count, 2) * 300
    boxes = torch.cat((corner, corner + torch.rand(count, 2) * 60), 1).round()
    scores, labels = torch.rand(count).mul(50).round(), torch.randint(0, 3, (count,))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        found = run("nms", boxes.to(dtype), scores.to(dtype), 0.3, plus_one)
        assert found.dtype == torch.int64
        if count == 0:
            assert len(found) == 0
            continue
        wide = (boxes.to(dtype).double() if dtype == torch.float64 else boxes.to(dtype).float(), scores.to(dtype))
        assert torch.equal(found, _torch_nms.nms(*wide, 0.3, plus_one)), dtype
        aware = _torch_nms.batched_nms(*wide, labels, 0.3, plus_one)
        assert torch.equal(run("batched_nms", *wide, labels, 0.3, plus_one).sort().values, aware.sort().values)


@pytest.mark.parametrize("path", golden_cases("dap", "ops_roi*"))
def test_roi_golden(run: Kernels, path: Path) -> None:
    case, t = load_case(path)
    input, rois, scale = t["input"], t["rois"], case["spatial_scale"]
    for name in [name for name in t if "_out_" in name]:
        height, width = (int(side) for side in name.split("_")[-1 if "pool" in name else -2].split("x"))
        if name.startswith("pool"):
            out, argmax = run("roi_pool", input, rois, scale, height, width)
            assert torch.equal(out, t[name])
            assert torch.equal(argmax, t[name.replace("out", "argmax")])
            gradient, upstream = name.replace("out", "grad"), t[f"align_gout_{height}x{width}_s2"]
            found = run("roi_pool_backward", upstream, argmax, rois, *input.shape)
        else:
            arguments = (scale, height, width, int(name.split("_s")[-1]), "aligned" in name)
            assert_near(run("roi_align", input, rois, *arguments), t[name], 1e-5, name)
            gradient = name.replace("_out_", "_grad_")
            if gradient not in t:
                continue
            upstream = t[name.replace("_out_", "_gout_")]
            found = run("roi_align_backward", upstream, rois, *arguments, *input.shape)
        assert_near(found, t[gradient], 1e-5, gradient)
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_against_torch(run: Kernels, aligned: bool, ratio: int) -> None:
    corner = torch.rand(40, 2, dtype=torch.float64) * 50 - 10
    boxes = torch.cat((corner, corner + torch.rand(40, 2, dtype=torch.float64) * 40 - 5), 1)
    rois = torch.cat((torch.randint(0, 2, (40, 1)).double(), boxes), 1)
    input = torch.randn(2, 5, 17, 23, dtype=torch.float64, requires_grad=True)
    expected = _torch_ops.roi_align(input, rois, (3, 4), 0.5, ratio, aligned)
    upstream = torch.randn_like(expected)
    (slope,) = torch.autograd.grad(expected, input, upstream)
    for memory in (torch.contiguous_format, torch.channels_last):
        given = input.detach().contiguous(memory_format=memory)
        assert_near(run("roi_align", given, rois, 0.5, 3, 4, ratio, aligned), expected.detach(), 1e-12)
    found = run("roi_align_backward", upstream, rois, 0.5, 3, 4, ratio, aligned, *input.shape)
    assert_near(found, slope, 1e-12)


def test_regions_of_no_picture_give_nan(run: Kernels) -> None:
    input = torch.ones(1, 2, 5, 5)
    rois = torch.tensor([[0, 0, 0, 4, 4], [1, 0, 0, 4, 4], [-1, 0, 0, 4, 4], [0, torch.inf, 0, 4, 4], [torch.nan] * 5])
    out = run("roi_align", input, rois, 1.0, 2, 2, 0, False)
    assert out[0].eq(1).all()
    assert out[1:].isnan().all()
    slope = run("roi_align_backward", torch.ones_like(out), rois, 1.0, 2, 2, 0, False, *input.shape)
    assert slope.sum() == pytest.approx(8)
    out, argmax = run("roi_pool", input, rois[:3], 1.0, 2, 2)
    assert out[0].eq(1).all()
    assert out[1:].isnan().all()
    assert argmax[1:].eq(-1).all()
    out = run("deform_psroi", input, rois[:3], None, 1.0, 2, 1, 2, 2, 2, 0.1)
    assert out[0].eq(1).all()
    assert out[1:].isnan().all()


@pytest.mark.parametrize("path", golden_cases("dap", "ops_dcn*"))
def test_deform_conv2d_golden(run: Kernels, path: Path) -> None:
    case, t = load_case(path)
    settings = [[case[name]] * 2 for name in ("stride", "padding", "dilation")]
    for version in ("v1", "v2"):
        mask, bias = (t["mask"], t["bias"]) if version == "v2" else (None, None)
        out = run("deform_conv2d", t["input"], t["offset"], mask, t["weight"], bias, *settings)
        assert_near(out, t[f"{version}_out"], 1e-4, version)
        assert out.is_contiguous(memory_format=torch.channels_last)
        found = run("deform_conv2d_backward", t["gout"], t["input"], t["offset"], mask, t["weight"], *settings)
        for name, slope in zip(("input", "offset", "mask", "weight"), found, strict=True):
            if name == "mask" and mask is None:
                assert slope.numel() == 0
            else:
                assert_near(slope, t[f"{version}_grad_{name}"], 1e-4, name)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (2, 3), (3, 2)])
def test_deform_conv2d_against_torch(run: Kernels, groups: int, offset_groups: int, flat: bool) -> None:
    """Uneven settings, all memory orders, far offsets; ``flat``: the offset is a part of a larger map."""

    def plane(channels: int) -> Tensor:
        if not flat:
            return torch.randn(2, channels, 8, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
        return torch.randn(2, channels * 77, dtype=torch.float64)[:, : channels * 40].view(2, channels, 8, 5)

    input, weight = torch.randn(2, 6, 9, 11).double(), torch.randn(6, 6 // groups, 2, 3).double()
    offset, mask, bias = plane(12 * offset_groups) * 3, plane(6 * offset_groups), torch.randn(6).double()
    settings = ([1, 2], [0, 1], [1, 2])
    leaves = [x.clone().requires_grad_() for x in (input, offset, mask, weight)]
    expected = _torch_ops.deform_conv2d(*leaves, bias, *map(tuple, settings))  # type: ignore[arg-type]
    upstream = torch.randn_like(expected)
    slopes = torch.autograd.grad(expected, leaves, upstream)
    assert_near(run("deform_conv2d", input, offset, mask, weight, bias, *settings), expected.detach(), 1e-12)
    found = run("deform_conv2d_backward", upstream, input, offset, mask, weight, *settings)
    for name, ours, theirs in zip(("input", "offset", "mask", "weight"), found, slopes, strict=True):
        assert_near(ours, theirs, 1e-12, name)


@pytest.mark.parametrize("path", golden_cases("dap", "ops_psroi*"))
def test_deform_psroi_golden(run: Kernels, path: Path) -> None:
    case, t = load_case(path)
    names = ("spatial_scale", "out_channels", "group_size", "out_size", "part_size", "sample_per_part", "trans_std")
    settings = [case[name] for name in names]
    for kind, trans in (("notrans", None), ("trans", t["trans"])):
        assert_near(run("deform_psroi", t["input"], t["rois"], trans, *settings), t[f"{kind}_out"], 1e-4, kind)
        found = run("deform_psroi_backward", t["gout"], t["input"], t["rois"], trans, *settings)
        assert_near(found[0], t[f"{kind}_grad_input"], 1e-4, kind)
        if trans is None:
            assert found[1].numel() == 0
        else:
            assert_near(found[1], t["trans_grad_trans"], 1e-4)


@pytest.mark.parametrize("shifted", [False, True])
def test_deform_psroi_against_torch(run: Kernels, shifted: bool) -> None:
    """Regions within and across the border, parts that do not match the cells."""
    input = torch.randn(2, 54, 9, 12, dtype=torch.float64, requires_grad=True)
    corner = torch.rand(9, 2, dtype=torch.float64) * 60 - 10
    boxes = torch.cat((corner, corner + torch.rand(9, 2, dtype=torch.float64) * 50), 1)
    rois = torch.cat((torch.randint(0, 2, (9, 1)).double(), boxes), 1)
    trans = torch.randn(9, 4, 2, 2, dtype=torch.float64, requires_grad=True) if shifted else None
    settings = (0.2, 6, 3, 4, 2, 3, 0.1)
    leaves = [x for x in (input, trans) if x is not None]
    expected = _torch_regions.deform_psroi(input, rois, trans, *settings)
    upstream = torch.randn_like(expected)
    slopes = torch.autograd.grad(expected, leaves, upstream)
    inputs = (input.detach(), rois, None if trans is None else trans.detach())
    assert_near(run("deform_psroi", *inputs, *settings), expected.detach(), 1e-12)
    found = run("deform_psroi_backward", upstream, *inputs, *settings)
    for ours, theirs in zip(found, slopes, strict=False):
        assert_near(ours, theirs, 1e-12)


@pytest.mark.parametrize("path", golden_cases("dap", "ops_focal*"))
def test_focal_loss_golden(run: Kernels, path: Path) -> None:
    case, t = load_case(path)
    settings = (case["gamma"], case["alpha"])
    loss = run("sigmoid_focal_loss", t["logits"], t["targets"], *settings)
    slope = run("sigmoid_focal_loss_backward", t["gout"], t["logits"], t["targets"], *settings)
    torch.testing.assert_close(loss, t["loss"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(slope, t["grad"], atol=1e-5, rtol=1e-4)


def test_focal_loss_of_extreme_logits_is_finite(run: Kernels) -> None:
    logits = torch.tensor([[-300.0, -90, -20, 20, 90, 300]]).repeat(3, 1)
    targets = torch.tensor([4, 1, -1])
    loss = run("sigmoid_focal_loss", logits, targets, 2.0, 0.25)
    slope = run("sigmoid_focal_loss_backward", torch.ones_like(loss), logits, targets, 2.0, 0.25)
    assert loss.isfinite().all()
    assert slope.isfinite().all()
    assert loss[2].eq(0).all()
    assert slope[2].eq(0).all()


@pytest.mark.parametrize("path", [*golden_cases("dap", "ops_msda*"), *golden_cases("decola", "msda_core*")])
def test_ms_deform_attn_golden(run: Kernels, path: Path) -> None:
    case, t = load_case(path)
    shapes = t["spatial_shapes"] if "spatial_shapes" in t else torch.tensor(case["spatial_shapes_HW"])
    expected, upstream = (t[k] for k in (("out", "gout") if "out" in t else ("output", "grad_output")))
    sizes = shapes.prod(1)
    inputs = (t["value"], shapes, sizes.cumsum(0) - sizes)
    sampling = (t["sampling_locations"], t["attention_weights"])
    assert_near(run("ms_deform_attn", *inputs, *sampling), expected, 1e-4)
    found = run("ms_deform_attn_backward", upstream, *inputs, *sampling)
    for name, slope in zip(("value", "sampling_locations", "attention_weights"), found, strict=True):
        assert_near(slope, t[f"grad_{name}"], 1e-4, name)


def attention_inputs(dtype: torch.dtype) -> tuple[Tensor, ...]:
    shapes = torch.tensor([[6, 8], [3, 4], [1, 1]])
    sizes = shapes.prod(1)
    value = torch.randn(2, int(sizes.sum()) + 2, 3, 40, dtype=dtype)
    locations = torch.rand(2, 7, 3, 3, 4, 2, dtype=dtype) * 1.4 - 0.2
    return value, shapes, sizes.cumsum(0) - sizes, locations, torch.rand(2, 7, 3, 3, 4, dtype=dtype)


def test_ms_deform_attn_against_torch(run: Kernels) -> None:
    value, shapes, starts, locations, weights = attention_inputs(torch.float64)
    leaves = [x.clone().requires_grad_() for x in (value, locations, weights)]
    expected = _torch_ops.ms_deform_attn(leaves[0], shapes, starts, *leaves[1:])
    upstream = torch.randn_like(expected)
    slopes = torch.autograd.grad(expected, leaves, upstream)
    assert_near(run("ms_deform_attn", value, shapes, starts, locations, weights), expected.detach(), 1e-12)
    found = run("ms_deform_attn_backward", upstream, value, shapes, starts, locations, weights)
    for ours, theirs in zip(found, slopes, strict=True):
        assert_near(ours, theirs, 1e-12)


def test_levels_that_do_not_fit_give_nan(run: Kernels) -> None:
    value, shapes, starts, locations, weights = attention_inputs(torch.float32)
    out = run("ms_deform_attn", value[:, :10].contiguous(), shapes, starts, locations, weights)
    assert out.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(run: Kernels, dtype: torch.dtype) -> None:
    """Against the same operator on the same numbers in float32; only what is stored is rounded."""
    rounding = torch.finfo(dtype).eps
    rois = torch.tensor([[0, 1.0, 2, 6, 5], [1, 0, 0, 8, 7]])
    image, upstream = torch.randn(2, 6, 9, 11).to(dtype), torch.randn(2, 6, 2, 2).to(dtype)
    offset, mask = torch.randn(2, 18, 9, 11).to(dtype), torch.rand(2, 9, 9, 11).to(dtype)
    weight, above = torch.randn(4, 6, 3, 3).to(dtype), torch.randn(2, 4, 9, 11).to(dtype)
    settings = ([1, 1], [1, 1], [1, 1])
    value, shapes, starts, locations, factors = attention_inputs(torch.float32)
    attention = (value.to(dtype), shapes, starts, locations, factors)
    calls: list[tuple[Any, ...]] = [
        ("roi_align", image, rois, 1.0, 2, 2, 0, False),
        ("roi_align_backward", upstream, rois, 1.0, 2, 2, 0, False, *image.shape),
        ("roi_pool", image, rois, 1.0, 2, 2),
        ("deform_conv2d", image, offset, mask, weight, None, *settings),
        ("deform_conv2d_backward", above, image, offset, mask, weight, *settings),
        ("deform_psroi", image, rois, None, 1.0, 6, 1, 2, 2, 2, 0.1),
        ("sigmoid_focal_loss", image[0, 0], torch.arange(9), 2.0, 0.25),
        ("ms_deform_attn", *attention),
        ("ms_deform_attn_backward", torch.randn(2, 7, 120).to(dtype), *attention),
    ]
    for name, *arguments in calls:
        found = run(name, *arguments)
        expected = run(name, *(x.float() if isinstance(x, Tensor) and x.dtype == dtype else x for x in arguments))
        for ours, theirs in zip(*((x,) if isinstance(x, Tensor) else x for x in (found, expected)), strict=True):
            assert_near(ours.float(), theirs.float(), 3 * rounding, name)
        first = found if isinstance(found, Tensor) else found[0]
        assert first.dtype == dtype, name


def test_empty_inputs(run: Kernels) -> None:
    image, none = torch.randn(1, 6, 7, 9), torch.zeros(0, 5)
    assert run("roi_align", image, none, 1.0, 2, 3, 0, False).shape == (0, 6, 2, 3)
    slope = run("roi_align_backward", torch.zeros(0, 6, 2, 3), none, 1.0, 2, 3, 0, False, *image.shape)
    assert slope.shape == image.shape
    assert slope.eq(0).all()
    assert run("roi_pool", image, none, 1.0, 2, 3)[1].shape == (0, 6, 2, 3)
    assert run("deform_psroi", image, none, None, 1.0, 6, 1, 2, 2, 2, 0.1).shape == (0, 6, 2, 2)
    assert run("sigmoid_focal_loss", torch.zeros(0, 4), torch.zeros(0).long(), 2.0, 0.25).shape == (0, 4)
    maps = (torch.zeros(0, 6, 7, 9), torch.zeros(0, 18, 7, 9), torch.zeros(0, 9, 7, 9), torch.randn(4, 6, 3, 3))
    settings = ([1, 1], [1, 1], [1, 1])
    assert run("deform_conv2d", *maps, None, *settings).shape == (0, 4, 7, 9)
    found = run("deform_conv2d_backward", torch.zeros(0, 4, 7, 9), *maps, *settings)
    assert [x.shape for x in found] == [x.shape for x in maps]
    assert found[3].eq(0).all()
    value, shapes, starts, locations, weights = attention_inputs(torch.float32)
    assert run("ms_deform_attn", value, shapes, starts, locations[:, :0], weights[:, :0]).shape == (2, 0, 120)


def test_bad_shapes_are_errors(run: Kernels) -> None:
    image, rois = torch.randn(1, 6, 7, 9), torch.zeros(2, 5)
    for message, name, *arguments in (
        ("boxes must be", "nms", torch.zeros(2, 5), torch.zeros(2), 0.5, False),
        ("labels must be", "batched_nms", torch.zeros(2, 4), torch.zeros(2), torch.zeros(3), 0.5, False),
        ("rois must be", "roi_align", image, rois[:, :4], 1.0, 2, 2, 0, False),
        ("the map must be", "roi_pool", image[0], rois, 1.0, 2, 2),
        ("must divide out_channels", "deform_psroi", image, rois, torch.zeros(2, 8, 2, 2), 1.0, 6, 1, 2, 2, 2, 0.1),
        ("targets", "sigmoid_focal_loss", torch.zeros(2, 3), torch.zeros(3).long(), 2.0, 0.25),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(name, *arguments)
    weight, settings = torch.randn(4, 6, 3, 3), ([1, 1], [1, 1], [1, 1])
    for message, size in (("the size of the output", (1, 18, 8, 9)), ("offset does not fit", (1, 17, 7, 9))):
        with pytest.raises(RuntimeError, match=message):
            run("deform_conv2d", image, torch.zeros(size), None, weight, None, *settings)
