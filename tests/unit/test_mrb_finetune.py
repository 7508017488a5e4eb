"""``mrb finetune``, ``mrb eval`` and ``mrb train`` with a narrow network on drawn scenes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from maskrcnn_benchmark import mrb
from maskrcnn_benchmark.commands import finetune as command
from maskrcnn_benchmark.commands import options, runs
from maskrcnn_benchmark.commands.estimate import Estimate, duration
from maskrcnn_benchmark.data.forms.convert import convert
from maskrcnn_benchmark.data.forms.model import DataSet, Layout, Part, Picture, Thing
from maskrcnn_benchmark.data.forms.read import usable
from maskrcnn_benchmark.data.forms.recognise import recognise
from maskrcnn_benchmark.data.forms.task import clean, divide, take
from maskrcnn_benchmark.errors import DataError, PromptError
from maskrcnn_benchmark.evaluation.coco import CocoEvaluator
from maskrcnn_benchmark.structures import Detections, ImageMeta
from tests.golden.common import shared_path
from tests.narrow import CONFIG, Narrow, make_narrow
from tests.unit.voc_files import voc_object, write_voc

SMALL = (
    *("INPUT.MIN_SIZE_TRAIN", "64", "INPUT.MAX_SIZE_TRAIN", "96", "AUGMENT.MULT_MIN_SIZE_TRAIN", "()"),
    *("DATALOADER.NUM_WORKERS", "0", "SOLVER.MAX_EPOCH", "0", "SOLVER.MAX_ITER", "2"),
    *("SOLVER.CHECKPOINT_PER_EPOCH", "-1", "SOLVER.CHECKPOINT_PERIOD", "2"),
)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Narrow:
    return make_narrow(tmp_path_factory.mktemp("narrow"))


def tune(narrow: Narrow, output: Path, *argv: str) -> int:
    given = ["--config-file", CONFIG, "--weight", str(narrow.weights), "--output", str(output)]
    return mrb.main(["finetune", *given, *argv, "--set", *narrow.opts, *SMALL])


def task_of(output: Path) -> Any:
    return yaml.safe_load((output / f"{output.name}.yaml").read_text())


@pytest.mark.parametrize("form", ["coco", "voc", "yolo", "labelme"])
def test_one_command_tunes_on_data_of_any_form(
    narrow: Narrow, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = usable(recognise(narrow.data(tmp_path / "drawn", count=6, seed=4)))
    convert(source, tmp_path / form, form)
    output = tmp_path / "out"
    flags = ["--dry-run"] if form in ("yolo", "labelme") else []
    assert tune(narrow, output, "--data", str(tmp_path / form), *flags) == 0
    told = capsys.readouterr().out
    task = task_of(output)["DATASETS"]
    assert sorted(task["REGISTER"]) == ["train", "val"]
    counts = {
        name: len(json.loads(Path(row["ann_file"]).read_text())["images"]) for name, row in task["REGISTER"].items()
    }
    assert counts == {"train": 5, "val": 1}
    assert "no validation set: 1 of 6 training pictures became it" in told
    assert "estimate: at most" in told
    assert "measured" in told
    assert [row["name"] for row in task["OVERRIDE_CATEGORY"]] == source.classes or form == "labelme"
    if not flags:
        assert (output / "ft_task_1" / "model_final.pth").is_file()
        assert '"out"' in (output / "finetune.json").read_text()
        assert "weights and results" in told


def test_the_task_file_can_be_changed_and_used_again(
    narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = narrow.data(tmp_path / "drawn", count=3, seed=5)
    output = tmp_path / "out"
    assert tune(narrow, output, "--data", str(data), "--shots", "3", "--epochs", "7", "--dry-run", "--no-estimate") == 0
    tree = task_of(output)
    assert (tree["DATASETS"]["FEW_SHOT"], tree["DATASETS"]["GENERAL_COPY"], tree["SOLVER"]["MAX_EPOCH"]) == (3, 4, 7)
    assert "estimate" not in capsys.readouterr().out
    tree["DATASETS"]["FEW_SHOT"] = 1
    changed = output / "changed.yaml"
    changed.write_text(yaml.safe_dump(tree))
    assert tune(narrow, output, "--task", str(changed), "--dry-run", "--no-estimate") == 0
    assert tune(narrow, output, "--task", str(output / "nowhere.yaml"), "--dry-run") == 2
    assert "no such file" in capsys.readouterr().err


def test_coco_files_with_splits_are_used_where_they_are(tmp_path: Path) -> None:
    from tests.unit.test_mrb_data import splits

    layout = recognise(splits(tmp_path / "data", train=3, valid=2, test=1))
    data = usable(layout)
    taken = take(layout, data, tmp_path / "out", {"cup": "coffee cup"})
    assert {name: Path(row["ann_file"]).parent.name for name, row in taken.register.items()} == {
        "train": "train",
        "val": "valid",
        "test": "test",
    }
    assert taken.categories == [{"id": 3, "name": "coffee cup"}, {"id": 7, "name": "jar"}]
    assert not (tmp_path / "out").exists()
    assert any("cup -> coffee cup" in line for line in taken.said)


def test_difficult_objects_of_voc_are_not_taught_and_do_not_count(
    narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where VOC was converted to COCO before; what finds one of them is scored as if it had not."""
    dog, sofa, folder = voc_object("dog", 2, 2, 12, 12), voc_object("sofa", 32, 2, 39, 28), tmp_path / "voc"
    write_voc(folder, {"a": [dog, sofa, voc_object("sofa", 1, 1, 20, 10, difficult=1)]}, split="train")
    write_voc(folder, {"b": [dog, sofa, voc_object("sofa", 5, 5, 30, 25, difficult=1)]}, split="val")
    convert(usable(recognise(folder)), tmp_path / "coco", "coco")
    for source in (folder, tmp_path / "coco"):
        output = tmp_path / f"of_{source.name}"
        assert tune(narrow, output, "--data", str(source), "--dry-run", "--no-estimate") == 0
        told = capsys.readouterr().out
        assert "difficult: 1 are left out of the training, 1 of val are neither right nor wrong" in told
        files = {name: Path(row["ann_file"]) for name, row in task_of(output)["DATASETS"]["REGISTER"].items()}
        taught = json.loads(files["train"].read_text())["annotations"]
        assert [row["bbox"] for row in taught] == [[1, 1, 11, 11], [31, 1, 8, 27]]
    right = [[1.0, 1, 12, 12], [31.0, 1, 39, 28]]
    for more, score in (([], 1.0), ([[4.0, 4, 30, 25]], 1.0), ([[0.0, 0, 2, 29]], 0.75)):
        evaluator = CocoEvaluator(files["val"], {1: 1, 2: 2}, plus_one=False)
        labels, scores = torch.tensor([1, 2, 2][: 2 + len(more)]), torch.tensor([0.8, 0.8, 0.9][: 2 + len(more)])
        evaluator.update([Detections(torch.tensor(right + more), scores, labels, ImageMeta(1, (30, 40), (30, 40)))])
        assert evaluator.summary()["AP50"] == pytest.approx(score)


