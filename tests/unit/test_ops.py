"""Operators of detection: every backend gives the same numbers, on ordinary and on awkward inputs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from maskrcnn_benchmark.layers import _torch_ops, ops

BACKENDS = sorted(ops.available_backends("nms"))
BOTH = pytest.mark.parametrize("backend", BACKENDS)
ON_EACH = {op: pytest.mark.parametrize("backend", ops.available_backends(op)) for op in ops.operators()}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random_boxes(count: int, whole: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    corner, side = torch.rand(count, 2) * 60, torch.rand(count, 2) * 40
    boxes = torch.cat((corner, corner + side), dim=1)
    return (boxes.round() if whole else boxes), torch.rand(count), torch.randint(0, 4, (count,))


def greedy_nms(boxes: Tensor, scores: Tensor, labels: Tensor | None, threshold: float, plus_one: bool) -> list[int]:
    """The definition, box by box."""
    extra = float(plus_one)
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        for k in kept:
            side = torch.minimum(boxes[i, 2:], boxes[k, 2:]) - torch.maximum(boxes[i, :2], boxes[k, :2]) + extra
            inter = side.clamp(min=0).prod()
            areas = [(boxes[j, 2:] - boxes[j, :2] + extra).prod() for j in (i, k)]
            if (labels is None or labels[i] == labels[k]) and inter / (areas[0] + areas[1] - inter) > threshold:
                break
        else:
            kept.append(i)
    return kept


@BOTH
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 0.7])
@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_nms_is_the_greedy_one(backend: str, threshold: float, plus_one: bool, whole: bool) -> None:
    """Whole pixels make many overlaps that equal the threshold, and rounded scores make ties."""
    boxes, scores, labels = random_boxes(60, whole)
    scores = scores.mul(20).round()
    with ops.use_backend(backend):
        plain = ops.nms(boxes, scores, threshold, plus_one)
        aware = ops.batched_nms(boxes, scores, labels, threshold, plus_one, sort="index")
    assert plain.tolist() == greedy_nms(boxes, scores, None, threshold, plus_one)
    assert aware.tolist() == sorted(greedy_nms(boxes, scores, labels, threshold, plus_one))


@BOTH
def test_nms_threshold_is_a_float32(backend: str) -> None:
    """An IoU of exactly 3/5 is not above 0.6, although float32 rounds 3/5 up."""
    boxes = torch.tensor([[0.0, 0, 4, 1], [1, 0, 5, 1]])
    with ops.use_backend(backend):
        assert ops.nms(boxes, torch.tensor([1.0, 0.5]), 0.6).tolist() == [0, 1]


@BOTH
def test_nms_in_blocks(backend: str) -> None:
    boxes, scores, _ = random_boxes(1300)
    boxes[:, :2] *= 20
    boxes[:, 2:] = boxes[:, :2] + torch.rand(1300, 2) * 300
    with ops.use_backend(backend):
        kept = ops.nms(boxes, scores, 0.5, plus_one=True, sort="index")
    with ops.use_backend("torch"):
        assert torch.equal(kept, ops.nms(boxes, scores, 0.5, plus_one=True, sort="index"))
    assert 512 < len(kept) < 1300


@BOTH
def test_nms_of_nothing_and_of_half_precision(backend: str) -> None:
    with ops.use_backend(backend):
        assert ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5).dtype == torch.int64
        assert len(ops.batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), 0.5)) == 0
        boxes, scores, _ = random_boxes(50, whole=True)
        kept = ops.nms(boxes.bfloat16(), scores.bfloat16(), 0.5)
        assert torch.equal(kept, ops.nms(boxes.bfloat16().float(), scores.bfloat16().float(), 0.5))


DEFORM_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no mask, no bias": {"mask": False, "bias": False},
    "strided": {"stride": 2},
    "uneven": {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2), "kernel": (2, 3)},
    "groups": {"groups": 2, "offset_groups": 1},
    "offset groups": {"groups": 1, "offset_groups": 3},
    "both": {"groups": 3, "offset_groups": 2},
    "far offsets": {"reach": 30.0},
}


def deform_inputs(
    n: int = 2,
    size: tuple[int, int] = (7, 9),
    kernel: tuple[int, int] = (3, 3),
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    offset_groups: int = 1,
    mask: bool = True,
    bias: bool = True,
    reach: float = 2.0,
    channels: int = 6,
) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
    """Tensors in the order of the call, and the settings."""
    settings = {"stride": stride, "padding": padding, "dilation": dilation}
    weight = torch.randn(6, channels // groups, *kernel)
    shape = F.conv2d(torch.zeros(n, channels, *size), weight, groups=groups, **settings).shape
    taps = kernel[0] * kernel[1] * offset_groups
    tensors = {
        "input": torch.randn(n, channels, *size),
        "offset": torch.randn(n, 2 * taps, *shape[2:]) * reach,
        "mask": torch.rand(n, taps, *shape[2:]) if mask else None,
        "weight": weight,
        "bias": torch.randn(6) if bias else None,
    }
    return tensors, settings


def run_all(function: Callable[..., Tensor], leaves: dict[str, Tensor | None]) -> dict[str, dict[str, Tensor]]:
    """Output and gradients of each backend."""
    found = {}
    for backend in BACKENDS:
        mine = {k: None if v is None else v.detach().clone().requires_grad_() for k, v in leaves.items()}
        with ops.use_backend(backend):
            out = function(*mine.values())
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        found[backend] = {"output": out.detach()} | {k: v.grad for k, v in mine.items() if v is not None}
    return found


def assert_same(found: dict[str, dict[str, Tensor]]) -> None:
    for name, expected in found["torch"].items():
        scale = expected.abs().max().clamp(min=1e-6)
        for backend in BACKENDS:
            assert (found[backend][name] - expected).abs().max() <= 1e-5 * scale, (backend, name)


@pytest.mark.parametrize("case", DEFORM_CASES.values(), ids=DEFORM_CASES.keys())
def test_deform_conv2d_backends_agree(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, settings = deform_inputs(**case)
    assert_same(run_all(lambda *args: ops.deform_conv2d(*args, **settings), tensors))


@BOTH
def test_deform_conv2d_without_offsets_is_a_convolution(backend: str) -> None:
    tensors, settings = deform_inputs(stride=2, groups=2)
    tensors["offset"].zero_()
    tensors["mask"].fill_(1)
    with ops.use_backend(backend):
        out = ops.deform_conv2d(*tensors.values(), **settings)
    expected = F.conv2d(tensors["input"], tensors["weight"], tensors["bias"], groups=2, **settings)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_deform_conv2d_in_blocks(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map of more cells than one block holds."""
    monkeypatch.setattr(_torch_ops, "COLUMN_BYTES", 1)
    monkeypatch.setattr(_torch_ops, "TRAIN_COLUMN_BYTES", 1)
    tensors, settings = deform_inputs(size=(20, 30))
    if training:
        assert_same(run_all(lambda *args: ops.deform_conv2d(*args, **settings), tensors))
    found = {}
    for backend in BACKENDS:
        with ops.use_backend(backend):
            found[backend] = {"output": ops.deform_conv2d(*tensors.values(), **settings)}
    assert_same(found)


