"""``tools/test_grounding_net.py`` on several tasks, on VOC folders, and with other evaluators of COCO files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.narrow import Narrow, make_narrow
from tests.unit.voc_files import voc_object, write_voc


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Narrow:
    return make_narrow(tmp_path_factory.mktemp("narrow"))


def inference(output: Path, narrow: Narrow) -> Path:
    return output / "eval" / narrow.weights.stem / "inference"


def write_tasks(narrow: Narrow, folder: Path, *names: str) -> Path:
    """Task files that all call their data set val, as those of ODinW do."""
    folder.mkdir()
    for name in names:
        annotations = narrow.data(folder.parent / name, count=1)
        entry = {"ann_file": str(annotations), "img_dir": str(annotations.parent)}
        tree = {"DATASETS": {"REGISTER": {"val": entry}, "TEST": ["val"]}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return folder


def test_a_folder_of_tasks_has_a_mean(narrow: Narrow, tmp_path: Path) -> None:
    folder = write_tasks(narrow, tmp_path / "tasks", "fish", "extra", "pothole")
    (folder / "_all.json").write_text('["pothole.yaml", "fish.yaml"]')
    assert narrow.run(folder, tmp_path / "out") == 0
    results = inference(tmp_path / "out", narrow)
    summary = json.loads((results / "summary.json").read_text())
    assert [(row["task"], row["split"]) for row in summary["tasks"]] == [("pothole/val", "val"), ("fish/val", "val")]
    numbers = [json.loads((results / row["task"] / "results.json").read_text())["metrics"] for row in summary["tasks"]]
    assert summary["mean"]["AP"] == pytest.approx(sum(row["AP"] for row in numbers) / 2)
    assert "median" in (results / "summary.txt").read_text()


def test_a_glob_that_matches_nothing(narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert narrow.run(tmp_path / "*.yaml", tmp_path / "out") == 2
    assert "matches no YAML file" in capsys.readouterr().err


def test_expected_numbers_are_told_and_stop_nothing(
    narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = narrow.task(narrow.data(tmp_path / "scenes", count=1), tmp_path)
    expected = ("TEST.EXPECTED_RESULTS", "[['bbox', 'AP', [0, 1]], ['bbox', 'AP50', [2, 0.001]]]")
    assert narrow.run(task, tmp_path / "out", *expected) == 0
    err = capsys.readouterr().err
    assert "PASS drawn: AP is " in err
    assert "FAIL drawn: AP50 is " in err


@pytest.mark.parametrize(("evaluator", "main"), [("coco_agnostic", "AP50"), ("proposals", "AR@1000")])
def test_other_evaluators_of_coco_files(narrow: Narrow, tmp_path: Path, evaluator: str, main: str) -> None:
    task = narrow.task(narrow.data(tmp_path / "scenes", count=1), tmp_path)
    tree = yaml.safe_load(task.read_text())
    tree["DATASETS"]["REGISTER"]["drawn"]["evaluator"] = evaluator
    task.write_text(yaml.safe_dump(tree))
    assert narrow.run(task, tmp_path / "out") == 0
    card = json.loads((inference(tmp_path / "out", narrow) / "drawn/results.json").read_text())
    assert (card["main"], card["protocol"]["name"]) == (main, evaluator)
    assert 0 <= card["metrics"][main] <= 1


def test_a_voc_folder(narrow: Narrow, tmp_path: Path) -> None:
    """The same result for any size of batch."""
    star, dog = voc_object("star", 1, 1, 20, 20), voc_object("dog", 10, 5, 40, 30)
    folder = write_voc(tmp_path / "VOC", {"b": [star], "a": [star, dog], "c": []})
    row = {"kind": "voc", "evaluator": "voc", "img_dir": str(folder), "ann_file": str(folder), "split": "test"}
    task = tmp_path / "task.yaml"
    register = {"mine": {**row, "classes": ["star", "dog"]}}
    task.write_text(yaml.safe_dump({"DATASETS": {"REGISTER": register, "TEST": ["mine"]}}))
    texts = []
    for batch in ("1", "3"):
        output = tmp_path / batch
        options = ("TEST.IMS_PER_BATCH", batch, "TEST.VOC_PROTOCOL", "lineage_area", "--strict-config")
        assert narrow.run(task, output, *options) == 0
        texts.append((inference(output, narrow) / "mine/result.txt").read_text())
        card = json.loads((inference(output, narrow) / "mine/results.json").read_text())
        assert (card["main"], card["protocol"], card["dataset"]) == ("AP50", {"name": "voc_lineage_area"}, "mine")
        assert (card["counts"]["pictures"], card["counts"]["objects"]) == (3, 3)
    assert texts[0] == texts[1]
    assert texts[0].startswith("mAP: ")
    assert narrow.run(task, tmp_path / "out", "TEST.VOC_PROTOCOL", "2007") == 2
