"""DECOLA and its baselines against what the original returned: assignment, losses, gradients, labels by a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from maskrcnn_benchmark.checkpoint.io import without_copies
from maskrcnn_benchmark.checkpoint.names import rename
from maskrcnn_benchmark.checkpoint.rules import RELEASED
from maskrcnn_benchmark.engine.self_label import QUERIES, Choice, Teacher
from maskrcnn_benchmark.modeling.assign.hungarian import Pairs
from maskrcnn_benchmark.modeling.assign.per_class import FocalMatcher, Objects
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.criterion.federated import FederatedClasses
from maskrcnn_benchmark.modeling.detectors.decola import Decola
from maskrcnn_benchmark.modeling.detectors.deformable_detr import QueryDetector
from maskrcnn_benchmark.modeling.heads.query_outputs import QueryOutputs
from maskrcnn_benchmark.modeling.interface import Batch, Losses
from maskrcnn_benchmark.solver.build import build_rates, build_solver
from maskrcnn_benchmark.solver.param_groups import param_groups
from maskrcnn_benchmark.solver.plan import Plan
from maskrcnn_benchmark.structures import Target
from maskrcnn_benchmark.structures.boxes import rescale, xyxy_to_cxcywh, xyxy_to_xywh
from tests.golden.common import golden_cases, load_case
from tests.golden.decola_net import case_config, case_detector, pictures

Case = dict[str, Any]
NOT_LEARNT = ("loss_zero", "class_error")  # in the original's sum: a number that is 0, and one that is no loss


@pytest.mark.parametrize("path", golden_cases("decola", "matchers"))
def test_matchers(path: Path) -> None:
    _, tensors = load_case(path)
    pictures = sum(name.startswith("target_labels") for name in tensors)
    objects = Objects(
        torch.cat([tensors[f"target_labels{i}"] for i in range(pictures)]),
        torch.cat([tensors[f"target_boxes{i}"] for i in range(pictures)]),
        tuple(len(tensors[f"target_labels{i}"]) for i in range(pictures)),
    )
    assert (tensors["query_class"] == tensors["query_class"][0]).all()
    matcher = FocalMatcher()
    conditioned = matcher(QueryOutputs(tensors["logits"], tensors["boxes"]), objects, tensors["query_class"][0])
    ordinary = matcher(QueryOutputs(tensors["logits_multi"], tensors["boxes_multi"]), objects)
    for what, pairs in (("decola", conditioned), ("hungarian", ordinary)):
        for i in range(pictures):
            own = pairs.picture == i
            assert pairs.query[own].tolist() == tensors[f"{what}_query{i}"].tolist()
            assert (pairs.target[own] - sum(objects.counts[:i])).tolist() == tensors[f"{what}_target{i}"].tolist()


class Told(Random):
    """Draws the classes that the original drew, one list after the other."""

    def __init__(self, lists: list[list[int]]) -> None:
        super().__init__(0)
        self.lists = list(lists)

    def randrange(self, *args: Any) -> int:
        return self.lists.pop(0)[0]


class ToldClasses(FederatedClasses):
    def __call__(self, present: Tensor, num_classes: int, rng: Random) -> Tensor:
        assert isinstance(rng, Told)
        return torch.tensor(rng.lists.pop(0))


def batch_of(case: Case) -> Batch:
    images = pictures(case["images"])
    targets = []
    for one, meta in zip(case["images"], images.metas, strict=True):
        boxes = torch.tensor(one["boxes"] or [], dtype=torch.float32).reshape(-1, 4)
        weak = one.get("ann_type") == "image"
        known = torch.tensor(one["pos_category_ids"]) + 1 if weak else None
        targets.append(Target(boxes, torch.tensor(one["classes"], dtype=torch.int64) + 1, meta, image_labels=known))
    return Batch(images, targets, rng=Told(case.get("fed_inds", [])))


def learn(case: Case, detector: QueryDetector, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> tuple[Losses, Any]:
    """Losses of a case, with gradients, and what was assigned in each stage."""
    found: list[Pairs] = []
    assign = FocalMatcher.__call__

    def keep(*args: Any) -> Pairs:
        found.append(assign(*args))
        return found[-1]

    monkeypatch.setattr(FocalMatcher, "__call__", keep)
    if detector.lesson.federated is not None:
        detector.lesson = replace(detector.lesson, federated=ToldClasses())  # type: ignore[type-var]
    losses: Losses = detector.train()(batch)
    losses.total().backward()
    return losses, found


def check_losses(case: Case, losses: Losses) -> None:
    expected = {name: value for name, value in case["loss_dict"].items() if name not in NOT_LEARNT}
    ours = {name: float(losses.weights.get(name, 1.0) * value.detach()) for name, value in losses.terms.items()}
    rel = case["tolerance"]["loss_rel"]
    assert ours == pytest.approx(expected, rel=rel, abs=1e-6)
    error = case["loss_dict"].get("class_error")
    assert error is None or losses.metrics["class_error"] == pytest.approx(error)
    assert float(losses.total().detach()) == pytest.approx(case["total"] - (error or 0), rel=rel)


def check_gradients(case: Case, detector: QueryDetector) -> None:
    named = dict(detector.named_parameters())
    assert [name for name, parameter in named.items() if parameter.grad is None] == case["params_without_grad"]
    grads = {name: parameter.grad for name, parameter in named.items() if parameter.grad is not None}
    rel = case["tolerance"]["grad_rel"]
    norm = torch.stack([grad.double().norm() for grad in grads.values()]).norm()
    assert float(norm) == pytest.approx(case["grad_norm_all"], rel=rel)
    for name, expected in case["grads"].items():
        grad = grads[name]
        assert list(grad.shape) == expected["shape"], name
        first, scale = torch.tensor(expected["first32"]), max(map(abs, [*expected["first32"], expected["std"]]))
        worst = float((grad.flatten()[:32] - first).abs().max())
        assert worst <= rel * scale, f"{name}: {worst} of {scale}"
        assert float(grad.std(correction=0)) == pytest.approx(expected["std"], rel=rel), name


def check_assignment(case: Case, tensors: dict[str, Tensor], found: list[Pairs], counts: list[int]) -> None:
    for name, expected in tensors.items():
        if not name.startswith("match"):
            continue
        stage, picture, side = name.split("_")
        number, i = int(stage[5:]), int(picture[3:])
        pairs = found[number]
        rows = {"query": pairs.query, "target": pairs.target - sum(counts[:i])}[side][pairs.picture == i]
        assert rows.tolist() == expected.tolist(), name


@pytest.mark.parametrize(
    "path", golden_cases("decola", "p1_train_*", "p2_train_box*", "boxsup_train_*", "detic_train_*")
)
def test_losses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, tensors = load_case(path)
    detector, batch = case_detector(case), batch_of(case)
    losses, found = learn(case, detector, batch, monkeypatch)
    check_assignment(case, tensors, found, [len(target) for target in batch.targets])
    check_losses(case, losses)
    check_gradients(case, detector)
    assert isinstance(batch.rng, Told)
    if case["config"].startswith("DECOLA_PHASE1") and case["images"][0]["classes"]:
        assert case["fed_inds"][0] == sorted({name for one in case["images"] for name in one["classes"]})
    else:
        assert not batch.rng.lists  # as often as the original


def teacher_of(case: Case) -> Teacher:
    detector = case_detector(case, ["MODEL.DECOLA.QUERIES_PER_PROMPT", str(QUERIES)])
    assert isinstance(detector, Decola)
    return Teacher(detector, len(detector.first_stage.rows), Choice())


@pytest.mark.parametrize("path", golden_cases("decola", "p2_train_image*"))
def test_losses_of_boxes_by_a_teacher(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, tensors = load_case(path)
    batch = teacher_of(case)(batch_of(case))
    for i, target in enumerate(batch.targets):
        assert (target.labels - 1).tolist() == tensors[f"pseudo{i}_labels"].tolist()
        shares = xyxy_to_cxcywh(rescale(target.boxes, target.meta.size, (1, 1)))
        torch.testing.assert_close(shares, tensors[f"pseudo{i}_boxes"], rtol=0, atol=1e-4)
    detector = case_detector(case)
    losses, found = learn(case, detector, batch, monkeypatch)
    check_assignment(case, tensors, found, [len(target) for target in batch.targets])
    check_losses(case, losses)
    check_gradients(case, detector)


@pytest.mark.parametrize("path", golden_cases("decola", "self_label_offline"))
def test_boxes_of_a_teacher_on_disk(path: Path) -> None:
    case, tensors = load_case(path)
    batch = batch_of(case)
    records = []
    for i, (target, found) in enumerate(
        zip(batch.targets, teacher_of(case).find(batch.images, known(batch)), strict=True)
    ):
        boxes = rescale(found.boxes, (1, 1), target.meta.orig_size)
        torch.testing.assert_close(boxes, tensors[f"boxes{i}"], rtol=0, atol=case["tolerance"]["boxes_px"])
        torch.testing.assert_close(found.scores, tensors[f"scores{i}"], rtol=0, atol=case["tolerance"]["scores"])
        assert (found.labels - 1).tolist() == tensors[f"classes{i}"].tolist()
        rows = zip(found.labels.tolist(), xyxy_to_xywh(boxes).tolist(), strict=True)
        records += [{"image_id": i + 1, "category_id": label, "bbox": box} for label, box in rows]
    for ours, theirs in zip(records, case["json_records"], strict=True):
        assert ours["category_id"] == theirs["category_id"]
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=2 * case["tolerance"]["boxes_px"])


def known(batch: Batch) -> list[Tensor]:
    return [target.image_labels for target in batch.targets if target.image_labels is not None]


@pytest.mark.parametrize("path", golden_cases("decola", "solver_*"))
def test_solver(path: Path) -> None:
    case, _ = load_case(path)
    cfg = case_config({"overrides": [], **case})
    with torch.device("meta"):
        model = build_detector(cfg)
    solver = build_solver(cfg, model, Plan(1, 1, case["max_iter"], 1))
    assert type(solver.optimizer).__name__ == case["type"]
    limit = {"full_model": solver.clip_norm, "value": solver.clip_value}[case["clip"]["CLIP_TYPE"]]
    assert limit == case["clip"]["CLIP_VALUE"]
    assert case["clip"]["ENABLED"]

    expected: dict[str, Any] = {}
    for values, names in case["parameters"].items():
        rate, decay = (float(part.split("=")[1]) for part in values.split(","))
        placed, _ = without_copies(dict.fromkeys(rename(names, RELEASED).values(), torch.empty(0)))
        expected |= dict.fromkeys(placed, pytest.approx((rate, decay)))
    groups = param_groups(model, build_rates(cfg))
    assert {group.name: (group.lr, group.weight_decay) for group in groups} == expected
    assert len(groups) == case["num_groups"]

    base = max(group["initial_lr"] for group in solver.optimizer.param_groups)
    for step, factor in case["lr_multiplier"].items():
        solver.schedule.done = int(step)
        assert solver.schedule.lr(base) / base == pytest.approx(factor, rel=1e-9), step