def pictures(folder: Path, count: int, name: str = "cup") -> list[Picture]:
    return [
        Picture(folder / f"{i}.png", f"{i}.png", (9, 9), (Thing(name, (1, 1, 5, 5)),), folder) for i in range(count)
    ]


def test_a_validation_set_is_made_once_and_alike(tmp_path: Path) -> None:
    data = DataSet("voc", tmp_path, {"trainval": pictures(tmp_path, 20), "test": pictures(tmp_path, 2)}, ["cup", "jar"])
    said: list[str] = []
    one, same, other = (divide(data, 0.25, seed, said) for seed in (3, 3, 4))
    assert {name: len(rows) for name, rows in one.items()} == {"train": 15, "val": 5, "test": 2}
    assert one == same != other
    assert not {p.name for p in one["train"]} & {p.name for p in one["val"]}
    assert "5 of 20 training pictures became it (--val 0.25, --seed 3)" in said[0]
    assert "no box of 'jar' in the training set" in said[1]
    whole = {"train": pictures(tmp_path, 3), "val": pictures(tmp_path, 1)}
    assert divide(DataSet("coco", tmp_path, whole, ["cup"]), 0.25, 3, []) == whole


def test_too_little_data_is_said(tmp_path: Path) -> None:
    for splits, words in {"train": "at least 2 are needed", "test": "no split to train on, only test"}.items():
        with pytest.raises(DataError, match=words):
            divide(DataSet("coco", tmp_path, {splits: pictures(tmp_path, 1)}, ["cup"]), 0.2, 3, [])