@BOTH
def test_flat_offset_reads_a_larger_map_as_flat_memory(backend: str) -> None:
    tensors, _ = deform_inputs(size=(4, 5))
    large, large_mask = torch.randn(2, 18, 8, 9), torch.rand(2, 9, 8, 9)
    for i in range(2):
        tensors["offset"][i] = large[i].flatten()[: 18 * 20].view(18, 4, 5)
        tensors["mask"][i] = large_mask[i].flatten()[: 9 * 20].view(9, 4, 5)
    rest = (tensors["weight"], tensors["bias"])
    with ops.use_backend(backend):
        expected = ops.deform_conv2d(*tensors.values(), padding=1)
        for memory in (torch.contiguous_format, torch.channels_last):
            maps = (large.contiguous(memory_format=memory), large_mask.contiguous(memory_format=memory))
            found = ops.deform_conv2d(tensors["input"], *maps, *rest, padding=1, flat_offset=True)
            torch.testing.assert_close(found, expected)


@BOTH
def test_inputs_in_any_memory_order(backend: str) -> None:
    tensors, settings = deform_inputs()
    with ops.use_backend(backend):
        expected = ops.deform_conv2d(*tensors.values(), **settings)
        for change in (
            lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t,
            lambda t: torch.stack((t, t), dim=-1)[..., 0],
        ):
            torch.testing.assert_close(ops.deform_conv2d(*map(change, tensors.values()), **settings), expected)
        rois = torch.tensor([[0, 1.0, 2, 6, 5], [1, 0, 0, 8, 6]])
        twice = torch.stack((tensors["input"],) * 2, dim=-1)[..., 0]
        torch.testing.assert_close(ops.roi_align(twice, rois, 2, 1.0), ops.roi_align(tensors["input"], rois, 2, 1.0))


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(backend: str, dtype: torch.dtype) -> None:
    tensors, settings = deform_inputs()
    half = [t.to(dtype) for t in tensors.values()]
    with ops.use_backend(backend):
        out = ops.deform_conv2d(*half, **settings)
        assert out.dtype == dtype
        assert torch.equal(out, ops.deform_conv2d(*(t.float() for t in half), **settings).to(dtype))
        rois = torch.tensor([[0, 1.0, 2, 6, 5]])
        assert ops.roi_align(half[0], rois, 2, 1.0).dtype == dtype


