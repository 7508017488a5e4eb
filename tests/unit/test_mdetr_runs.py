"""A narrow MDETR by the options of its own main.py: trained, interrupted, frozen under a mask head, scored."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint.io import read_state_dict
from maskrcnn_benchmark.solver.build import Solver
from tests.mdetr_place import Place, make_place
from tests.training_runs import ROOT, environment, final_state, rows, same
from tools import test_grounding_net, train_net

PRETRAIN = ("--dataset_config", "configs/pretrain.json", "--ema", "--ema_decay", "0.9")
PHRASECUT = ("--dataset_config", "configs/phrasecut.json")
STEPS = {"SOLVER__MAX_EPOCH": 0, "SOLVER__CHECKPOINT_EPOCH": 0, "SOLVER__MAX_ITER": 4, "SOLVER__CHECKPOINT_PERIOD": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), count=2)


@pytest.fixture
def place(made: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made.enter(monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield made
    torch.set_num_threads(threads)


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Data set -> numbers."""
    files = folder.rglob("results.json")
    return {path.parent.name: json.loads(path.read_text())["metrics"] for path in files if path.parent.name != "boxes"}


def test_pre_training_goes_on_as_if_nothing_had_been(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    keys = {**STEPS, "TEST__DURING_TRAINING": False}
    assert place.main(*PRETRAIN, "--output_dir", whole, **keys) == 0, capsys.readouterr().err
    step = Solver.step

    def killed(self: Solver) -> Any:
        if self.done == 2:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Solver, "step", killed)
        assert place.main(*PRETRAIN, "--output_dir", cut, **keys) == 130
    assert place.main(*PRETRAIN, "--resume", cut / "last_checkpoint", **keys) == 0
    equal(whole, cut)


def equal(whole: Path, other: Path) -> None:
    """Two trainings that tell the same and end the same, to the last bit."""
    assert rows(whole) == rows(other)
    one, two = final_state(whole), final_state(other)
    for key in ("model", "model_ema", "optimizer", "scheduler"):
        assert same(one[key], two[key]), key
    assert not same(one["model"], one["model_ema"])