def test_names_become_words(tmp_path: Path) -> None:
    assert [clean(name) for name in ("traffic_light-red", " fish ", "St. Bernard", "RBC", "...")] == [
        "traffic light red",
        "fish",
        "St Bernard",
        "RBC",
        "...",
    ]
    assert command._prompts('RBC=red blood cell, "a,b=c"') == {"RBC": "red blood cell", "a,b": "c"}
    layout = Layout("coco", tmp_path, (Part("train", ()),))
    data = DataSet("coco", tmp_path, {}, ["a_b", "a b"])
    data.splits = {"train": [], "val": []}
    with pytest.raises(PromptError, match="would both be asked for as 'a b'"):
        take(layout, data, tmp_path / "x", {})
    with pytest.raises(PromptError, match="there is no class 'c'"):
        take(layout, data, tmp_path / "x", {"c": "d"})


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--names", "cup"], "'cup' is not CLASS=WORDS"),
        (["--caption-prompt", "nowhere.yaml"], "--caption-prompt 'nowhere.yaml': no such file"),
        (["--model", "fibre-b"], "no released model is called 'fibre-b'"),
        (["--model", "mdetr-clevr"], "this version has no config for it"),
        (["--config-file", "configs/mdetr/pretrain_r101.yaml"], "mrb finetune tunes FIBER and GLIP"),
        (["--output", "a,b"], "a comma cannot be in the name"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path,
    argv: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.unit.test_mrb_data import splits

    data = splits(tmp_path / "data", train=2, valid=1)
    given = argv if "--output" in argv else [*argv, "--output", str(tmp_path / "out")]
    assert mrb.main(["finetune", "--data", str(data), *given]) == 2
    assert words in capsys.readouterr().err


def test_a_caption_prompt_goes_into_the_task_file(narrow: Narrow, tmp_path: Path) -> None:
    from tests.unit.test_mrb_data import splits

    rows = [{"prefix": "a ", "name": "cup", "suffix": " of tea"}, {"prefix": "", "name": "jar", "suffix": ""}]
    file = tmp_path / "prompt.yaml"
    file.write_text(yaml.safe_dump(rows))
    data, output = splits(tmp_path / "data", train=2, valid=1), tmp_path / "out"
    argv = ["--data", str(data), "--caption-prompt", str(file), "--dry-run", "--no-estimate"]
    assert tune(narrow, output, *argv) == 0
    tree = task_of(output)["DATASETS"]
    assert (tree["USE_CAPTION_PROMPT"], tree["CAPTION_PROMPT"]) == (True, rows)


@pytest.mark.parametrize("name", ["BCCD/voc", "Aquarium"])
def test_real_data_are_ready_by_one_command(
    narrow: Narrow, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shared_path("data", "DATASET", "odinw", name)
    output = tmp_path / "out"
    assert tune(narrow, output, "--data", str(data), "--dry-run", "--no-estimate") == 0
    told = capsys.readouterr().out
    tree = task_of(output)["DATASETS"]
    assert sorted(tree["REGISTER"]) == ["test", "train", "val"]
    if name == "Aquarium":
        assert "COCO (Roboflow export)" in told
        assert not (output / "data").exists()
        assert len(tree["OVERRIDE_CATEGORY"]) == 7
    else:
        assert "PASCAL VOC: train, val, test" in told
        rows = json.loads((output / "data" / "train.json").read_text())
        assert (len(rows["images"]), len(rows["annotations"])) == (205, 2805)
        assert [row["name"] for row in tree["OVERRIDE_CATEGORY"]] == ["Platelets", "RBC", "WBC"]


def test_eval_and_train_call_what_the_tools_call(
    narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = narrow.data(tmp_path / "drawn", count=2)
    entry = {"img_dir": str(data.parent), "ann_file": str(data)}
    tree = {"REGISTER": {"drawn": entry}, "TEST": ["drawn"], "TRAIN": ["drawn"]}
    task = tmp_path / "task.yaml"
    task.write_text(yaml.safe_dump({"DATASETS": tree}))
    model = ["--config-file", CONFIG, "--weight", str(narrow.weights)]
    out = tmp_path / "eval"
    assert mrb.main(["eval", *model, "--tasks", str(task), "--output", str(out), "--set", *narrow.opts]) == 0
    assert "| drawn" in capsys.readouterr().out
    assert list(out.rglob("results.json"))
    keys = [*narrow.opts, *SMALL, "SOLVER.IMS_PER_BATCH", "2", "DATASETS.TRAIN_DATASETNAME_SUFFIX", "_grounding"]
    argv = ["train", *model, "--task", str(task), "--output", str(tmp_path / "train"), "--no-test", "--set", *keys]
    assert mrb.main(argv) == 0
    assert "2 steps" in capsys.readouterr().out
    assert (tmp_path / "train" / "model_final.pth").is_file()
    assert mrb.main([*argv, "SOLVER.MAX_ITTER", "3"]) == 2


def test_several_processes_start_the_module_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[int, list[str]]] = []

    def launch(processes: int, argv: list[str]) -> None:
        started.append((processes, list(argv)))
        raise KeyboardInterrupt

    monkeypatch.setattr(options, "launch", launch)
    monkeypatch.setattr(runs, "zero_shot", lambda *args: pytest.fail("must not run here"))
    assert mrb.main(["eval", "--weight", "x.pth", "--gpus", "2", "--tasks", "a.yaml"]) == 130
    assert started == [(2, ["-m", "maskrcnn_benchmark.mrb", "eval", "--weight", "x.pth", "--tasks", "a.yaml"])]


def test_an_estimate_says_what_it_is_made_of() -> None:
    made = Estimate(seconds=2.0, batch=4, steps=100, scored=60, gigabytes=3.25, device="cpu")
    assert made.total == 2.0 * (100 + 60 / 3 / 4)
    assert "2.00 s for a step of 4 pictures" in str(made)
    assert [duration(value) for value in (40, 600, 9000, 4e5)] == ["40 s", "10 min", "2.5 h", "4.6 days"]
