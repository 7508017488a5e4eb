"""Learning rates over a training, averages, parameter groups, the step, and going on from a checkpoint."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn_benchmark.checkpoint.resume import load_latest, save
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.engine.amp import pick_precision
from maskrcnn_benchmark.errors import ConfigError, WeightsError
from maskrcnn_benchmark.solver.build import Solver, build_solver, milestones
from maskrcnn_benchmark.solver.ema import Ema
from maskrcnn_benchmark.solver.param_groups import Rates, optimizer_groups, param_groups, table
from maskrcnn_benchmark.solver.plan import Plan, make_plan
from maskrcnn_benchmark.solver.schedule import Best, Cosine, MultiStep, Plateau, Schedule, Warmup, WeightDecayDrops

CPU = torch.device("cpu")


def optimizer(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate, "weight_decay": 0.1} for rate in rates or (1.0,)]
    return torch.optim.SGD(groups, lr=1.0)


def curve(schedule: Schedule, steps: int) -> list[float]:
    """Rates of the first steps."""
    found = []
    for _ in range(steps):
        found.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.step()
    return found


WARM = Warmup(4, 0.2)
SCHEDULES = {
    "warm-up": (lambda o: Schedule(o, WARM), [0.2, 0.4, 0.6, 0.8, 1, 1]),
    "no warm-up": (lambda o: Schedule(o, Warmup(0, 0.2)), [1, 1]),
    "steps": (lambda o: MultiStep(o, Warmup(), [2, 4], 0.5), [1, 1, 0.5, 0.5, 0.25, 0.25]),
    "steps in the warm-up": (lambda o: MultiStep(o, WARM, [2], 0.5), [0.2, 0.4, 0.3, 0.4, 0.5, 0.5]),
    "cosine": (lambda o: Cosine(o, Warmup(), 4), [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
    "cosine with a floor": (lambda o: Cosine(o, Warmup(1, 0.5), 2, 0.2), [0.5, 1, 0.6, 0.2]),
}


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_rates(name: str) -> None:
    make, expected = SCHEDULES[name]
    assert curve(make(optimizer()), len(expected)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("at", [1, 3])
def test_rates_go_on_after_a_stop(name: str, at: int) -> None:
    make, expected = SCHEDULES[name]
    first = make(optimizer())
    curve(first, at)
    second = make(optimizer())
    second.load_state_dict(first.state_dict())
    assert curve(second, len(expected) - at) == pytest.approx(expected[at:], abs=1e-12)


def test_groups_keep_their_proportions() -> None:
    schedule = MultiStep(optimizer(1.0, 10.0), WARM, [5], 0.1)
    curve(schedule, 5)
    assert [group["lr"] for group in schedule.optimizer.param_groups] == pytest.approx([0.1, 1.0])


def test_another_schedule_cannot_go_on() -> None:
    with pytest.raises(WeightsError, match="trained with the schedule 'Cosine', the config asks for 'MultiStep'"):
        MultiStep(optimizer(), WARM, [2]).load_state_dict(Cosine(optimizer(), WARM, 4).state_dict())


def heard(schedule: Plateau, scores: list[float]) -> list[float]:
    rates = []
    for score in scores:
        schedule.evaluated(score)
        rates.append(schedule.optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1, 2, 3, 4], [1, 1, 1, 1]),
        ([5, 4, 4, 4, 4, 4, 4], [1, 1, 1, 0.5, 0.5, 0.5, 0.25]),  # more than 2 evaluations without growth
        ([5, 5, 5.0001, 5.01, 4, 4, 4], [1, 1, 1, 1, 1, 1, 0.5]),  # growth of less than a ten-thousandth is none
        ([5, 0, 0, 0, 0], [1, 1, 1, 1, 1]),  # a score of 0 says nothing
        ([5] + [4] * 12, [1] * 3 + [0.5] * 3 + [0.25] * 3 + [0.2] * 4),  # the floor
    ],
)
def test_rates_drop_when_the_score_no_longer_grows(scores: list[float], expected: list[float]) -> None:
    assert heard(Plateau(optimizer(), Warmup(), 0.5, patience=2, min_lr=0.2), scores) == pytest.approx(expected)
    first = Plateau(optimizer(), Warmup(), 0.5, patience=2, min_lr=0.2)
    heard(first, scores[:3])
    second = Plateau(optimizer(), Warmup(), 0.5, patience=2, min_lr=0.2)
    second.load_state_dict(first.state_dict())
    assert heard(second, scores[3:]) == pytest.approx(expected[3:])


def test_scores_of_the_warm_up_do_not_count() -> None:
    schedule = Plateau(optimizer(), WARM, 0.5, patience=0)
    assert heard(schedule, [5, 4, 3]) == [0.2] * 3
    curve(schedule, 4)
    assert heard(schedule, [2, 1]) == [1, 0.5]


def test_weight_decay_drops_before_the_rate_does() -> None:
    opt = optimizer()
    drops = WeightDecayDrops(opt, [10, 20], 0.1, 0.667)
    found = []
    for done in (0, 6, 7, 13, 14, 20):
        drops.apply(done)
        found.append(opt.param_groups[0]["weight_decay"])
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(
    ("steps", "drops", "warned"),
    [("(1.0,)", [1], True), ("(1,)", [1], False), ("(8.0,)", [8], False), ("(0.5,)", [10], False)],
)
def test_steps_that_look_like_fractions(
    steps: str, drops: list[int], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = load_cfg(None, opts=["SOLVER.STEPS", steps])
    assert milestones(cfg, Plan(5, 1, 20, 5)) == drops
    assert warned == ("1.0 is step 1; fractions of the training are below 1" in caplog.text)


def test_best_and_early_stop() -> None:
    best = Best(patience=2)
    assert [best.update(score, i) for i, score in enumerate([0.3, 0.2, 0.3, 0.1])] == [True, False, True, False]
    assert (best.score, best.step, best.stop) == (0.3, 2, False)
    again = Best(patience=2)
    again.load_state_dict(best.state_dict())
    again.update(0.2, 4)
    assert again.stop
    assert not Best(score=1.0, waited=100).stop


class Net(nn.Module):
    """Names of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"body": nn.ModuleDict({"norm1": nn.LayerNorm(2), "qkv": nn.Linear(2, 2)})})
        self.language_backbone = nn.ModuleDict({"body": nn.Linear(2, 2)})
        self.head = nn.Linear(2, 2)
        self.bias_lang = nn.Parameter(torch.zeros(2))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.backbone["body"]["qkv"](self.backbone["body"]["norm1"](x))
        return (self.head(self.language_backbone["body"](x)) + self.bias_lang).square().mean()


