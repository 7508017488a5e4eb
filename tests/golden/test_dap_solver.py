"""Learning rates of DAP's trainings against those of maskrcnn-benchmark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from maskrcnn_benchmark.solver.schedule import MultiStep, Warmup
from tests.golden.common import golden_cases, load_case

NUMBER = r"([\d.]+(?:/\d+)?)"


def numbers(text: str, name: str) -> list[float]:
    """``factor 1/3`` -> [1/3]; ``STEPS (60,80)`` -> [60, 80]."""
    if listed := re.search(rf"{name} \(([\d., ]+)\)", text):
        return [float(item) for item in listed[1].split(",") if item.strip()]
    match = re.search(rf"{name} {NUMBER}", text)
    if match is None:
        return []
    top, _, bottom = match[1].partition("/")
    return [float(top) / float(bottom or 1)]


@pytest.mark.parametrize("path", golden_cases("dap", "parts*"))
def test_learning_rates(path: Path) -> None:
    case, _ = load_case(path)
    for what, wanted in case["lr"].items():
        (base,), (factor,), (warm,) = (numbers(what, name) for name in ("BASE", "factor", "iters"))
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
        schedule = MultiStep(optimizer, Warmup(int(warm), factor), [int(step) for step in numbers(what, "STEPS")])
        got = {}
        for step in range(max(map(int, wanted)) + 1):
            got[str(step)] = optimizer.param_groups[0]["lr"]
            schedule.step()
        assert {step: got[step] for step in wanted} == pytest.approx(wanted, rel=1e-9), what
