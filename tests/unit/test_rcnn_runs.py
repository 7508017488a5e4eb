"""Training, evaluation and use of a detector that reads no text, through the same tools as all others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from maskrcnn_benchmark import cli, mrb
from maskrcnn_benchmark.api import Predictor, load_model
from maskrcnn_benchmark.data.drawn import CLASSES
from maskrcnn_benchmark.errors import DataError, PromptError
from tests.narrow_rcnn import CONFIG, NARROW, SmallRcnn, make_small_rcnn
from tests.training_runs import final_state, rows, same
from tools import test_grounding_net

LAST = 4


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRcnn:
    return make_small_rcnn(tmp_path_factory.mktemp("rcnn"))


@pytest.fixture(scope="module")
def trained(small: SmallRcnn) -> Path:
    """The folder of a short training."""
    output = small.narrow.folder / "trained"
    argv = [word for word in small.argv(output, SOLVER__MAX_ITER=LAST, SOLVER__TEST_PERIOD=3) if word != "--skip-test"]
    from tools import train_net

    assert cli.run(train_net.main, [*argv, "SOLVER.PICTURES_PERIOD", "2"]) == 0
    return output


def options(**keys: object) -> list[str]:
    changed = {**NARROW, **{key.replace("__", "."): value for key, value in keys.items()}}
    return [str(part) for pair in changed.items() for part in pair]


def test_a_training_writes_what_others_write(trained: Path) -> None:
    assert [row["step"] for row in rows(trained)] == [1, 2, 3, 4]
    assert {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"} <= set(rows(trained)[0])
    names = {path.name for path in trained.glob("*.pth")}
    assert {"model_0000002.pth", "model_0000003.pth", "model_0000004.pth", "model_final.pth"} <= names
    state = final_state(trained)
    assert (state["iteration"], state["classes"]) == (LAST, list(CLASSES))
    assert sorted(path.name for path in (trained / "seen").iterdir()) == ["step_0000002.png", "step_0000004.png"]
    results = json.loads((trained / "inference" / "drawn" / "results.json").read_text())
    assert results["metrics"].keys() >= {"AP50"}


def test_evaluation_of_a_checkpoint(small: SmallRcnn, trained: Path, tmp_path: Path) -> None:
    words = ["--config-file", CONFIG, "--weight", str(trained / "model_final.pth"), "--task_config", str(small.task)]
    assert cli.run(test_grounding_net.main, [*words, *options(OUTPUT_DIR=tmp_path)]) == 0
    one = json.loads(next(tmp_path.rglob("results.json")).read_text())
    at_the_end = json.loads((trained / "inference" / "drawn" / "results.json").read_text())
    assert one["metrics"] == at_the_end["metrics"]
    command = ["eval", *words[:4], "--tasks", str(small.task), "--output", str(tmp_path / "mrb"), "--dry-run", "--set"]
    assert mrb.main([*command, *options()]) == 0


def test_retinanet_goes_the_same_way(small: SmallRcnn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {
        "MODEL__RETINANET_ON": True,
        "MODEL__BACKBONE__CONV_BODY": "R-50-FPN-RETINANET",
        "MODEL__RETINANET__NUM_CLASSES": len(CLASSES) + 1,
        "MODEL__RETINANET__NUM_CONVS": 1,
        "SOLVER__MAX_ITER": 2,
    }
    assert small.run(tmp_path, **keys) == 0
    assert {"loss_retina_cls", "loss_retina_reg"} <= set(rows(tmp_path)[0])
    assert small.run(tmp_path / "other", **keys | {"MODEL__RETINANET__NUM_CLASSES": 81}) == 2
    assert "MODEL.RETINANET.NUM_CLASSES 81 (command line) is for 80 classes" in capsys.readouterr().err


def test_a_head_for_other_classes_is_refused(
    small: SmallRcnn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small.run(tmp_path, MODEL__ROI_BOX_HEAD__NUM_CLASSES=21) == 2
    told = capsys.readouterr().err
    assert re.search(r"NUM_CLASSES 21 \(command line\) is for 20 classes .* has 8 \(red circle, .*: set it to 9", told)
    words = ["--config-file", CONFIG, "--weight", __file__, "--task_config", str(small.task)]
    keys = options(OUTPUT_DIR=tmp_path, MODEL__ROI_BOX_HEAD__NUM_CLASSES=21)
    assert cli.run(test_grounding_net.main, [*words, *keys]) == 2
    assert "set it to 9" in capsys.readouterr().err


def test_captions_need_a_detector_that_reads(
    small: SmallRcnn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"kind": "refexp", "evaluator": "refexp", "img_dir": str(tmp_path), "ann_file": str(small.task)}
    task = tmp_path / "captions.yaml"
    task.write_text(yaml.safe_dump({"DATASETS": {"REGISTER": {"words": entry}, "TEST": ["words"]}}))
    words = ["--config-file", CONFIG, "--weight", __file__, "--task_config", str(task)]
    assert cli.run(test_grounding_net.main, [*words, *options(OUTPUT_DIR=tmp_path)]) == 2
    assert "captions, and this detector reads no text" in capsys.readouterr().err


def test_predictor_finds_classes_by_name(small: SmallRcnn, trained: Path) -> None:
    model = load_model(CONFIG, trained / "model_final.pth", opts=options())
    assert model.classes == CLASSES
    picture = next((small.annotations / "JPEGImages").iterdir())
    predictor = Predictor(model).set_image(picture)
    everything = predictor.predict()
    assert {everything.name(i) for i in range(len(everything))} <= set(CLASSES)
    assert len(everything) > 0
    wanted = [CLASSES[3].upper(), CLASSES[1]]
    some = predictor.predict(labels=wanted)
    of_these = [i for i in range(len(everything)) if everything.name(i) in (CLASSES[3], CLASSES[1])]
    assert torch.equal(some.boxes, everything.boxes[of_these])
    assert all(some.name(i) == {1: CLASSES[3], 2: CLASSES[1]}[int(some.labels[i])] for i in range(len(some)))
    with pytest.raises(PromptError, match=r"'red circel' is none of the 8 classes .* closest are red circle"):
        predictor.predict(labels=["red circel"])
    with pytest.raises(PromptError, match="reads no text"):
        predictor.predict(caption="a red circle")
    with pytest.raises(PromptError, match="write labels="):
        predictor.predict(labels="red circle")
    with pytest.raises(DataError, match="no picture"):
        Predictor(model).predict()


def test_mrb_detect(small: SmallRcnn, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(next((small.annotations / "JPEGImages").iterdir()))
    words = ["detect", picture, "--config-file", CONFIG, "--weight", str(trained / "model_final.pth")]
    words += ["--output", str(tmp_path), "--min-score", "0"]
    assert mrb.main([*words, "--set", *options()]) == 0
    (record,) = json.loads((tmp_path / "detections.json").read_text())
    assert {row["name"] for row in record["detections"]} <= set(CLASSES)
    assert mrb.main([*words, "--labels", "a zebra", "--set", *options()]) == 2
    assert "'a zebra' is none of the 8 classes" in capsys.readouterr().err


def test_mrb_label(small: SmallRcnn, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of its own classes: all of them, or some."""
    shots = str(small.annotations / "JPEGImages")
    words = ["label", shots, "--config-file", CONFIG, "--weight", str(trained / "model_final.pth"), "--min-score", "0"]
    for name, labels in (("all", ()), ("some", ("--labels", f"{CLASSES[3].upper()}, {CLASSES[1].replace(' ', '_')}"))):
        out = tmp_path / f"{name}.json"
        assert mrb.main([*words, *labels, "--output", str(out), "--set", *options()]) == 0
        found = json.loads(out.read_text())
        wanted = [label.strip() for label in labels[1].split(",")] if labels else list(CLASSES)
        assert [row["name"] for row in found["categories"]] == wanted
        assert len(found["annotations"]) > 0
        assert {row["category_id"] for row in found["annotations"]} <= set(range(1, len(wanted) + 1))
        check = ["data", "check", str(out), "--images", shots, "--output", str(tmp_path / f"check_{name}")]
        assert mrb.main(check) == 0
    capsys.readouterr()
    assert mrb.main([*words, "--labels", "a zebra", "--output", str(tmp_path / "no.json"), "--set", *options()]) == 2
    assert "'a zebra' is none of the 8 classes" in capsys.readouterr().err


def test_a_killed_training_goes_on_to_the_same_bits(small: SmallRcnn, tmp_path: Path) -> None:
    try:
        whole = small.whole()
        assert small.fork(tmp_path, at=4) == -9
        assert small.fork(tmp_path) == 0, (tmp_path / "told").read_text()
    finally:
        small.close()
    assert same(final_state(tmp_path)["model"], final_state(whole)["model"])
    assert rows(tmp_path) == rows(whole)


def test_a_transfer_begins_at_the_first_step(small: SmallRcnn, trained: Path, tmp_path: Path) -> None:
    """Only a checkpoint in the folder of results is gone on from; one in MODEL.WEIGHT gives weights."""
    assert small.run(tmp_path, MODEL__WEIGHT=trained / "model_final.pth", SOLVER__MAX_ITER=1) == 0
    assert [row["step"] for row in rows(tmp_path)] == [1]
    log = (tmp_path / "log.txt").read_text()
    assert "dropped, as it belongs to the classes of the data that the file was trained on: roi_heads.box" in log