RATES = Rates(
    1e-3,
    1e-4,
    body_lr_factor=0.5,
    bias_lr_factor=2,
    weight_decay=0.1,
    bias_weight_decay=0.02,
    norm_weight_decay_factor=0.5,
)
GROUPS = {
    "bias_lang": (2e-3, 0.02),
    "backbone.body.norm1.weight": (5e-4, 0.05),
    "backbone.body.norm1.bias": (1e-3, 0.01),
    "backbone.body.qkv.weight": (5e-4, 0.1),
    "backbone.body.qkv.bias": (1e-3, 0.02),
    "language_backbone.body.weight": (1e-4, 0.1),
    "language_backbone.body.bias": (2e-4, 0.02),
    "head.weight": (1e-3, 0.1),
    "head.bias": (2e-3, 0.02),
}


def test_values_of_parameters() -> None:
    groups = param_groups(Net(), RATES)
    assert {group.name: group.lr for group in groups} == pytest.approx({k: lr for k, (lr, _) in GROUPS.items()})
    assert {group.name: group.weight_decay for group in groups} == pytest.approx(
        {k: wd for k, (_, wd) in GROUPS.items()}
    )
    merged = optimizer_groups(groups)
    assert sorted(name for group in merged for name, _ in group["params"]) == sorted(GROUPS)
    assert len(merged) == len(set(GROUPS.values()))


def test_table_of_parameters() -> None:
    lines = table(param_groups(Net(), RATES)).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert ["*backbone.body* *bias* *norm*", "1", "2", "0.001", "0.01"] in rows
    assert ["*language_backbone*", "1", "4", "0.0001", "0.1"] in rows
    assert rows[-1] == ["all", "9", "24", "", ""]


def test_average_of_weights() -> None:
    model = Net()
    ema = Ema(model, 0.9)
    start = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.head.weight.add_(1.0)
        model.count.add_(4)
    ema.update()
    ema.update()
    gone = 1 - 0.9**2
    torch.testing.assert_close(ema.state_dict()["head.weight"], start["head.weight"] + gone)
    assert torch.equal(ema.state_dict()["head.bias"], start["head.bias"])
    assert ema.state_dict()["count"] == 7
    raw = model.head.weight.detach().clone()
    with ema.applied() as averaged:
        torch.testing.assert_close(averaged.head.weight.detach(), start["head.weight"] + gone)
    assert torch.equal(model.head.weight, raw)
    torch.testing.assert_close(ema.state_dict()["head.weight"], start["head.weight"] + gone)