@BOTH
def test_autocast_does_not_lower_the_precision(backend: str) -> None:
    tensors, settings = deform_inputs()
    with ops.use_backend(backend):
        expected = ops.deform_conv2d(*tensors.values(), **settings)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(ops.deform_conv2d(*tensors.values(), **settings), expected)


@BOTH
def test_empty_batches_and_no_regions(backend: str) -> None:
    tensors, settings = deform_inputs(n=0)
    image = torch.randn(1, 6, 7, 9, requires_grad=True)
    with ops.use_backend(backend):
        assert ops.deform_conv2d(*tensors.values(), **settings).shape == (0, 6, 7, 9)
        out = ops.roi_align(image, torch.zeros(0, 5), (2, 3), 0.5)
    assert out.shape == (0, 6, 2, 3)
    out.sum().backward()
    assert image.grad.abs().sum() == 0


ROIS = torch.tensor(
    [
        [0, 2.0, 3, 17, 21],
        [1, 0, 0, 39, 29],
        [1, -5, -7, 4, 3],  # over the corner
        [0, 60, 60, 80, 80],  # outside
        [0, 9, 9, 9, 9],  # of no size
        [1, 20, 10, 12, 4],  # inverted
        [0, 1, 1, 38, 3],
    ]
)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_roi_align_backends_agree(aligned: bool, ratio: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch_ops, "MAX_SAMPLES", 500)
    image = {"input": torch.randn(2, 3, int(30 * scale) + 1, int(40 * scale) + 2)}
    assert_same(run_all(lambda input: ops.roi_align(input, ROIS, (3, 2), scale, ratio, aligned), image))


def attention_inputs(queries: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shapes = torch.tensor([[6, 8], [3, 4]])
    sizes = shapes.prod(1)
    value = torch.randn(2, int(sizes.sum()), 3, 4, dtype=torch.float64)
    locations = torch.rand(2, queries, 3, 2, 4, 2, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(2, queries, 3, 2, 4, dtype=torch.float64)
    return value, shapes, sizes.cumsum(0) - sizes, locations, weights


@ON_EACH["ms_deform_attn"]
def test_ms_deform_attn_is_a_sum_of_grid_samples(backend: str) -> None:
    value, shapes, starts, locations, weights = attention_inputs()
    expected = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    for level, (height, width) in enumerate(shapes.tolist()):
        part = value[:, starts[level] : starts[level] + height * width].permute(0, 2, 3, 1)
        grid = locations[:, :, :, level].transpose(1, 2).flatten(0, 1) * 2 - 1
        samples = F.grid_sample(part.reshape(6, 4, height, width), grid, align_corners=False).view(2, 3, 4, 5, 4)
        expected += (samples * weights[:, :, :, level].transpose(1, 2).unsqueeze(2)).sum(-1)
    with ops.use_backend(backend):
        found = ops.ms_deform_attn(value, shapes, starts, locations, weights)
    torch.testing.assert_close(found, expected.flatten(1, 2).transpose(1, 2))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "torchvision"])
def test_gradients_are_those_of_the_forward_pass(backend: str) -> None:
    tensors, settings = deform_inputs(size=(4, 5), groups=2, offset_groups=1, stride=2)
    leaves = [t.double().requires_grad_() for t in tensors.values()]
    value, shapes, starts, locations, weights = attention_inputs(queries=2)
    image = torch.randn(2, 18, 6, 7, dtype=torch.float64, requires_grad=True)
    attention = [t.requires_grad_() for t in (value, locations, weights)]
    rois, trans = ROIS[:3].double(), torch.randn(3, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    calls: list[tuple[Callable[..., Tensor], Any]] = [
        (lambda *args: ops.deform_conv2d(*args, **settings), leaves),
        (lambda input: ops.roi_align(input, rois, 2, 0.2, 2), image),
        (lambda input: ops.roi_pool(input, rois, 2, 0.2), image),
        (lambda input, trans: ops.deform_psroi(input, rois, trans, 0.2, 2, 3, 3, 2, 2, 0.1), (image, trans)),
        (lambda logits: ops.sigmoid_focal_loss(logits, torch.tensor([0, 1, -1, 3])), logits),
        (lambda v, where, w: ops.ms_deform_attn(v, shapes, starts, where, w), attention),
    ]
    with ops.use_backend(backend):
        for function, inputs in calls:
            assert gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "torchvision"])
def test_offsets_that_are_not_finite_stay_inside_the_map(backend: str) -> None:
    tensors, settings = deform_inputs(size=(4, 5), n=1)
    tensors["offset"][0, 0, 0] = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e30, -1e30])
    with ops.use_backend(backend):
        out = ops.deform_conv2d(*tensors.values(), **settings)
    assert out[0, 0].isnan().sum() == (backend == "torch")  # the kernels take a sample at NaN for one outside


