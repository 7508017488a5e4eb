"""Faster R-CNN and RetinaNet against the numbers of maskrcnn-benchmark, stage by stage."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_benchmark.checkpoint.io import load_weights
from maskrcnn_benchmark.checkpoint.rules import FASTER_RCNN
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.modeling.assign.box_coder import BoxCoder
from maskrcnn_benchmark.modeling.assign.matcher import match
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.criterion import rcnn as criterion
from maskrcnn_benchmark.modeling.heads.anchors import AnchorGenerator
from maskrcnn_benchmark.modeling.heads.roi_box import Pooler
from maskrcnn_benchmark.structures.boxes import area, iou, xyxy_to_xywh
from tests.golden.common import golden_cases, load_case
from tests.golden.dap_net import case_batch, case_detector, list_options, manual_seed, partners, stages
from tests.golden.fiber_net import assert_statistics
from tests.golden.test_names import lists, read, shapes, without_memory

NETWORKS = golden_cases("dap", "frcnn_*", "retinanet_*")
SHARE = 0.99  # of boxes that must be found again


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Builds the network of a case; the last one is kept, since the tests of a case follow each other."""
    last: dict[Path, nn.Module] = {}

    def build(path: Path) -> nn.Module:
        if path not in last:
            last.clear()
            last[path] = case_detector(load_case(path)[0], tmp_path_factory.mktemp("weights"))
        return last[path]

    return build


def rows(tensors: dict[str, Tensor], *names: str) -> list[tuple[Tensor, ...]]:
    """Per picture the tensors called ``name_0``, ``name_1``, ..."""
    count = sum(key.startswith(f"{names[0]}_") and key.rpartition("_")[2].isdigit() for key in tensors)
    return [tuple(tensors[f"{name}_{i}"] for name in names) for i in range(count)]


def assert_found(
    name: str, found: tuple[Tensor, ...], expected: tuple[Tensor, ...], ordered: bool, tolerance: float
) -> None:
    assert abs(len(found[0]) - len(expected[0])) <= (1 - SHARE) * len(expected[0]), f"{name}: {len(found[0])} boxes"
    share, in_order = partners(found, expected, tolerance, 1e-4)
    assert share >= SHARE, f"{name}: only {share:.3f} of the boxes were found again"
    assert in_order or not ordered, f"{name}: in another order"


@pytest.mark.parametrize("path", NETWORKS)
def test_network(path: Path, network: Any) -> None:
    """Stages, proposals and detections; the stages of the second half start from the stored proposals."""
    case, tensors = load_case(path)
    detector, batch = network(path), case_batch(case)
    ordered, tolerance = ("order" in case["tolerance"], 0.02) if "order" in case["tolerance"] else (False, 0.05)
    stored = {"input": case["input stats"], **case["intermediate (eval)"]}
    proposals = [boxes for (boxes,) in rows(tensors, "proposals")]
    with torch.no_grad():
        taps = {"input": batch.images.pixels, **stages(detector, batch.images.pixels, proposals)}
        state = detector.encode_image(batch.images)
        sizes = [meta.size for meta in batch.images.metas]
        for name, expected in stored.items():
            assert_statistics(name, taps[name], expected, 1e-4 * max(expected["std"], 1e-3), correction=1)
        if proposals:
            assert_proposals(detector, taps, state.features, sizes, tensors, ordered, tolerance)
        found = detector.find(state.features, sizes)
    expected = rows(tensors, "boxes", "scores", "labels")
    assert [len(labels) for _, _, labels in expected] == case["detections"]
    for i, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        assert_found(f"detections {i}", mine, theirs, ordered, tolerance)
    with torch.no_grad():
        for mine, (boxes, scores, labels) in zip(detector.detect(state), found, strict=True):
            order = scores.argsort(descending=True, stable=True)
            assert torch.equal(mine.scores, scores[order])
            assert torch.equal(mine.boxes, boxes[order])  # these pictures are not resized
            assert torch.equal(mine.labels, labels[order])


