"""CenterNet2 with the heads of Detic against the numbers of the original, and under its names."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from maskrcnn_benchmark.checkpoint.io import load_weights
from maskrcnn_benchmark.checkpoint.names import rename
from maskrcnn_benchmark.checkpoint.rules import CENTERNET2, RELEASED
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.criterion import cascade, rcnn
from tests.golden.centernet2_net import Case, case_batch, case_detector, stages
from tests.golden.common import golden_cases, load_case
from tests.golden.dap_net import partners
from tests.golden.fiber_net import assert_statistics
from tests.golden.test_names import lists, read, without_memory

DETECTION = golden_cases("decola", "c2_*", but=("c2_train_*",))
TRAINING = golden_cases("decola", "c2_train_*")
LISTS = [param for param in lists("decola") if param.values[0] is None or "C2" in param.values[0].name]
SHARE = 0.99  # of boxes that must be found again


@pytest.mark.full
@pytest.mark.parametrize("path", DETECTION)
def test_detection(path: Path, tmp_path: Path) -> None:
    """Stages, proposals, detections of the network's input and of the picture on disk, with masks."""
    case, tensors = load_case(path)
    detector, batch = case_detector(case, tmp_path), case_batch(case)
    limits = case["tolerance"]
    with torch.no_grad():
        taps = stages(detector, batch.images.pixels)
        for name, expected in case["stats"].items():
            assert_statistics(name, taps[name], expected, 2e-4 * max(expected["std"], 1.0))
        state = detector.encode_image(batch.images)
        sizes = [meta.size for meta in batch.images.metas]
        (proposals,) = detector.proposal_generator.detect(state.features)
        (raw,) = detector.find(state.features, sizes)
        masks = detector.roi_heads.masks(state.features, [raw])
        (found,) = detector.detect(state)
    counts = {"proposals": len(proposals.scores), "raw": len(raw[1]), "out": len(found)}
    assert counts == case["counts"]
    for name, mine in {
        "proposal": (proposals.boxes, proposals.scores),
        "raw": (raw[0], raw[1], raw[2] - 1),
        "out": (found.boxes, found.scores, found.labels - 1),
    }.items():
        parts = ("boxes", "scores", "classes")[: len(mine)]
        share, _ = partners(mine, [tensors[f"{name}_{part}"] for part in parts], limits["boxes_px"], limits["scores"])
        assert share >= SHARE, f"{name}: only {share:.3f} of the boxes were found again"
    assert masks is not None
    _assert_masks(masks[0], found.masks, raw, tensors, limits["mask_prob"])


def _assert_masks(
    masks: Tensor, pasted: Tensor | None, raw: tuple[Tensor, Tensor, Tensor], tensors: dict[str, Tensor], limit: float
) -> None:
    expected = tensors["raw_masks_28x28"][:, 0]
    same = (raw[0][None] - tensors["raw_boxes"][: len(expected), None]).abs().amax(2) < 0.1
    same &= raw[2][None] - 1 == tensors["raw_classes"][: len(expected), None]
    assert same.any(1).float().mean() >= SHARE
    own = masks[same.float().argmax(1)]
    assert (own - expected)[same.any(1)].abs().max() <= limit
    assert pasted is not None
    areas = pasted.flatten(1).sum(1)[: len(tensors["out_mask_area"])].sort().values.double()
    wanted = tensors["out_mask_area"].sort().values.double()
    assert ((areas - wanted).abs() <= 2 + 0.01 * wanted).float().mean() >= SHARE


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """In place of chance: the first proposals of each kind, and classes from a list that is used up."""

    def sample(labels: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
        positive, negative = ((labels >= 1).nonzero().squeeze(1), (labels == 0).nonzero().squeeze(1))
        positive = positive[: int(count * positive_fraction)]
        return positive, negative[: count - len(positive)]

    stated: list[list[int]] = []

    def classes(present: Tensor, weights: Tensor, count: int, rng: Random) -> Tensor:
        chosen = [number for number in stated.pop(0) if number < len(weights)]
        assert len(chosen) == count
        assert set(present.tolist()) <= set(chosen)
        return torch.tensor(chosen)

    monkeypatch.setattr(rcnn, "balanced_sample", sample)
    monkeypatch.setattr(cascade, "draw_classes", classes)
    return stated


@pytest.mark.full
@pytest.mark.parametrize("path", TRAINING)
def test_training(path: Path, tmp_path: Path, drawn: list[list[int]]) -> None:
    """Losses and gradients of a batch with boxes, or with image labels."""
    case, tensors = load_case(path)
    drawn += case["fed_inds"]
    detector, batch = case_detector(case, tmp_path).train(), case_batch(case)
    losses = detector(batch)
    total = losses.total()
    total.backward()
    _assert_losses(case, {name: value.item() for name, value in losses.terms.items()})
    assert total.item() == pytest.approx(tensors["total"].item(), rel=case["tolerance"]["loss_rel"])
    grads = {name: value.grad for name, value in detector.named_parameters() if value.grad is not None}
    assert not drawn
    norm = torch.stack([grad.double().norm() for grad in grads.values()]).norm().item()
    relative = case["tolerance"]["grad_rel"]
    assert norm == pytest.approx(case["grad_norm_all"], rel=relative)
    ours = {old: new for new, old in _released(detector).items()}
    for name, expected in case["grads"].items():
        assert_statistics(name, grads[ours[name]], expected, relative * max(expected["std"], 1e-9))


def _released(detector: torch.nn.Module) -> dict[str, str]:
    return rename([name for name, _ in detector.named_parameters()], CENTERNET2, outward=True)


def _assert_losses(case: Case, found: dict[str, float]) -> None:
    assert sorted(found) == sorted(case["loss_dict"])
    for name, expected in case["loss_dict"].items():
        assert found[name] == pytest.approx(expected, rel=case["tolerance"]["loss_rel"], abs=1e-6), name


@pytest.mark.parametrize("path", LISTS)
def test_released_names_load(path: Path, tmp_path: Path) -> None:
    """A file with the names and shapes of a released one is loaded whole."""
    with torch.device("meta"):
        model = build_detector(load_cfg(f"configs/decola/{path.stem}.yaml"))
    file = tmp_path / "model_final.pth"
    torch.save({"model": without_memory(read(path))}, file)
    report = load_weights(model, file, rules=RELEASED)
    assert report.fits
    assert len(report.loaded) == len(model.state_dict()) - len(report.left_alone)
    assert not json.loads(path.read_text()).keys() & set(report.unexpected)
