"""Parameter groups, schedules and early stop of FIBER against the reference's: golden cases solver_*."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.engine.freeze import freeze
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.solver.build import build_rates
from maskrcnn_benchmark.solver.param_groups import optimizer_groups, param_groups
from maskrcnn_benchmark.solver.schedule import Best, Cosine, MultiStep, Plateau, Schedule, Warmup
from tests.golden.common import golden_cases, load_case

NUMBER = r"([\d.]+(?:e-?\d+)?)"
CONFIGS = {
    "pretrain": "pretrain/mixed_nococo_flickr_objects365.yaml",
    "coco": "e2e_dyhead_SwinT_B_FPN_coco_finetuning_fusion_backbone.yaml",
    "lvis": "e2e_dyhead_SwinT_B_FPN_lvis_finetuning_fusion_backbone.yaml",
    "refcoco": "refcoco.yaml",
    "refcocog": "refcocog.yaml",
    "refcocoplus": "refcocoplus.yaml",
}


@pytest.mark.parametrize("path", golden_cases("fiber", "solver_param_groups_fiber_b_*"))
def test_parameter_groups(path: Path) -> None:
    case, _ = load_case(path)
    cfg = load_cfg(CONFIGS[path.stem.removeprefix("solver_param_groups_fiber_b_")])
    with torch.device("meta"):
        model = build_detector(cfg)
    freeze(cfg, model)
    groups = param_groups(model, build_rates(cfg))
    assert {group.name for group in groups} == case.keys()
    for group in groups:
        assert [group.lr, group.weight_decay] == pytest.approx(case[group.name], rel=1e-12), group.name
    given = [(entry["lr"], entry["weight_decay"]) for entry in optimizer_groups(groups) for _ in entry["params"]]
    assert sorted(given) == sorted((lr, decay) for lr, decay in map(tuple, case.values()))


def optimizer(rates: list[float]) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], lr=1.0)


def rates(schedule: Schedule) -> list[float]:
    return [group["lr"] for group in schedule.optimizer.param_groups]


def number(name: str, text: str) -> float:
    match = re.search(rf"{name}\s*{NUMBER}", text)
    assert match is not None, f"{name} in {text!r}"
    return float(match[1])


def check_steps(title: str, expected: list[list[float]]) -> None:
    """``expected`` holds the rates of each step; the title says the rest."""
    warmup = Warmup(int(number("warmup", title)), 0.001)
    base = [rate / warmup(0) for rate in expected[0]]
    if title.startswith("multistep"):
        fractions, total = re.search(rf"steps\(([^)]*)\)\*{NUMBER}", title).groups()
        milestones = [round(float(part) * float(total)) for part in fractions.split(",")]
        schedule: Schedule = MultiStep(optimizer(base), warmup, milestones)
    else:
        assert title.startswith("cosine"), f"no such schedule: {title}"
        schedule = Cosine(optimizer(base), warmup, int(number("max_iters", title)), number("eta_min", title))
    for step, row in enumerate(expected):
        assert rates(schedule) == pytest.approx(row, rel=1e-9), f"step {step}"
        schedule.step()


def check_autostep(title: str, case: dict[str, list[Any]]) -> None:
    patience, gamma = int(number("patience", title)), number("gamma", title)
    plain = int(re.search(r"(\d+) plain steps", title)[1])
    assert number("WARMUP_ITERS", title) == 0
    schedule = Plateau(optimizer([1e-4, 2e-5]), Warmup(), gamma, patience, number("MIN_LR", title))
    for metric, row in zip(case["metrics"], case["lr_after_each_epoch"], strict=True):
        for _ in range(plain):
            schedule.step()
        schedule.evaluated(metric)
        assert rates(schedule) == pytest.approx(row, rel=1e-9)


@pytest.mark.parametrize("path", golden_cases("fiber", "solver_schedules*"))
def test_schedules(path: Path) -> None:
    case, _ = load_case(path)
    autostep = next(value for title, value in case.items() if title.startswith("autostep"))
    for title, expected in case.items():
        if title.startswith("autostep"):
            check_autostep(title, expected)
        elif title.startswith("auto_terminate"):
            best = Best()
            for step, (metric, row) in enumerate(zip(autostep["metrics"], expected, strict=True)):
                best.update(metric, step)
                assert [best.score, best.waited] == row
        else:
            check_steps(title, expected)