def assert_proposals(
    detector: nn.Module,
    taps: dict[str, Tensor],
    maps: list[Tensor],
    sizes: list[tuple[int, int]],
    tensors: dict[str, Tensor],
    ordered: bool,
    tolerance: float,
) -> None:
    """Proposals of each picture; where the case tells, the level that each comes from and is pooled from."""
    found = detector.rpn.detect(maps, sizes)
    expected = rows(tensors, "proposals", "proposal_objectness")
    for i, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        assert_found(f"proposals {i}", (mine.boxes, mine.scores), theirs, ordered, tolerance)
    anchors = detector.rpn.anchor_generator([x.shape[-2:] for x in maps])
    for i, (boxes, scores, origin, pool) in enumerate(
        rows(tensors, "proposals", "proposal_objectness", "proposal_rpn_level", "proposal_pool_level")
        if "proposal_rpn_level_0" in tensors
        else []
    ):
        pooled = detector.roi_heads.box.feature_extractor.pooler.levels(boxes) + 2
        assert torch.equal(pooled, pool.long()), f"levels that the proposals of picture {i} are pooled from"
        for level in range(len(maps)):
            outputs = ([taps[f"rpn.head[{part}][{level}]"]] for part in (0, 1))
            alone = detector.rpn.propose(*outputs, [anchors[level]], sizes, detector.rpn.limits["test"])[i]
            chosen = origin == level + 2
            share, _ = partners((alone.boxes, alone.scores), (boxes[chosen], scores[chosen]), tolerance, 1e-4)
            assert not chosen.any() or share >= SHARE, f"proposals of picture {i} from P{level + 2}"


