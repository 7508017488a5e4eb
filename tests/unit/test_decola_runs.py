"""Training of both phases of DECOLA through the tool of all others: resumed to the last bit, with the same teacher."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from maskrcnn_benchmark.checkpoint import resume
from maskrcnn_benchmark.data.drawn import CLASSES, World
from maskrcnn_benchmark.data.drawn.forms import write_lvis
from maskrcnn_benchmark.engine.self_label import Teacher
from maskrcnn_benchmark.modeling.interface import Batch
from tests.decola_runs import WITH_NAMES, SmallDecola, make_small_decola
from tests.training_runs import final_state, rows, same

STEPS = 10
PHASE_2 = {
    "MODEL__DECOLA__PROB_OBJECT_PROMPT": 1.0,
    "MODEL__DECOLA__SELF_LABEL__ENABLED": True,
    "TEST__CONDITIONED__ENABLED": False,
    "TEST__CONDITIONED__USE_GT_NAMES": False,
    **WITH_NAMES,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDecola]:
    made = make_small_decola(tmp_path_factory.mktemp("decola"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def phase_1(small: SmallDecola) -> Path:
    """The folder of a whole phase 1."""
    return small.whole(SOLVER__MAX_ITER=STEPS)


def phase_2(phase_1: Path, **keys: Any) -> dict[str, Any]:
    return {**PHASE_2, "MODEL__WEIGHT": phase_1 / "model_final.pth", "SOLVER__MAX_ITER": STEPS, **keys}


def test_a_killed_phase_1_goes_on_to_the_last_bit(small: SmallDecola, phase_1: Path, tmp_path: Path) -> None:
    assert small.fork(tmp_path, at=6, SOLVER__MAX_ITER=STEPS) == -9
    assert (tmp_path / resume.name_of(4)).exists()
    assert small.fork(tmp_path, SOLVER__MAX_ITER=STEPS) == 0
    assert rows(tmp_path) == rows(phase_1)
    assert same(final_state(tmp_path), final_state(phase_1))
    names = rows(phase_1)[0].keys()
    assert {"loss_ce", "loss_bbox_0", "loss_giou_enc", "loss_ce_weak_data"} <= names
    assert "class_error" not in names  # each query speaks of its own class alone


def test_weights_are_scored(small: SmallDecola, phase_1: Path, tmp_path: Path) -> None:
    """On data of COCO's form, with the last checkpoint though others are named; and on data of LVIS's form."""
    shutil.copytree(phase_1, tmp_path / "run")
    keys = {"SOLVER__MAX_ITER": STEPS, "MODEL__WEIGHT": tmp_path / "others.pth", "DATASETS__TRAIN": "()"}
    assert small.run(tmp_path / "run", "--eval-only", "--resume", **keys) == 0
    scored = results_of(tmp_path / "run")
    assert scored["weights"] == str(tmp_path / "run" / resume.name_of(STEPS))
    assert scored["counts"]["pictures"] == 6
    assert scored["counts"]["detections"] > 0
    assert "AP50" in scored["metrics"]
    assert small.run(tmp_path / "empty", "--eval-only", "--resume", **keys) == 2  # MODEL.WEIGHT, which is not there
    keys["MODEL__WEIGHT"] = phase_1 / "model_final.pth"

    lvis = write_lvis(tmp_path / "scenes", World(3, size=(96, 128), classes=CLASSES), 3)
    task = tmp_path / "task.yaml"
    task.write_text(yaml.safe_dump({"DATASETS": {"REGISTER": {"drawn_lvis": lvis.entry}, "TEST": ["drawn_lvis"]}}))
    assert replace(small, task=task).run(tmp_path / "lvis", "--eval-only", **keys) == 0
    scored = results_of(tmp_path / "lvis")
    assert scored["weights"] == str(phase_1 / "model_final.pth")
    assert scored["counts"]["detections"] > 0
    assert {"AP", "APr", "AP-novel", "AP-base"} <= scored["metrics"].keys()
    assert not list((tmp_path / "lvis").glob("model_*.pth"))  # nothing is trained


def results_of(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("results.json")
    results: dict[str, Any] = json.loads(path.read_text())
    return results


def test_a_killed_phase_2_goes_on_to_the_last_bit_with_the_same_teacher(
    small: SmallDecola, phase_1: Path, tmp_path: Path
) -> None:
    keys = phase_2(phase_1)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert small.fork(whole, **keys) == 0, (whole / "told").read_text()
    assert small.fork(killed, at=6, **keys) == -9
    assert small.fork(killed, **keys) == 0
    assert rows(killed) == rows(whole)
    assert same(final_state(killed), final_state(whole))
    kinds = {(row["loss_ce"] > 0, row["loss_ce_weak_data"] > 0) for row in rows(whole)}
    assert kinds == {(True, False), (False, True)}  # batches of boxes, and batches of names
    assert any(row["loss_bbox_weak_data"] > 0 for row in rows(whole))
    state = final_state(whole)
    assert state["model"].keys() == final_state(phase_1)["model"].keys()  # nothing of the teacher
    assert "boxes for image labels come from" in (killed / "told").read_text()


def test_another_teacher_is_refused(
    small: SmallDecola, phase_1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tmp_path / "teacher.pth"
    shutil.copyfile(phase_1 / "model_final.pth", teacher)
    keys = phase_2(phase_1, MODEL__DECOLA__SELF_LABEL__TEACHER_WEIGHT=teacher, SOLVER__MAX_ITER=2)
    assert small.run(tmp_path / "run", **keys) == 0
    shutil.copyfile(phase_1 / resume.name_of(8), teacher)
    assert small.run(tmp_path / "run", **keys | {"SOLVER__MAX_ITER": 4}) == 2
    assert "the boxes for image labels came from other weights" in capsys.readouterr().err


def test_an_evaluation_does_not_touch_the_teacher(
    small: SmallDecola, phase_1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[tuple[bool, int]] = []
    label = Teacher.__call__

    def watched(self: Teacher, batch: Batch) -> Batch:
        modes.append((self.detector.training, self.detector.queries_per_prompt))
        return label(self, batch)

    monkeypatch.setattr(Teacher, "__call__", watched)
    assert small.run(tmp_path, **phase_2(phase_1, SOLVER__MAX_ITER=4, SOLVER__TEST_PERIOD=2)) == 0
    assert (tmp_path / "inference" / "drawn" / "results.json").exists()
    assert modes == [(False, 300)] * 4


def test_a_phase_2_without_a_teacher_is_refused(
    small: SmallDecola, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small.run(tmp_path, **PHASE_2) == 2
    assert "MODEL.DECOLA.SELF_LABEL.TEACHER_WEIGHT '' (" in capsys.readouterr().err
    assert small.run(tmp_path, **{**PHASE_2, "MODEL__DECOLA__SELF_LABEL__ENABLED": False}) == 2
    assert "pictures with labels only, which would be learnt as empty ones" in capsys.readouterr().err
    lost = {"MODEL__DECOLA__SELF_LABEL__TEACHER_WEIGHT": tmp_path / "lost.pth"}
    for flags in ((), ("--dry-run",)):
        assert small.run(tmp_path, *flags, **PHASE_2, **lost) == 2
        told = capsys.readouterr().err
        assert (
            "MODEL.DECOLA.SELF_LABEL.TEACHER_WEIGHT, the teacher of on-line self-labelling: no weights called" in told
        )
        assert "lost.pth" in told


@pytest.mark.parametrize(("key", "what"), [("WEIGHT_PATH", "class 1"), ("OBJECT_WEIGHT_PATH", "the prompt for")])
def test_a_training_without_embeddings_is_refused(
    small: SmallDecola, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, what: str
) -> None:
    lost = {f"MODEL__ZEROSHOT_CLS__{key}": tmp_path / "lost.npy", "MODEL__DECOLA__PROB_OBJECT_PROMPT": 0.5}
    assert small.run(tmp_path, **lost) == 2
    told = capsys.readouterr().err
    assert f"error: {what}" in told
    assert "has no embedding: neither MODEL.WEIGHT nor" in told


def test_names_that_are_no_category_are_refused(
    small: SmallDecola, phase_1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = small.narrow.folder / "named" / "annotations.json"
    file = file if file.exists() else next((small.narrow.folder / "named").glob("*.json"))
    before = file.read_text(encoding="utf-8")
    data = json.loads(before)
    data["images"][1]["pos_category_ids"] = [999]
    try:
        file.write_text(json.dumps(data), encoding="utf-8")
        assert small.run(tmp_path, "--dry-run", **phase_2(phase_1)) == 2
    finally:
        file.write_text(before, encoding="utf-8")
    told = capsys.readouterr().err
    assert "pos_category_ids has 999" in told
    assert file.name in told


def test_the_baseline_learns_from_names(small: SmallDecola, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SmallDecola, "network", "baseline")
    assert small.run(tmp_path, SOLVER__MAX_ITER=4, **WITH_NAMES) == 0
    losses = [row["loss_image"] for row in rows(tmp_path)]
    assert any(value > 0 for value in losses)
    assert any(value == 0 for value in losses)
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows(tmp_path))