SMALL = torch.zeros(1, 6, 7, 9)
BAD_CALLS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "scores": (lambda: ops.nms(torch.zeros(3, 4), torch.zeros(2), 0.5), r"boxes \(N, 4\) and scores \(N,\)"),
    "labels": (lambda: ops.batched_nms(torch.zeros(2, 4), torch.zeros(2), torch.zeros(3), 0.5), r"must be \(2,\)"),
    "offset map": (
        lambda: ops.deform_conv2d(SMALL, torch.zeros(1, 18, 8, 9), None, torch.zeros(6, 6, 3, 3), padding=1),
        r"must be \(1, 18, 7, 9\), got \(1, 18, 8, 9\); flat_offset",
    ),
    "offset channels": (
        lambda: ops.deform_conv2d(SMALL, torch.zeros(1, 17, 7, 9), None, torch.zeros(6, 6, 3, 3), padding=1),
        "multiple of 18 channels",
    ),
    "mask": (
        lambda: ops.deform_conv2d(
            SMALL, torch.zeros(1, 18, 7, 9), torch.zeros(1, 8, 7, 9), torch.zeros(6, 6, 3, 3), padding=1
        ),
        r"mask must be \(1, 9, 7, 9\)",
    ),
    "weight": (
        lambda: ops.deform_conv2d(SMALL, torch.zeros(1, 18, 7, 9), None, torch.zeros(6, 4, 3, 3), padding=1),
        "does not fit 6 input channels",
    ),
    "small offset map": (
        lambda: ops.deform_conv2d(
            SMALL, torch.zeros(1, 18, 2, 2), None, torch.zeros(6, 6, 3, 3), padding=1, flat_offset=True
        ),
        "flat_offset needs offset of a map of at least",
    ),
    "kernel": (lambda: ops.deform_conv2d(SMALL, SMALL, None, torch.zeros(6, 6, 9, 9)), "too small for a kernel"),
    "rois": (lambda: ops.roi_align(SMALL, torch.zeros(2, 4), 7, 1.0), r"rois \(R, 5\)"),
    "picture": (lambda: ops.roi_align(SMALL, torch.full((1, 5), 3.0), 7, 1.0), "picture 3 of a batch of 1"),
    "levels": (
        lambda: ops.ms_deform_attn(torch.zeros(1, 5, 1, 1), torch.tensor([[2, 3]]), *attention_parts()),
        "(do|does) not fit into 5 rows",
    ),
}


def attention_parts() -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor([0]), torch.zeros(1, 1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 1)


@pytest.mark.parametrize(("call", "message"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_shapes_are_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):  # kernels that check values raise the latter
        call()


def test_backends_are_listed_and_chosen() -> None:
    assert [name for name in ops.available_backends("nms") if name != "csrc"] == ["torchvision", "torch"]
    assert ops.backend("deform_conv2d") == ("csrc" if "csrc" in BACKENDS else "torch")
    with ops.use_backend("torchvision"):
        assert ops.backend("deform_conv2d") == "torchvision"
        assert ops.backend("ms_deform_attn") == ops.available_backends("ms_deform_attn")[0]  # torchvision has none
    with (
        pytest.raises(ValueError, match=f"no backend called 'cudnn' here; there are {', '.join(BACKENDS)}"),
        ops.use_backend("cudnn"),
    ):
        pass
    with pytest.raises(ValueError, match="no operator called 'hard_nms'"):
        ops.backend("hard_nms")


def test_a_new_backend_runs_first_without_a_change_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from maskrcnn_benchmark.layers import backends

    monkeypatch.setitem(backends._table, "nms", list(backends._table["nms"]))
    backends.register("nms", "compiled", 0)(lambda boxes, scores, threshold, plus_one: torch.tensor([1]))
    assert ops.backend("nms") == "compiled"
    assert ops.nms(torch.zeros(2, 4), torch.zeros(2), 0.5).tolist() == [1]


@pytest.mark.parametrize(
    ("breakage", "warning"),
    [
        ("sys.modules['torchvision'] = None", ""),
        ("sys.modules['torchvision'] = type(sys)('torchvision')", "operators of torchvision are set aside: "),  # no ops
    ],
    ids=["absent", "broken"],
)
def test_without_torchvision(breakage: str, warning: str) -> None:
    code = f"""
import sys
{breakage}
import torch
from maskrcnn_benchmark.layers import ops
assert "torchvision" not in ops.available_backends("nms"), ops.available_backends("nms")
with ops.use_backend("torch"):
    print(ops.nms(torch.tensor([[0., 0, 9, 9], [0, 0, 9, 8]]), torch.tensor([.1, .9]), .5).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[1]\n", done.stderr
    assert done.stderr.startswith(warning)
    assert done.stderr.count("\n") == bool(warning)