NARROW = [
    *("MODEL.DEVICE", "cpu", "SOLVER.OPTIMIZER", "ADAMW", "SOLVER.BASE_LR", "0.01", "SOLVER.WARMUP_ITERS", "2"),
    *(
        "SOLVER.MAX_ITER",
        "10",
        "SOLVER.STEPS",
        "(0.5,)",
        "SOLVER.MODEL_EMA",
        "0.9",
        "SOLVER.WEIGHT_DECAY_SCHEDULE",
        "True",
    ),
    *("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.5"),
]


def make(*opts: str, seed: int = 0) -> tuple[Net, Solver]:
    torch.manual_seed(seed)
    model = Net()
    cfg = load_cfg(None, opts=[*NARROW, *opts])
    return model, build_solver(cfg, model, make_plan(cfg, 5), pick_precision(cfg, CPU).scaler())


def train(model: Net, solver: Solver, steps: int, parts: int = 1) -> list[float]:
    losses = []
    for _ in range(steps):
        for part in range(parts):
            x = torch.randn(4, 2, generator=torch.Generator().manual_seed(solver.done * parts + part))
            loss = model(x)
            losses.append(loss.item())
            solver.backward(loss, parts)
        solver.step()
    return losses


@pytest.mark.parametrize(
    "opts", [(), ("SOLVER.OPTIMIZER", "SGD"), ("SOLVER.USE_COSINE", "True"), ("SOLVER.USE_AUTOSTEP", "True")]
)
@pytest.mark.parametrize("at", [1, 2, 5])
def test_training_goes_on_bit_for_bit(opts: tuple[str, ...], at: int, tmp_path: Path) -> None:
    model, solver = make(*opts)
    expected = train(model, solver, 4, parts=2)
    solver.evaluated(0.5)
    expected += train(model, solver, 4, parts=2)
    model2, solver2 = make(*opts)
    found = train(model2, solver2, min(at, 4), parts=2)
    if at > 4:
        solver2.evaluated(0.5)
        found += train(model2, solver2, at - 4, parts=2)
    save({"model": model2.state_dict(), **solver2.state_dict(), "iteration": solver2.done}, tmp_path, at)
    state: Any = load_latest(tmp_path)
    model3, solver3 = make(*opts, seed=1)
    model3.load_state_dict(state["model"])
    solver3.load_state_dict(state)
    assert solver3.done == at
    if at < 4:
        found += train(model3, solver3, 4 - at, parts=2)
        solver3.evaluated(0.5)
    found += train(model3, solver3, 8 - solver3.done, parts=2)
    assert found == expected
    for ours, theirs in ((model3.state_dict(), model.state_dict()), (solver3.ema.average, solver.ema.average)):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert solver3.best == solver.best


def test_parts_of_a_batch_give_the_gradients_of_the_whole() -> None:
    x = torch.randn(8, 2)
    (model, solver), (model2, solver2) = make(), make()
    solver.backward(model(x))
    for half in x.chunk(2):
        solver2.backward(model2(half), 2)
    solver.step()
    solver2.step()
    for ours, theirs in zip(model.parameters(), model2.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_are_clipped_together() -> None:
    model, solver = make("SOLVER.OPTIMIZER", "SGD", "SOLVER.WEIGHT_DECAY", "0", "SOLVER.WARMUP_ITERS", "0")
    for group in solver.optimizer.param_groups:
        group["lr"] = 1.0
    before = [p.detach().clone() for p in model.parameters()]
    solver.backward(1000 * model(torch.randn(8, 2)))
    assert solver.step().gradient_norm > 0.5
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, model.parameters(), strict=True)])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-3)


def test_gradient_that_is_not_finite_changes_nothing() -> None:
    model, solver = make()
    before = copy.deepcopy(model.state_dict())
    solver.backward(model(torch.full((2, 2), math.inf)))
    step = solver.step()
    assert not step.taken
    assert not math.isfinite(step.gradient_norm)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    solver.backward(model(torch.ones(2, 2)))
    assert solver.step().taken


def test_step_without_gradients_is_not_taken() -> None:
    _, solver = make()
    assert not solver.step().taken
    assert solver.done == 1


def test_other_parameters_cannot_go_on() -> None:
    model, solver = make()
    state = solver.state_dict()
    model.head.requires_grad_(False)
    cfg = load_cfg(None, opts=NARROW)
    with pytest.raises(WeightsError, match="trained with other parameters"):
        build_solver(cfg, model, make_plan(cfg, 5)).load_state_dict(state)
    with pytest.raises(WeightsError, match=r"has no model_ema: give it as MODEL\.WEIGHT"):
        solver.load_state_dict({key: value for key, value in state.items() if key != "model_ema"})