def test_killed_pre_training_ends_as_if_it_had_not_been(place: Place, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    keys = {**STEPS, "SOLVER__MAX_ITER": 6, "SOLVER__CHECKPOINT_PERIOD": 1, "TEST__DURING_TRAINING": False}
    assert place.main(*PRETRAIN, "--output_dir", whole, **keys) == 0
    opts = place.opts({key.replace("__", "."): value for key, value in keys.items()})
    command = [sys.executable, str(ROOT / "tools" / "main.py"), *PRETRAIN, "--output_dir", str(cut), *opts]
    for reached in ("model_0000001.pth", "model_0000004.pth"):
        process = subprocess.Popen(command, cwd=place.folder, env=environment(), stderr=subprocess.DEVNULL)
        while not (cut / reached).exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        assert process.wait(300) == -signal.SIGKILL, "it was not at its end yet"
    assert place.main(*PRETRAIN, "--output_dir", cut, **keys) == 0
    equal(whole, cut)


def test_phrasecut_in_two_steps(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "detection", tmp_path / "masks"
    assert place.main(*PHRASECUT, "--strict-config", "--ema", "--output_dir", first, **STEPS) == 0, (
        capsys.readouterr().err
    )
    found = results(first)["phrasecut_miniv"]
    assert found["box_mean_iou"] >= 0
    assert found["boxes/AP50"] >= 0
    masks = ("--mask_model", "smallconv", "--no_aux_loss")
    frozen = ("--frozen_weights", first / "checkpoint.pth")  # as the original calls its last checkpoint
    assert place.main(*PHRASECUT, "--strict-config", *masks, *frozen, "--output_dir", second, **STEPS) == 0, (
        capsys.readouterr().err
    )
    before, after = read_state_dict(first / "model_final.pth", ema="preferred"), final_state(second)["model"]
    kept = {name: value for name, value in before.items() if "contrastive_align" not in name}
    assert all(torch.equal(after[f"detr.{name}"], value) for name, value in kept.items())
    assert {"loss_mask", "loss_dice"} <= rows(second)[-1].keys()
    assert "loss_ce_0" not in rows(second)[-1]
    capsys.readouterr()
    asked = ("--eval", "--test", "--ema", "--no_contrastive_align_loss", "--mask_model", "smallconv")
    keys = {"MODEL__MDETR__MASK_THRESH": 0.0}
    final = second / "model_final.pth"
    assert (
        place.main(*PHRASECUT, "--strict-config", *asked, "--resume", final, "--output_dir", tmp_path / "test", **keys)
        == 0
    )
    told = capsys.readouterr()
    assert "the plain weights are taken" in told.err, "step 2 has no average"
    assert "mask_mean_iou" in told.out
    assert results(tmp_path / "test")["phrasecut_test"]["mask_cum_iou"] > 0


def test_all_sets_of_pre_training_are_scored(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.main(*PRETRAIN, "--strict-config", "--output_dir", tmp_path, **{**STEPS, "SOLVER__MAX_ITER": 1}) == 0
    told = capsys.readouterr().err
    found = results(tmp_path)
    assert set(found) == {"flickr30k_val", "gqa_val", "refexp_all_val"}
    aps = [found["flickr30k_val"]["boxes/AP50"], found["gqa_val"]["AP50"], found["refexp_all_val"]["boxes/AP50"]]
    assert "Recall@1_all" in found["flickr30k_val"]
    assert "P@1" in found["refexp_all_val"]
    assert final_state(tmp_path)["counters"]["best"]["score"] == pytest.approx(sum(aps) / 3)
    assert "with the averaged weights" in told


def test_mistakes(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: object) -> str:
        assert place.main(*words, "--output_dir", tmp_path / "out") == 2
        return capsys.readouterr().err

    assert "add --mask_model smallconv" in told(*PHRASECUT, "--frozen_weights", "a.pth")
    assert "--eval: no weights to score" in told(*PHRASECUT, "--eval")
    assert "no weights called 'nothing.pth'" in told(*PHRASECUT, "--load", "nothing.pth")
    (tmp_path / "alone.pth").write_bytes(b"")
    assert "no training to go on with" in told(*PHRASECUT, "--resume", tmp_path / "alone.pth")


@pytest.mark.full
@pytest.mark.parametrize("name", ["pretrain_r101", "phrasecut_detection_r101", "phrasecut_masks_r101"])
def test_configs_without_the_options(
    name: str, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    starts = {"WEIGHT": "", "MDETR.FROZEN_WEIGHTS": "", "MDETR.BACKBONE_WEIGHT": "", "MDETR.TEXT_WEIGHT": ""}
    steps = {"SOLVER.MAX_ITER": 1, "SOLVER.MAX_EPOCH": 0, "SOLVER.CHECKPOINT_EPOCH": 0, "SOLVER.IMS_PER_BATCH": 2}
    opts = place.opts({**steps, **{f"MODEL.{key}": value for key, value in starts.items()}})
    config = ["--config-file", f"configs/mdetr/{name}.yaml", "--strict-config"]
    trained = tmp_path / "trained"
    assert cli.run(train_net.main, [*config, "--override_output_dir", str(trained), *opts]) == 0, (
        capsys.readouterr().err
    )
    scored = ["--weight", str(trained / "model_final.pth"), *place.opts(), "OUTPUT_DIR", str(tmp_path / "scored")]
    assert cli.run(test_grounding_net.main, [*config, *scored]) == 0, capsys.readouterr().err
    told = capsys.readouterr().err
    average = "plain" if name.startswith("phrasecut_masks") else "averaged (model_ema)"
    assert f"the {average} weights are taken" in told
    assert results(tmp_path / "scored").keys() == results(trained).keys()