@pytest.mark.parametrize("path", NETWORKS)
def test_training(path: Path, network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn, the losses, the gradients, and what is not trained."""
    case, tensors = load_case(path)
    detector, batch = network(path), case_batch(case)
    draws = recorded_draws(monkeypatch)
    given: list[Tensor] = []
    sample = criterion.BoxCriterion.sample

    def kept(self: Any, proposals: Tensor, target: Any) -> Any:
        given.append(torch.cat((proposals, target.boxes)))
        return sample(self, proposals, target)

    monkeypatch.setattr(criterion.BoxCriterion, "sample", kept)
    seed = manual_seed(case)
    torch.manual_seed(seed if seed is not None else 0)
    losses = detector(batch)
    detector.zero_grad()
    losses.total().backward()

    assert_draws(case, tensors, draws, given)
    tolerance = 1e-3 if "1e-3 if" in case["tolerance"] else 1e-4
    for name, value in case["losses"].items():
        assert losses.terms[name].item() == pytest.approx(value, rel=tolerance), name
    assert set(losses.terms) == set(case["losses"])
    released = {name.replace("body.conv1", "body.stem.conv1"): p for name, p in detector.named_parameters()}
    # where samples may cross a cell the gradient jumps: a change of the pixels by 1e-7 moves such norms by 0.3 %
    tolerance = 1e-2 if any(".conv2.offset." in name for name in released) else 1e-3
    for name, norm in case["gradient L2 norms of sum(losses)"].items():
        assert released[name].grad is not None, f"no gradient for {name}"
        assert released[name].grad.norm().item() == pytest.approx(norm, rel=tolerance, abs=1e-7), f"gradient of {name}"
    frozen = {name for name, p in released.items() if p.grad is None}
    assert frozen == set(case["parameters without gradient (frozen)"])
    assert frozen == {name for name, p in released.items() if not p.requires_grad}


def recorded_draws(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(labels, positive, negative) of each draw to come."""
    draws = []
    balanced_sample = criterion.balanced_sample

    def recorded(labels: Tensor, count: int, fraction: float) -> tuple[Tensor, Tensor]:
        positive, negative = balanced_sample(labels, count, fraction)
        draws.append((labels, positive, negative))
        return positive, negative

    monkeypatch.setattr(criterion, "balanced_sample", recorded)
    return draws


def assert_draws(
    case: dict[str, Any], tensors: dict[str, Tensor], draws: list[tuple[Tensor, Tensor, Tensor]], given: list[Tensor]
) -> None:
    count = len(case["images"])
    for start, kind in ((0, "rpn"), (count, "roi")):
        for i, (labels, positive, negative) in enumerate(draws[start : start + count]):
            wanted = case[f"{kind} sampler counts per image (positive, negative, ignored)"][i]
            assert [int(x.sum()) for x in (labels > 0, labels == 0, labels < 0)] == wanted, f"{kind} labels {i}"
            if f"train_proposals_{i}" in tensors and kind == "roi":
                theirs = tensors[f"train_proposals_{i}"]
                assert given[i].shape == theirs.shape
                assert ((given[i] - theirs).abs().amax(1) <= 0.05).float().mean() >= SHARE, f"train proposals {i}"
            for name, drawn in (("pos", positive), ("neg", negative)):
                stored = tensors.get(f"{kind}_{name}_{i}", drawn)  # not stored where everything is taken
                assert torch.equal(drawn, stored), f"{kind}_{name} drawn {i}"


@pytest.mark.parametrize("path", golden_cases("dap", "parts*"))
def test_parts(path: Path) -> None:
    """Anchors, coder, IoU, matching, levels, forms of boxes."""
    case, t = load_case(path)

    def close(name: str, value: Tensor) -> None:
        torch.testing.assert_close(value, t[name], rtol=1e-5, atol=1e-4, msg=lambda text: f"{name}: {text}")

    for name in t:
        if name.startswith("cell_anchors_") and name.split("_")[2].isdigit():
            stride, size = map(int, name.split("_")[2:])
            close(name, AnchorGenerator([size], [stride], (0.5, 1.0, 2.0)).cell_anchors.get_buffer("0"))
        elif name.startswith("cell_anchors_retina_"):
            stride = int(name.split("_")[3])
            generator = AnchorGenerator([4 * stride], [stride], (0.5, 1.0, 2.0), scales_per_octave=3)
            close(name, generator.cell_anchors.get_buffer("0"))
        elif name.startswith("cell_anchors_c4_"):  # 32, 64, 128, 256 and 512 pixels on one map
            stride = int(name.split("_")[3])
            generator = AnchorGenerator([32], [stride], (0.5, 1.0, 2.0), scales_per_octave=5, octave=32)
            close(name, generator.cell_anchors.get_buffer("0"))
        elif name.startswith("match_"):
            kind, *limits = name.split("_")[1:]
            high, low = map(float, limits[:2])
            close(name, match(iou(t["boxes_b"], t["boxes_a"], plus_one=True), high, low, limits[-1] == "lowq"))
    for kind, weights in (("rpn", (1.0, 1.0, 1.0, 1.0)), ("roi", (10.0, 10.0, 5.0, 5.0))):
        coder, codes = BoxCoder(weights), t[f"codes_{kind}"]
        close(f"encode_{kind}", coder.encode(t[f"enc_ref_{kind}"], t["boxes_a"]))
        anchors = t["boxes_a"].repeat_interleave(codes.shape[1] // 4, dim=0)
        close(f"decode_{kind}", coder.decode(codes.reshape(-1, 4), anchors).view_as(codes))
    close("area_a", area(t["boxes_a"], plus_one=True))
    close("iou_b_a", iou(t["boxes_b"], t["boxes_a"], plus_one=True))
    close("a_xywh", xyxy_to_xywh(t["boxes_a"], plus_one=True))
    close("levels_2_5", Pooler(7, (0.25, 0.125, 0.0625, 0.03125), 2).levels(t["level_boxes"]))
    for beta, name in ((1 / 9, "smooth_l1 sum beta=1/9 of x vs 0"), (1.0, "smooth_l1 sum beta=1")):
        assert criterion.smooth_l1(t["smooth_l1_x"], beta).item() == pytest.approx(case[name], rel=1e-5)


@cache
def options(path: Path) -> tuple[str, ...]:
    return tuple(list_options(shapes(read(path))))


@pytest.mark.parametrize("path", lists("dap"))
def test_name_lists_load(path: Path, tmp_path: Path) -> None:
    """Every released list of names and shapes is that of the network of its config, no more and no less."""
    keys = read(path)
    with torch.device("meta"):
        detector = build_detector(load_cfg(opts=options(path)))
    torch.save({"model": without_memory(keys)}, tmp_path / "weights.pth")
    report = load_weights(detector, tmp_path / "weights.pth", rules=FASTER_RCNN)
    assert len(report.loaded) == len(keys) == len(detector.state_dict())
    assert not report.left_alone