def test_rates_of_the_checkpoint_win_and_that_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("maskrcnn_benchmark"), "propagate", True)
    _, solver = make()
    _, other = make("SOLVER.BASE_LR", "0.5")
    other.load_state_dict(solver.state_dict())
    assert "of the checkpoint go on" in caplog.text
    assert max(group["initial_lr"] for group in other.optimizer.param_groups) == pytest.approx(0.02)


def test_nothing_to_train_is_an_error() -> None:
    cfg = load_cfg(None, opts=NARROW)
    with pytest.raises(ConfigError, match="nothing to train"):
        build_solver(cfg, Net().requires_grad_(False), make_plan(cfg, 5))


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        ("", Plan(10, 1, 40000, 2500)),
        ("SOLVER.CHECKPOINT_PERIOD 0 SOLVER.TEST_PERIOD 700", Plan(10, 1, 40000, 40000, 700)),
        ("SOLVER.MAX_EPOCH 3", Plan(10, 1, 30, 2500)),
        ("SOLVER.MAX_EPOCH 3 SOLVER.CHECKPOINT_PERIOD 0", Plan(10, 1, 30, 30)),
        ("SOLVER.MAX_EPOCH 3 SOLVER.CHECKPOINT_PER_EPOCH 1.0", Plan(10, 1, 30, 10)),
        ("SOLVER.MAX_EPOCH 3 SOLVER.CHECKPOINT_PER_EPOCH 0.05", Plan(10, 1, 30, 1)),  # never none at all
        ("SOLVER.MAX_EPOCH 3 SOLVER.CHECKPOINT_PER_EPOCH 2 SOLVER.ACCUMULATION 4", Plan(10, 4, 8, 5)),
        ("SOLVER.MAX_EPOCH 3 SOLVER.CHECKPOINT_EPOCH 2 SOLVER.TEST_PERIOD 7", Plan(10, 1, 30, 20, 7)),
        ("SOLVER.MAX_EPOCH 1.5 SOLVER.CHECKPOINT_EPOCH 100", Plan(10, 1, 15, 1000)),
    ],
)
def test_plan(opts: str, expected: Plan) -> None:
    assert make_plan(load_cfg(None, opts=opts.split()), 10) == expected


DAP = {  # pictures, steps and milestones of the released trainings
    "imagenet1k/dap_in1k_faster_rcnn_r50fpn": (1_281_167, 20_018, []),
    "imagenet1k/dap_in1k_faster_rcnn_r101fpn": (1_281_167, 40_036, []),
    "imagenet1k/in1k_faster_rcnn_r50fpn_voc07": (5011, 4385, [3132]),
    "imagenet22k/in22k_faster_rcnn_r101fpn_voc0712": (16_551, 14_482, [10_344]),
    "imagenet22k/in22k_faster_rcnn_r50fpn_coco": (117_266, 90_000, [60_000, 80_000]),
}


