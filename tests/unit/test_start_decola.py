"""Weights that DECOLA begins with: those of a classifier for its backbone, and those of its own first phase."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maskrcnn_benchmark.checkpoint.start import BODY, start_from
from maskrcnn_benchmark.errors import WeightsError
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.interface import Detector
from tests.narrow_decola import narrow_cfg


@pytest.fixture
def detector(tmp_path: Path) -> Detector:
    return build_detector(narrow_cfg("phase 1", tmp_path))


def test_a_classifier_gives_the_backbone(detector: Detector, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    own = {name.removeprefix(BODY): value for name, value in before.items() if name.startswith(BODY)}
    body = {name: torch.rand_like(value) if value.is_floating_point() else value for name, value in own.items()}
    torch.save(
        {"model": {**body, "norm.weight": torch.zeros(64), "head.weight": torch.zeros(10, 64)}}, tmp_path / "a.pth"
    )
    report = start_from(detector, tmp_path / "a.pth")
    after = detector.state_dict()
    assert set(report.loaded) == {name for name in after if name.startswith(BODY)}
    assert set(report.unexpected) == {"norm.weight", "head.weight"}
    for name, value in after.items():
        assert torch.equal(value, body.get(name.removeprefix(BODY), before[name])), name


def test_a_classifier_of_another_size_is_refused(detector: Detector, tmp_path: Path) -> None:
    body = {
        n.removeprefix(BODY): torch.rand(*v.shape, 2) for n, v in detector.state_dict().items() if n.startswith(BODY)
    }
    torch.save({"model": body}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth .* does not fit the backbone"):
        start_from(detector, tmp_path / "a.pth")


def test_the_first_phase_gives_the_second_all_it_has(detector: Detector, tmp_path: Path) -> None:
    torch.save({"model": detector.state_dict()}, tmp_path / "a.pth")
    second = build_detector(narrow_cfg("phase 2", tmp_path))
    start_from(second, tmp_path / "a.pth")
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in detector.state_dict().items())


def test_first_values_are_those_of_the_original(detector: Detector) -> None:
    state = detector.state_dict()
    for name, value in state.items():
        if "bbox_embed" in name and ".layers.2." in name:
            assert not value.any(), name  # boxes begin as those around cells
    assert float(state["detr.class_embed.0.cls_bias"]) == pytest.approx(-4.59511985013459)
    wide = (6 / sum(state["detr.transformer.encoder.layers.0.linear1.weight"].shape)) ** 0.5
    assert 0.9 * wide < state["detr.transformer.encoder.layers.0.linear1.weight"].abs().max() <= wide
    narrow = state["detr.transformer.decoder.layers.0.linear1.weight"]
    assert narrow.abs().max() <= narrow.shape[1] ** -0.5  # torch's own values, as the decoder is made afterwards
