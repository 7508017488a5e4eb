"""What each tuning mode trains, on narrow FIBER and GLIP; what else freezes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.engine.amp import pick_precision
from maskrcnn_benchmark.engine.freeze import TUNING, count_table, freeze, with_tuning
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.interface import Detector
from maskrcnn_benchmark.solver.build import build_solver
from maskrcnn_benchmark.solver.plan import make_plan
from tests.narrow_decola import narrow_cfg
from tests.unit.test_grounding import NARROW, SYSTEMS
from tests.unit.test_grounding_losses import BOXES, batch

HEAD = "rpn.head."
PREDICTORS = {
    *(
        f"{HEAD}{layer}.{kind}"
        for layer in ("bbox_pred", "centerness", "dot_product_projection_text")
        for kind in ("weight", "bias")
    ),
    *(f"{HEAD}{name}" for name in ("log_scale", "bias_lang", "bias0")),
}
PROMPT = {"fiber": "fusion_backbone.tunable_linear.weight", "glip": "rpn.tunable_linear.weight"}


def config(system: str, *opts: str) -> Cfg:
    file, depths = SYSTEMS[system]
    return load_cfg(file, opts=[*NARROW.split(), *depths.split(), *opts])


def tuned(system: str, mode: str | None, *opts: str) -> Detector:
    cfg = with_tuning(config(system, *(("SOLVER.TUNING_HIGHLEVEL_OVERRIDE", mode) if mode else ()), *opts))
    model = build_detector(cfg)
    freeze(cfg, model)
    return model


def expected(model: Detector, system: str, mode: str | None) -> set[str]:
    names = {name for name, _ in model.named_parameters()}
    if mode in ("language_prompt_v1", "language_prompt_v3"):
        return {name for name in names if "language_backbone.body" in name}
    if mode in ("language_prompt_v2", "language_prompt_v4"):
        return {PROMPT[system]}
    if mode == "linear_prob":
        return PREDICTORS
    return {name for name in names if not name.startswith(f"{HEAD}cls_logits")}


@pytest.mark.parametrize("mode", [None, *TUNING])
@pytest.mark.parametrize("system", ["fiber", "glip"])
def test_mode_trains_exactly_its_parts(system: str, mode: str | None) -> None:
    model = tuned(system, mode, "MODEL.BACKBONE.FREEZE_CONV_BODY_AT", "-1")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == expected(model, system, mode)


@pytest.mark.parametrize("mode", list(TUNING))
@pytest.mark.parametrize("system", ["fiber", "glip"])
def test_frozen_parts_stay_in_evaluation_mode(system: str, mode: str) -> None:
    model = tuned(system, mode, "MODEL.BACKBONE.FREEZE_CONV_BODY_AT", "-1")
    root = "fusion_backbone." if system == "fiber" else ""
    parts = [f"{root}backbone.body", f"{root}backbone.fpn", f"{root}language_backbone.body", "rpn.head"]
    for _ in range(2):
        model.train()
        for part, frozen in zip(parts, TUNING[mode], strict=False):
            modes = {module.training for module in model.get_submodule(part).modules()}
            assert modes == {False} if frozen else True in modes, part
    tower = model.get_submodule("rpn.head.dyhead_tower")
    assert tower.training == (mode == "full")
    model.eval()
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("mode", list(TUNING))
@pytest.mark.parametrize("system", ["fiber", "glip"])
def test_steps_change_exactly_what_trains(system: str, mode: str) -> None:
    opts = ("MODEL.BACKBONE.FREEZE_CONV_BODY_AT", "-1", "SOLVER.WARMUP_ITERS", "0", "SOLVER.LANG_LR", "0.001")
    model = tuned(system, mode, *opts).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    cfg = config(system, *opts)
    solver = build_solver(cfg, model, make_plan(cfg, 5))
    for _ in range(2):
        solver.backward(model(batch(*BOXES[:2])).total())
        assert solver.step().taken
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    should = expected(model, system, mode)
    assert changed <= should
    assert {name.rsplit(".", 2)[0] for name in changed} == {name.rsplit(".", 2)[0] for name in should}


@pytest.mark.parametrize("system", ["fiber", "glip"])
def test_losses_are_fp32_with_bf16_inside(system: str) -> None:
    model = tuned(system, None)
    exact = model(batch(*BOXES[:2]))
    cfg = config(system, "SOLVER.USE_AMP", "True", "SOLVER.AMP_DTYPE", "bf16")
    with pick_precision(cfg, torch.device("cpu")).autocast():
        mixed = model(batch(*BOXES[:2]))
    assert {term.dtype for term in mixed.terms.values()} == {torch.float32}
    assert mixed.total().item() == pytest.approx(exact.total().item(), rel=0.05)
    assert mixed.total().item() != exact.total().item()


def test_first_stages_are_frozen_beside_the_mode() -> None:
    model = tuned("fiber", "full", "MODEL.BACKBONE.FREEZE_CONV_BODY_AT", "2")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    body = "fusion_backbone.backbone.body."
    assert all(name.startswith((f"{body}patch_embed", f"{body}layers.0", f"{HEAD}cls_logits")) for name in frozen)
    assert len(frozen) > 10


def test_wrapped_and_copied_models_keep_it() -> None:
    wrapped = torch.nn.Sequential(tuned("fiber", "linear_prob")).train()
    assert not wrapped[0].get_submodule("fusion_backbone.backbone.body").training
    assert wrapped[0].get_submodule("rpn.head.bbox_pred").training


@pytest.mark.parametrize("mode", list(TUNING))
def test_table_adds_up(mode: str) -> None:
    model = tuned("glip", mode)
    text = count_table(model)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    numbers = {row[0]: tuple(int(cell.replace(",", "")) for cell in row[1:3]) for row in rows[1:]}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert numbers["all"] == (trained, sum(p.numel() for p in model.parameters()) - trained)
    assert tuple(map(sum, zip(*(numbers[name] for name in numbers if name != "all"), strict=True))) == numbers["all"]
    modes = {row[0]: row[3] for row in rows[1:]}
    assert modes["backbone.body"] == ("training" if mode == "full" else "evaluation")


def test_single_keys_work_without_a_mode() -> None:
    model = tuned("fiber", None, "MODEL.LANGUAGE_BACKBONE.FREEZE", "True", "MODEL.BACKBONE.FREEZE", "True")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(name.startswith(("fusion_backbone.backbone.fpn", HEAD)) for name in trained)


@pytest.mark.parametrize("kind", ["phase 1", "baseline"])
def test_the_body_of_decola_freezes(kind: str, tmp_path: Path) -> None:
    cfg = narrow_cfg(kind, tmp_path, MODEL__BACKBONE__FREEZE=True)
    model = build_detector(cfg)
    freeze(cfg, model.train())
    body = "detr.backbone.0.backbone"
    assert {name.startswith(body) for name, value in model.named_parameters() if not value.requires_grad} == {True}
    assert not any(value.requires_grad for value in model.get_submodule(body).parameters())
    assert not model.get_submodule(body).training
    row = next(line for line in count_table(model).splitlines() if "detr.backbone" in line)
    assert "evaluation" in row


def test_probe_of_parts_that_train_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"MODEL.LINEAR_PROB True \(command line\) wants .* set MODEL.BACKBONE.FREEZE"
    ):
        tuned("fiber", None, "MODEL.LINEAR_PROB", "True")


def test_mode_is_named_as_the_source_of_what_it_sets() -> None:
    cfg = with_tuning(config("glip", "SOLVER.TUNING_HIGHLEVEL_OVERRIDE", "language_prompt_v2"))
    assert cfg.source("MODEL.BACKBONE.FREEZE") == "SOLVER.TUNING_HIGHLEVEL_OVERRIDE language_prompt_v2"
    assert cfg.MODEL.DYHEAD.FUSE_CONFIG.ADD_LINEAR_LAYER