@pytest.mark.parametrize("name", DAP)
def test_epochs_of_dap_count_what_fills_no_batch(name: str) -> None:
    cfg = load_cfg(f"configs/{name}.yaml")
    pictures, steps, drops = DAP[name]
    batch = cfg.SOLVER.IMS_PER_BATCH
    plan = make_plan(cfg, pictures // batch, pictures / batch)
    assert (plan.steps, milestones(cfg, plan)) == (steps, drops)


def test_checkpoints_and_evaluations_have_periods_of_their_own() -> None:
    plan = Plan(10, 1, 30, 20, 12)
    assert [step for step in range(1, 31) if plan.saves(step)] == [20, 30]
    assert [step for step in range(1, 31) if plan.tests(step)] == [12, 24]
    assert [step for step in range(1, 31) if replace(plan, test_period=0).tests(step)] == [20, 30]


@pytest.mark.parametrize("key", ["SOLVER.STEPS_EPOCH (2.,)", "SOLVER.CHECKPOINT_EPOCH 2"])
def test_epochs_need_a_number_of_them(key: str) -> None:
    with pytest.raises(ConfigError, match=r"counts epochs: set SOLVER\.MAX_EPOCH too"):
        load_cfg(None, opts=key.split())


def test_place_in_the_data_follows_from_the_step() -> None:
    plan = make_plan(load_cfg(None, opts=["SOLVER.MAX_EPOCH", "3", "SOLVER.ACCUMULATION", "4"]), 10)
    assert [plan.position(step) for step in range(6)] == [(0, 0), (0, 4), (0, 8), (1, 2), (1, 6), (2, 0)]
    assert plan.epochs == pytest.approx(3.2)  # the last step is a whole one


@pytest.mark.parametrize(
    ("opts", "dtype"),
    [
        ("", None),
        ("SOLVER.USE_AMP True", None),  # on a CPU
        ("SOLVER.USE_AMP True SOLVER.AMP_DTYPE bf16", torch.bfloat16),
        ("SOLVER.AMP_DTYPE bf16", None),
    ],
)
def test_precision_on_a_cpu(opts: str, dtype: torch.dtype | None) -> None:
    precision = pick_precision(load_cfg(None, opts=opts.split()), CPU)
    assert precision.dtype == dtype
    assert not precision.scaler().is_enabled()
    with precision.autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == (dtype or torch.float32)


def test_fp16_needs_an_accelerator() -> None:
    cfg = load_cfg(None, opts=["SOLVER.USE_AMP", "True", "SOLVER.AMP_DTYPE", "fp16"])
    with pytest.raises(ConfigError, match=r"SOLVER.AMP_DTYPE 'fp16' \(command line\) needs an accelerator"):
        pick_precision(cfg, CPU)


def test_scaler_that_never_fits_stops_with_advice() -> None:
    model = Net()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    solver = Solver(opt, Schedule(opt, Warmup()), scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))

    def attempt() -> bool:
        solver.backward(model(torch.full((2, 2), math.nan)))
        return solver.step().taken

    assert not any(attempt() for _ in range(19))
    with pytest.raises(ConfigError, match=r"no finite gradients in 20 steps in a row.*set SOLVER\.AMP_DTYPE bf16"):
        attempt()


class TextAndPicture(nn.Module):
    """Names as MDETR has them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleList([nn.Linear(2, 2)])
        self.transformer = nn.ModuleDict({"text_encoder": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})


def mdetr_solver(*opts: str) -> Solver:
    given = ["MODEL.META_ARCHITECTURE", "MDETR", "SOLVER.OPTIMIZER", "ADAMW", "SOLVER.BASE_LR", "1e-4"]
    given += ["SOLVER.BACKBONE_LR", "1e-5", "SOLVER.LANG_LR", "5e-5", "SOLVER.BIAS_LR_FACTOR", "1"]
    given += ["SOLVER.WEIGHT_DECAY", "1e-4", "SOLVER.WEIGHT_DECAY_BIAS", "1e-4", "SOLVER.MDETR_LR_DROP", "2"]
    cfg = load_cfg(None, opts=[*given, "SOLVER.MDETR_SCHEDULE", "linear_with_warmup", *opts])
    return build_solver(cfg, TextAndPicture(), Plan(batches_per_epoch=100, accumulation=1, steps=400, period=400))


def test_three_groups_with_schedules_of_their_own() -> None:
    groups = mdetr_solver().optimizer.param_groups
    rates = {group["param_names"][0].split(".")[-2]: (group["lr"], group["weight_decay"]) for group in groups}
    assert rates == {"0": (1e-5, 1e-4), "text_encoder": (5e-5, 1e-4), "norm": (1e-4, 1e-4)}
    solver = mdetr_solver("SOLVER.LANG_LR", "1e-5")  # as much as the backbone has, yet apart
    assert len(solver.optimizer.param_groups) == 3
    seen = []
    for _ in range(400):
        solver.step()
        seen.append(tuple(group["lr"] for group in solver.optimizer.param_groups))
    assert seen[0] == (1e-5, 0.0, 1e-4)  # the warm-up has 4 steps
    assert seen[2] == pytest.approx((1e-5, 5e-6, 1e-4))
    assert seen[4] == pytest.approx((1e-5, 1e-5, 1e-4))
    assert seen[199] == pytest.approx((1e-5, 1e-5 * 201 / 396, 1e-4))
    assert seen[200] == pytest.approx((1e-6, 1e-5 * 200 / 396, 1e-5))
    assert seen[399] == pytest.approx((1e-6, 1e-5 / 396, 1e-5))


def test_the_backbone_may_stand_still() -> None:
    rates = [group["lr"] for group in mdetr_solver("SOLVER.BACKBONE_LR", "0").optimizer.param_groups]
    assert rates == [0.0, 5e-5, 1e-4]
    assert mdetr_solver("SOLVER.BACKBONE_LR", "-1").optimizer.param_groups[0]["lr"] == 1e-4  # times a factor of 1


def test_a_schedule_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"SOLVER\.MDETR_SCHEDULE"):
        mdetr_solver("SOLVER.MDETR_SCHEDULE", "cosine")
