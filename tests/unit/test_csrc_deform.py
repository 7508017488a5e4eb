"""Compiled deformable convolution, deformable attention and focal loss: layouts, types, order of sums, gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from maskrcnn_benchmark.layers import ops
from maskrcnn_benchmark.layers.losses import class_focal_loss

pytestmark = pytest.mark.skipif(
    "csrc" not in ops.available_backends("deform_conv2d"), reason="the operators of csrc/ are not compiled"
)
SHAPES, STARTS = torch.tensor([[3, 4], [2, 1]]), torch.tensor([0, 12])
TARGETS = torch.tensor([0, 1, 4, -1, 2])


def library() -> Any:
    return torch.ops.maskrcnn_benchmark


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def convolution(
    n: int = 2,
    channels: int = 6,
    size: tuple[int, int] = (5, 7),
    outputs: int = 4,
    kernel: tuple[int, int] = (3, 3),
    settings: tuple[list[int], list[int], list[int]] = ([1, 1], [1, 1], [1, 1]),
    groups: int = 1,
    offset_groups: int = 1,
    masked: bool = True,
    dtype: torch.dtype = torch.float64,
) -> tuple[Any, ...]:
    """Arguments of deform_conv2d; offsets reach beyond the map."""
    stride, padding, dilation = settings
    cells = [
        (size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)
    ]  # of the output
    taps = kernel[0] * kernel[1]
    torch.manual_seed(0)
    return (
        torch.randn(n, channels, *size, dtype=dtype),
        torch.randn(n, offset_groups * 2 * taps, *cells, dtype=dtype) * 2,
        torch.rand(n, offset_groups * taps, *cells, dtype=dtype) if masked else None,
        torch.randn(outputs, channels // groups, *kernel, dtype=dtype),
        torch.randn(outputs, dtype=dtype) if masked else None,
        stride,
        padding,
        dilation,
    )


CONVOLUTIONS = {
    "plain": convolution(),
    "v1": convolution(masked=False),
    "uneven": convolution(kernel=(3, 2), settings=([2, 1], [1, 0], [1, 2])),
    "padded one way": convolution(kernel=(1, 3), settings=([1, 2], [0, 2], [2, 1])),
    "groups in offset groups": convolution(groups=6, outputs=6, offset_groups=2),
    "offset groups in groups": convolution(groups=2, offset_groups=6),
    "groups across offset groups": convolution(groups=2, offset_groups=3),
    "more channels than a slice": convolution(n=1, channels=70, outputs=37, size=(4, 3)),
}


def attention(queries: int = 3, depth: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Arguments of ms_deform_attn; some locations lie outside of the maps."""
    torch.manual_seed(0)
    return (
        torch.randn(2, 14, 2, depth, dtype=dtype),
        SHAPES,
        STARTS,
        torch.rand(2, queries, 2, 2, 3, 2, dtype=dtype) * 1.6 - 0.3,
        torch.rand(2, queries, 2, 2, 3, dtype=dtype),
    )


