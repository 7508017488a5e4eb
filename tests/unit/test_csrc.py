"""The compiled operators: what torch asks of an operator, and that a build which does not work is no harm."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from maskrcnn_benchmark import mrb
from maskrcnn_benchmark.layers import backends, ops, self_test

BUILT = importlib.util.find_spec("maskrcnn_benchmark._C") is not None
needs_build = pytest.mark.skipif(not BUILT, reason="the operators of csrc/ are not compiled (MB_BUILD=cpu builds them)")
NAMES = list(self_test.PURE)
EACH = pytest.mark.parametrize("name", NAMES)


def call_of(name: str) -> tuple[Any, list[Any]]:
    """The compiled operator and arguments for it, those of the self-test."""
    args = list(self_test._arguments(name))
    if name in ("roi_align", "roi_pool"):
        image, rois, size, scale, *rest = args
        args = [image, rois, scale, *size, *rest]
    return getattr(torch.ops.maskrcnn_benchmark, name).default, args


def tensors_of(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def results(name: str, args: list[Any]) -> list[Tensor]:
    """Outputs and gradients of the compiled operator."""
    op, _ = call_of(name)
    leaves = [args[i].detach().requires_grad_() for i in self_test.DIFFERENTIABLE.get(name, ())]
    args = [
        leaves[self_test.DIFFERENTIABLE[name].index(i)] if i in self_test.DIFFERENTIABLE.get(name, ()) else x
        for i, x in enumerate(args)
    ]
    out = tensors_of(op(*args))
    found = [x.detach() for x in out]
    if leaves:
        slope = torch.linspace(-1, 1, out[0].numel(), dtype=out[0].dtype).view(out[0].shape)
        found += torch.autograd.grad(out[0], leaves, slope)
    return found


@pytest.fixture(autouse=True)
def _loaded() -> None:
    ops.operators()


@needs_build
def test_the_build_is_used() -> None:
    assert {ops.backend(name) for name in ops.operators()} == {"csrc"}
    assert set(ops.operators()) == set(NAMES)


@needs_build
@EACH
@pytest.mark.parametrize("differentiable", [False, True])
def test_torch_finds_nothing_wrong(name: str, differentiable: bool) -> None:
    op, args = call_of(name)
    for i in self_test.DIFFERENTIABLE.get(name, ()) if differentiable else ():
        args[i].requires_grad_()
    assert set(opcheck(op, tuple(args)).values()) == {"SUCCESS"}


@needs_build
@EACH
def test_compiles_to_one_graph(name: str) -> None:
    function, args = getattr(ops, name), self_test._arguments(name)
    torch._dynamo.reset()
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(*args)
    for a, b in zip(tensors_of(found), tensors_of(function(*args)), strict=True):
        assert torch.equal(a, b)


@needs_build
@EACH
def test_repeats_to_the_bit_at_any_number_of_threads(name: str) -> None:
    args, threads = call_of(name)[1], torch.get_num_threads()
    try:
        runs = []
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            runs.append(results(name, args))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def apart(tensor: Tensor) -> Tensor:
    return torch.stack((tensor, tensor), dim=-1)[..., 0]


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


@needs_build
@EACH
@pytest.mark.parametrize("change", [apart, channels_last])
def test_any_memory_order(name: str, change: Any) -> None:
    args = call_of(name)[1]
    changed = [change(x) if isinstance(x, Tensor) else x for x in args]
    for a, b in zip(results(name, args), results(name, changed), strict=True):
        assert torch.equal(a, b)


@needs_build
@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(name: str, dtype: torch.dtype) -> None:
    args = call_of(name)[1]
    half = [x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
    full = [x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in half]
    op, _ = call_of(name)
    for a, b in zip(tensors_of(op(*half)), tensors_of(op(*full)), strict=True):
        assert torch.equal(a, b.to(a.dtype))
        assert a.dtype == (dtype if b.is_floating_point() else b.dtype)


@needs_build
@EACH
def test_autocast_computes_in_float32(name: str) -> None:
    op, args = call_of(name)
    expected = tensors_of(op(*args))
    half = [x.bfloat16() if i in self_test.DIFFERENTIABLE.get(name, ()) else x for i, x in enumerate(args)]
    with torch.autocast("cpu", torch.bfloat16):
        for a, b in zip(tensors_of(op(*args)), expected, strict=True):
            assert torch.equal(a, b)
        assert all(x.dtype != torch.bfloat16 for x in tensors_of(op(*half)))


EMPTY: dict[str, list[Any]] = {
    "nms": [torch.zeros(0, 4), torch.zeros(0), 0.5, False],
    "batched_nms": [torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), 0.5, False],
    "soft_nms": [torch.zeros(0, 4), torch.zeros(0), 0.1, 0.5],
    "roi_align": [torch.zeros(1, 3, 4, 4), torch.zeros(0, 5), 1.0, 2, 2, 0, False],
    "roi_pool": [torch.zeros(1, 3, 4, 4), torch.zeros(0, 5), 1.0, 2, 2],
    "deform_psroi": [torch.zeros(1, 8, 4, 4), torch.zeros(0, 5), torch.zeros(0, 2, 2, 2), 1.0, 2, 2, 2, 2, 2, 0.1],
    "deform_conv2d": [
        *(torch.zeros(0, 3, 4, 4), torch.zeros(0, 18, 2, 2), torch.zeros(0, 9, 2, 2)),
        *(torch.zeros(5, 3, 3, 3), torch.zeros(5), [1, 1], [0, 0], [1, 1]),
    ],
    "sigmoid_focal_loss": [torch.zeros(0, 3), torch.zeros(0).long(), 2.0, 0.25],
    "ms_deform_attn": [
        *(torch.zeros(1, 4, 2, 3), torch.tensor([[2, 2]]), torch.tensor([0])),
        *(torch.zeros(1, 0, 2, 1, 4, 2), torch.zeros(1, 0, 2, 1, 4)),
    ],
}


@needs_build
@EACH
def test_nothing_in_nothing_out(name: str) -> None:
    found = results(name, EMPTY[name])
    assert found[0].numel() == 0
    assert all(x.abs().sum() == 0 for x in found)
    assert {"SUCCESS"} == set(opcheck(call_of(name)[0], tuple(EMPTY[name])).values())


@needs_build
def test_nms_of_values_that_are_no_numbers() -> None:
    """A box of NaN overlaps nothing, a score of NaN comes first; as in torch."""
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [torch.nan, 0, 9, 9]])
    scores = torch.tensor([0.3, torch.nan, 0.2])
    for backend in ops.available_backends("nms"):
        with ops.use_backend(backend):
            assert ops.nms(boxes, scores, 0.5, sort="index").tolist() == [1, 2]


@needs_build
@pytest.mark.parametrize("bad", [-1.0, 2.0, torch.nan])
def test_regions_of_no_picture_are_refused(bad: float) -> None:
    with pytest.raises(RuntimeError, match="rois name picture"):
        torch.ops.maskrcnn_benchmark.roi_pool(torch.zeros(2, 3, 4, 4), torch.tensor([[bad, 0, 0, 3, 3]]), 1.0, 2, 2)


@needs_build
def test_a_build_that_gives_other_numbers_is_set_aside(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from maskrcnn_benchmark.layers import _csrc_ops

    others = tuple(name for name in ops.available_backends("nms") if name != "csrc")
    monkeypatch.setitem(_csrc_ops.FUNCTIONS, "nms", lambda boxes, *rest: torch.arange(len(boxes)))
    _csrc_ops.usable.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert ops.available_backends("nms") == others
            assert ops.backend("deform_conv2d") == "torch"
        assert [r.getMessage() for r in caplog.records] == [
            "maskrcnn_benchmark/_C is set aside: it differs from the pure path in nms"
        ]
    finally:
        _csrc_ops.usable.cache_clear()


BROKEN = """
import importlib.abc, importlib.machinery, sys
class Loader(importlib.abc.Loader):
    def exec_module(self, module):
        raise ImportError("undefined symbol: torch_of_another_day")
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, Loader()) if name == "maskrcnn_benchmark._C" else None
sys.meta_path.insert(0, Finder())
from maskrcnn_benchmark.layers import ops
print([ops.backend(name) for name in ("nms", "roi_align")])
print([ops.backend(name) for name in ("nms", "roi_align")])
"""


def test_a_build_that_does_not_load_is_set_aside() -> None:
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, timeout=300)
    nms = next(name for name in ops.available_backends("nms") if name != "csrc")  # torchvision, where it works
    assert done.stdout == f"['{nms}', 'torch']\n" * 2, done.stderr
    told = [line for line in done.stderr.splitlines() if "csrc" in line]
    assert len(told) == 1
    assert "operators of csrc are set aside: maskrcnn_benchmark/_C does not load with torch" in told[0]
    assert "undefined symbol" in told[0]


def test_doctor_names_the_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert mrb.main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert f"torch {torch.__version__}" in told
    for name in ops.available_backends("nms"):
        assert f"self-test of {name} on cpu: passes" in told
    for name in NAMES:
        assert f"| {name} " in told
    assert ("csrc is not used" in told) == (not BUILT)


def test_doctor_reports_what_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [backends._Entry(e.name, lambda *args: torch.tensor([7]), e.rank, e.usable) for e in backends._table["nms"]]
    monkeypatch.setitem(backends._table, "nms", wrong)
    assert mrb.main(["doctor"]) == 2
    out = capsys.readouterr()
    assert "self-test of torch on cpu: DIFFERS in nms" in out.out
    assert out.err.startswith("error: an operator fails its self-test")


ROOT = Path(__file__).resolve().parents[2]


def test_build_settings_are_checked() -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        cwd=ROOT,
        env={**os.environ, "MB_BUILD": "gpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    assert "MB_BUILD must be auto, cpu, cuda or none, got 'gpu'" in done.stderr
