"""Weights that a training begins with: of a whole detector, a Swin classifier, or FIBER's coarse-grained stage."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from maskrcnn_benchmark.checkpoint.start import start_from
from maskrcnn_benchmark.errors import WeightsError


class Part(nn.Module):
    """A module of parts by name."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def detector(fused: bool) -> nn.Module:
    """The names that matter of a FIBER (fused) or GLIP."""
    body = Part(patch_embed=Part(proj=nn.Conv2d(3, 4, 2)), layers=nn.ModuleList([nn.Linear(4, 4)]))
    language = Part(body=Part(model=Part(pooler=nn.Linear(4, 4))))
    parts = {"backbone": Part(body=body), "language_backbone": language}
    rpn = Part(head=Part(bbox_pred=nn.Linear(4, 4)), tunable_linear=nn.Linear(2, 2))
    return Part(fusion_backbone=Part(**parts), rpn=rpn) if fused else Part(**parts, rpn=rpn)


def save(path: Path, state: dict[str, torch.Tensor], key: str = "model") -> Path:
    torch.save({key: state}, path)
    return path


SWIN = {"patch_embed.proj.weight": torch.full((4, 3, 2, 2), 2.0), "layers.0.weight": torch.full((4, 4), 3.0)}


@pytest.mark.parametrize("fused", [True, False])
def test_swin_classifier_gives_the_body(fused: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = detector(fused)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logging.getLogger("maskrcnn_benchmark").propagate = True
    with caplog.at_level(logging.INFO):
        report = start_from(model, save(tmp_path / "swin.pth", {**SWIN, "head.weight": torch.zeros(1000, 4)}))
    root = "fusion_backbone." if fused else ""
    assert set(report.loaded) == {f"{root}backbone.body.{name}" for name in SWIN}
    after = model.state_dict()
    assert after[f"{root}backbone.body.layers.0.weight"].eq(3).all()
    assert torch.equal(after["rpn.head.bbox_pred.weight"], before["rpn.head.bbox_pred.weight"])
    assert "no place for 1 tensors, such as head.weight" in caplog.text


def test_coarse_stage_gives_both_towers(tmp_path: Path) -> None:
    state = {f"vit_model.{name}": value for name, value in SWIN.items()}
    state["text_transformer.pooler.bias"] = torch.full((4,), 5.0)
    model = detector(fused=True)
    report = start_from(model, save(tmp_path / "coarse.pt", state, key="state_dict"))
    assert len(report.loaded) == 3
    assert model.state_dict()["fusion_backbone.language_backbone.body.model.pooler.bias"].eq(5).all()
    assert model.state_dict()["fusion_backbone.backbone.body.patch_embed.proj.weight"].eq(2).all()


def test_detector_may_lack_what_training_adds(tmp_path: Path) -> None:
    model = detector(fused=True)
    state = {name: value + 1 for name, value in model.state_dict().items() if "tunable_linear" not in name}
    report = start_from(model, save(tmp_path / "detector.pth", state))
    assert sorted(report.left_alone) == ["rpn.tunable_linear.bias", "rpn.tunable_linear.weight"]
    assert torch.equal(model.state_dict()["rpn.head.bbox_pred.bias"], state["rpn.head.bbox_pred.bias"])


@pytest.mark.parametrize("prefix", ["", "vit_model."])
def test_other_sizes_are_refused_and_nothing_is_changed(prefix: str, tmp_path: Path) -> None:
    model = detector(fused=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {f"{prefix}{name}": value for name, value in {**SWIN, "layers.0.weight": torch.zeros(8, 4)}.items()}
    with pytest.raises(WeightsError, match=r"layers\.0\.weight.*same size"):
        start_from(model, save(tmp_path / "large.pth", state))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_file_of_another_detector_is_refused(tmp_path: Path) -> None:
    state = {name: value for name, value in detector(fused=False).state_dict().items() if "pred" not in name}
    with pytest.raises(WeightsError, match="missing"):
        start_from(detector(fused=True), save(tmp_path / "other.pth", state))