def logits(rows: int = 5, classes: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(rows, classes, dtype=dtype) * 3


def every_call(dtype: torch.dtype = torch.float64) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Name of a case -> (operator, arguments)."""
    cases: dict[str, tuple[str, tuple[Any, ...]]] = {
        name: ("deform_conv2d", _as(arguments, dtype)) for name, arguments in CONVOLUTIONS.items()
    }
    for depth in (3, 8, 40):
        cases[f"attention {depth}"] = ("ms_deform_attn", _as(attention(depth=depth), dtype))
    cases["focal"] = ("sigmoid_focal_loss", (logits(dtype=dtype), TARGETS, 1.5, 0.3))
    return cases


def _as(arguments: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments)


def leaves(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        x.detach().clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments
    )


def gradients(name: str, arguments: tuple[Any, ...]) -> list[Tensor]:
    """The result and the gradients of all floating inputs."""
    inputs = leaves(arguments)
    out = getattr(library(), name)(*inputs)
    wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, torch.linspace(-1, 1, out.numel()).view_as(out).to(out))]


EVERY = pytest.mark.parametrize("case", every_call())


@EVERY
def test_fits_into_torch(case: str) -> None:
    name, arguments = every_call()[case]
    torch.library.opcheck(getattr(library(), name).default, leaves(arguments))


@EVERY
def test_gradients_are_those_of_the_result(case: str) -> None:
    name, arguments = every_call()[case]
    if case.startswith("more"):
        pytest.skip("many numbers; compared with the pure path instead")
    assert torch.autograd.gradcheck(getattr(library(), name), leaves(arguments), atol=1e-5)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_is_that_of_the_pure_path(case: str) -> None:
    inputs, expected = leaves(CONVOLUTIONS[case]), leaves(CONVOLUTIONS[case])
    results = []
    for backend, arguments in (("csrc", inputs), ("torch", expected)):
        with ops.use_backend(backend):
            out = ops.deform_conv2d(*arguments[:5], *(tuple(x) for x in arguments[5:]))
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
        results.append([out.detach(), *(x.grad for x in arguments if isinstance(x, Tensor))])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("depth", [3, 16, 19, 40])
def test_attention_is_that_of_the_pure_path(depth: int) -> None:
    results = []
    for backend in ("csrc", "torch"):
        inputs = leaves(attention(queries=9, depth=depth))
        with ops.use_backend(backend):
            out = ops.ms_deform_attn(*inputs)
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
        results.append([out.detach(), *(inputs[i].grad for i in (0, 3, 4))])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [1, 7, 80])
def test_focal_loss_is_that_of_the_pure_path(classes: int, dtype: torch.dtype) -> None:
    targets = torch.arange(50) % (classes + 2) - 1
    results = []
    for function in (library().sigmoid_focal_loss, lambda x, t, gamma, alpha: class_focal_loss(x, t, alpha, gamma)):
        x = logits(50, classes, dtype).requires_grad_()
        out = function(x, targets, 2.0, 0.25)
        out.sum().backward()
        results.append((out.detach(), x.grad))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_focal_loss_of_extreme_logits_is_finite() -> None:
    x = torch.tensor([[500.0, -500.0, 0.0, 20.0]], requires_grad=True)
    loss = library().sigmoid_focal_loss(x, torch.tensor([2]), 2.0, 0.25)
    loss.sum().backward()
    torch.testing.assert_close(loss[0], torch.tensor([375.0, 125.0, 0.12997, 15.0]), rtol=1e-4, atol=0)
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], torch.tensor([0.75, -0.25, 0.2237, 0.75]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_not_a_number_is_not_hidden(gamma: float) -> None:
    x = torch.tensor([[float("nan"), 1.0], [float("nan"), float("nan")]])
    loss = library().sigmoid_focal_loss(x, torch.tensor([1, -1]), gamma, 0.25)
    assert loss.isnan().tolist() == [[True, False], [False, False]]  # an ignored row costs nothing


def test_samples_at_no_place_are_zero() -> None:
    for nowhere in (float("nan"), float("inf"), -float("inf"), 1e30, -1e30):
        x, offset, mask, weight, bias, *settings = convolution(dtype=torch.float32)
        out = library().deform_conv2d(x, torch.full_like(offset, nowhere), mask, weight, bias, *settings)
        assert torch.equal(out, bias[:, None, None].expand_as(out))
        value, *rest, locations, weights = attention(dtype=torch.float32)
        assert not library().ms_deform_attn(value, *rest, torch.full_like(locations, nowhere), weights).any()


@EVERY
def test_compiles_without_a_break(case: str) -> None:
    name, arguments = every_call(torch.float32)[case]
    operator = getattr(library(), name)

    def both(*inputs: Any) -> Tensor:
        return operator(*inputs) * 2

    torch.compiler.reset()
    inputs, expected = leaves(arguments), leaves(arguments)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for call, given in ((compiled, inputs), (both, expected)):
        call(*given).square().sum().backward()
    for found, wanted in zip(inputs, expected, strict=True):
        if isinstance(found, Tensor) and found.requires_grad:
            torch.testing.assert_close(found.grad, wanted.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@EVERY
def test_half_precision_is_summed_in_full(case: str, dtype: torch.dtype) -> None:
    name, arguments = every_call(dtype)[case]
    found, wanted = gradients(name, arguments), gradients(name, _as(arguments, torch.float32))
    for mine, full in zip(found, wanted, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, full.to(dtype), rtol=0.02, atol=0.02 * float(full.abs().max()))


@pytest.mark.parametrize("name", ["deform_conv2d", "ms_deform_attn", "sigmoid_focal_loss"])
def test_autocast_computes_in_float32(name: str) -> None:
    arguments = next(given for operator, given in every_call(torch.float32).values() if operator == name)
    expected = getattr(library(), name)(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        found = getattr(library(), name)(*_as(arguments, torch.bfloat16))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def strewn(x: Any) -> Any:
    """The same values, as every other number of a larger tensor whose first two dimensions are swapped."""
    if not isinstance(x, Tensor) or x.ndim < 2:
        return x
    return torch.stack((x, x), dim=-1).transpose(0, 1).contiguous().transpose(0, 1)[..., 1]


def channels_last(x: Any) -> Any:
    return x.contiguous(memory_format=torch.channels_last) if isinstance(x, Tensor) and x.ndim == 4 else x


@pytest.mark.parametrize("order", [strewn, channels_last])
@EVERY
def test_memory_order_of_inputs_does_not_matter(case: str, order: Callable[[Any], Any]) -> None:
    name, arguments = every_call(torch.float32)[case]
    expected = gradients(name, arguments)
    inputs = tuple(order(x.clone()) if isinstance(x, Tensor) else x for x in arguments)
    wanted = [x.requires_grad_() for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]
    out = getattr(library(), name)(*inputs)
    found = torch.autograd.grad(out, wanted, order(torch.linspace(-1, 1, out.numel()).view_as(out)))
    for mine, same in zip((out, *found), expected, strict=True):
        torch.testing.assert_close(mine, same, rtol=1e-5, atol=1e-5)


def test_offsets_of_a_larger_map_are_read_in_place() -> None:
    x, _, _, weight, bias, *_ = convolution(dtype=torch.float32)
    torch.manual_seed(1)
    offset, mask = torch.randn(2, 27, 10, 14).split((18, 9), dim=1)
    read = partial(ops.deform_conv2d, padding=1, flat_offset=True)
    results = []
    for backend in ("csrc", "torch"):
        inputs = leaves((x, offset, mask, weight, bias))
        with ops.use_backend(backend):
            out = read(*inputs)
        out.square().sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in inputs)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_nothing_in_nothing_out() -> None:
    for name, arguments in (
        ("deform_conv2d", convolution(n=0, dtype=torch.float32)),
        ("ms_deform_attn", attention(queries=0, dtype=torch.float32)),
        ("sigmoid_focal_loss", (logits(0, 4, torch.float32), TARGETS[:0], 2.0, 0.25)),
    ):
        out, *grads = gradients(name, arguments)
        assert out.numel() == 0
        assert not any(gradient.any() for gradient in grads)


@pytest.mark.parametrize("name", ["deform_conv2d", "ms_deform_attn", "sigmoid_focal_loss"])
def test_same_bits_at_every_run_and_any_number_of_threads(name: str) -> None:
    arguments = {
        "deform_conv2d": convolution(n=2, channels=80, size=(30, 41), outputs=48, dtype=torch.float32),
        "ms_deform_attn": attention(queries=400, depth=32, dtype=torch.float32),
        "sigmoid_focal_loss": (logits(3000, 20, torch.float32), torch.arange(3000) % 22 - 1, 2.0, 0.25),
    }[name]
    runs = []
    for threads in (1, 1, 2, 3):
        torch.set_num_threads(threads)
        runs.append(gradients(name, arguments))
    for run in runs[1:]:
        for found, first in zip(run, runs[0], strict=True):
            assert torch.equal(found, first)
