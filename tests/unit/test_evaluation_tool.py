"""``tools/test_grounding_net.py`` on drawn scenes with a narrow network: results, and answers to mistakes."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from maskrcnn_benchmark import cli
from tests.narrow import CONFIG, Narrow, make_narrow
from tools import test_grounding_net


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Narrow:
    return make_narrow(tmp_path_factory.mktemp("narrow"))


def results_of(output: Path, narrow: Narrow) -> Path:
    return output / "eval" / narrow.weights.stem / "inference" / "drawn"


def test_a_run_writes_the_result_files(narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = narrow.task(narrow.data(tmp_path / "scenes"), tmp_path)
    assert narrow.run(task, tmp_path / "out") == 0
    assert re.search(r"\| data set +\| +AP \|", capsys.readouterr().out), "a table of the results"
    folder = results_of(tmp_path / "out", narrow)
    rows = json.loads((folder / "bbox.json").read_text())
    assert {row["image_id"] for row in rows} == {1, 2, 3}
    results = json.loads((folder / "results.json").read_text())
    assert results["weights_sha256"]
    assert 0 <= results["metrics"]["AP"] <= 1
    assert (folder / "bbox.csv").read_text().startswith("metric, ")
    config = (tmp_path / "out" / "config.yml").read_text()
    assert re.search(r"INFERENCE_TH: 0.0 +# command line", config)


def test_each_task_has_its_own_results_and_config(narrow: Narrow, tmp_path: Path) -> None:
    """The task files of ODinW all call their data sets train, val and test."""
    files = []
    for count, name in ((1, "first"), (2, "second")):
        task = narrow.task(narrow.data(tmp_path / name, count=count), tmp_path, SEPARATION_TOKENS=f" {name} ")
        files.append(task.rename(tmp_path / f"{name}.yaml"))
    assert narrow.run(Path(",".join(map(str, files))), tmp_path / "out", "--strict-config") == 0
    for count, file in enumerate(files, 1):
        folder = results_of(tmp_path / "out", narrow).parent / file.stem / "drawn"
        results = json.loads((folder / "results.json").read_text())
        assert (results["dataset"], results["counts"]["pictures"]) == ("drawn", count)
        config = (folder / "config.yml").read_text()
        assert re.search(rf"SEPARATION_TOKENS: ' {file.stem} ' +# .*{file.name}", config)
    summary = json.loads((results_of(tmp_path / "out", narrow).parent / "summary.json").read_text())
    assert [row["task"] for row in summary["tasks"]] == ["first/drawn", "second/drawn"]
    assert summary["mean"]["AP"] == pytest.approx(sum(row["AP"] for row in summary["tasks"]) / 2)


@pytest.mark.parametrize("chunk", [-1, 2])
def test_batch_size_does_not_change_what_is_found(narrow: Narrow, tmp_path: Path, chunk: int) -> None:
    annotations = narrow.data(tmp_path / "scenes", count=5)
    wide = Image.open(next((tmp_path / "scenes").glob("*.png"))).size
    assert wide == (128, 96)
    task = narrow.task(annotations, tmp_path)
    found = []
    for batch in ("1", "4"):
        opts = ("TEST.IMS_PER_BATCH", batch, "TEST.CHUNKED_EVALUATION", str(chunk))
        assert narrow.run(task, tmp_path / batch, *opts) == 0
        found.append(json.loads((results_of(tmp_path / batch, narrow) / "bbox.json").read_text()))
    assert len(found[0]) == len(found[1]) > 0
    for one, four in zip(*found, strict=True):
        assert (one["image_id"], one["category_id"]) == (four["image_id"], four["category_id"])
        assert one["score"] == pytest.approx(four["score"], abs=1e-5)
        assert one["bbox"] == pytest.approx(four["bbox"], abs=1e-2)


def test_dry_run_says_what_would_be_done_and_writes_no_results(
    narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = narrow.task(narrow.data(tmp_path / "scenes"), tmp_path)
    assert narrow.run(task, tmp_path / "out", "--dry-run") == 0
    assert "drawn: 3 pictures" in capsys.readouterr().err
    assert not (tmp_path / "out" / "eval").exists()


def test_dry_run_misses_a_picture(narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = narrow.task(narrow.data(tmp_path / "scenes"), tmp_path)
    next((tmp_path / "scenes").glob("*2.png")).unlink()
    assert_refused(
        narrow.run(task, tmp_path / "out", "--dry-run"), capsys, tmp_path / "out", "missing picture", "2.png"
    )
    assert narrow.run(task, tmp_path / "out", "--dry-run", "TEST.ON_BAD_IMAGE", "skip") == 0


# --- mistakes: (what is done to the annotation file, what the answer must contain) ---


def _truncate(path: Path) -> None:
    path.write_text(path.read_text()[:-40])


def _edit(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return apply


DATA_MISTAKES = {
    "missing file": (lambda path: path.unlink(), ("scenes", "annotations", "not")),
    "truncated": (_truncate, ("not valid JSON",)),
    "empty": (lambda path: path.write_text(""), ("empty",)),
    "a results file": (lambda path: path.write_text("[]"), ("list of detections",)),
    "no categories": (_edit(lambda d: d.pop("categories")), ('no "categories"',)),
    "unknown picture": (_edit(lambda d: d["annotations"][0].update(image_id=999)), ("image_id 999",)),
    "unknown category": (_edit(lambda d: d["annotations"][0].update(category_id=77)), ("category_id 77",)),
    "duplicate picture id": (_edit(lambda d: d["images"].append(d["images"][0])), ("duplicate",)),
    "duplicate annotation id": (_edit(lambda d: d["annotations"].append(d["annotations"][0])), ("duplicate",)),
    "NaN box": (_edit(lambda d: d["annotations"][0].update(bbox=[1, 2, float("nan"), 4])), ("bbox",)),
}


@pytest.mark.parametrize("mistake", DATA_MISTAKES)
def test_a_wrong_annotation_file_is_named(
    narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    annotations = narrow.data(tmp_path / "scenes")
    task = narrow.task(annotations, tmp_path)
    spoil, words = DATA_MISTAKES[mistake]
    spoil(annotations)
    assert_refused(narrow.run(task, tmp_path / "out"), capsys, tmp_path / "out", *words, annotations.name)


def assert_refused(code: int, capsys: pytest.CaptureFixture[str], output: Path, *words: str) -> None:
    """Exit code 2, one line that has the words, no traceback, no results."""
    err = capsys.readouterr().err
    assert code == 2, err
    assert "Traceback" not in err
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: "), err
    for word in words:
        assert word in line
    assert not list(output.rglob("bbox.json"))
    assert not list(output.rglob("results.json"))


OPTION_MISTAKES = {
    "typo": (("MODEL.WEIGTH", "x"), ("MODEL.WEIGTH", "Did you mean MODEL.WEIGHT", "command line")),
    "wrong type": (("TEST.IMS_PER_BATCH", "two"), ("TEST.IMS_PER_BATCH", "int", "'two'")),
    "number for a switch": (("DATASETS.USE_CAPTION_PROMPT", "1"), ("DATASETS.USE_CAPTION_PROMPT", "True or False")),
    "odd": (("TEST.IMS_PER_BATCH",), ("TEST.IMS_PER_BATCH", "no value")),
    "unknown data set": (("DATASETS.TEST", "('drawm',)"), ("drawm", "drawn")),
    "caption prompt of the wrong length": (
        (
            "DATASETS.USE_CAPTION_PROMPT",
            "True",
            "DATASETS.CAPTION_PROMPT",
            '[{"prefix": "", "name": "x", "suffix": ""}]',
        ),
        ("CAPTION_PROMPT", "1"),
    ),
    "override that is no list": (
        ("DATASETS.USE_OVERRIDE_CATEGORY", "True", "DATASETS.OVERRIDE_CATEGORY", "{oops"),
        ("OVERRIDE_CATEGORY",),
    ),
    "grounding on a detection set": (("TEST.EVAL_TASK", "grounding"), ("TEST.EVAL_TASK", "grounding")),
    "device": (("MODEL.DEVICE", "warp"), ("MODEL.DEVICE", "warp")),
    "one data set twice": (("DATASETS.TEST", "('drawn', 'drawn')"), ("DATASETS.TEST", "'drawn' twice")),
}


@pytest.mark.parametrize("mistake", OPTION_MISTAKES)
def test_a_wrong_setting_is_named(
    narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    task = narrow.task(narrow.data(tmp_path / "scenes"), tmp_path)
    opts, words = OPTION_MISTAKES[mistake]
    assert_refused(narrow.run(task, tmp_path / "out", *opts), capsys, tmp_path / "out", *words)


class _Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def _wrong_network(path: Path, narrow: Narrow) -> None:
    torch.save({"model": {"backbone.body.patch_embed.proj.weight": torch.zeros(96, 3, 4, 4)}}, path)


WEIGHT_MISTAKES = {
    "missing": (lambda path, narrow: None, ("w.pth",)),
    "another network": (_wrong_network, ("w.pth", "missing")),
    "truncated": (lambda path, narrow: path.write_bytes(narrow.weights.read_bytes()[:5000]), ("w.pth",)),
    "a web page": (lambda path, narrow: path.write_text("<!doctype html><html>404</html>"), ("w.pth", "web page")),
    "malicious": (
        lambda path, narrow: path.write_bytes(pickle.dumps(_Attack(path.parent / "owned"), 2)),
        ("w.pth", "system"),
    ),
    "malicious in a torch file": (
        lambda path, narrow: torch.save(_Attack(path.parent / "owned"), path),
        ("w.pth", "system"),
    ),
}


@pytest.mark.parametrize("mistake", WEIGHT_MISTAKES)
def test_wrong_weights_are_named(
    narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    task = narrow.task(narrow.data(tmp_path / "scenes"), tmp_path)
    make, words = WEIGHT_MISTAKES[mistake]
    make(tmp_path / "w.pth", narrow)
    assert_refused(narrow.run(task, tmp_path / "out", weight=tmp_path / "w.pth"), capsys, tmp_path / "out", *words)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("mistake", ["missing", "corrupt", "empty"])
def test_a_bad_picture_is_named_and_never_left_out_of_the_score(
    narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str, mistake: str
) -> None:
    annotations = narrow.data(tmp_path / "scenes")
    task = narrow.task(annotations, tmp_path)
    picture = sorted((tmp_path / "scenes").glob("*.png"))[1]
    if mistake == "missing":
        picture.unlink()
    else:
        picture.write_bytes(picture.read_bytes()[:300] if mistake == "corrupt" else b"")
    code = narrow.run(task, tmp_path / "out", "TEST.ON_BAD_IMAGE", policy)
    words = (picture.name,) if policy == "stop" else ("2 pictures scored", "has 3", "picture 2")
    assert_refused(code, capsys, tmp_path / "out", *words)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "LA", "RGBA", "I;16", "1"])
def test_pictures_of_any_colour_mode_are_evaluated(narrow: Narrow, tmp_path: Path, mode: str) -> None:
    annotations = narrow.data(tmp_path / "scenes")
    task = narrow.task(annotations, tmp_path)
    picture = sorted((tmp_path / "scenes").glob("*.png"))[0]
    image = Image.open(picture).convert("RGB")
    if mode == "CMYK":
        image.convert(mode).save(picture, format="TIFF")
    else:
        image.convert("L").convert(mode).save(picture) if mode == "I;16" else image.convert(mode).save(picture)
    assert narrow.run(task, tmp_path / "out") == 0


def test_zero_area_boxes_are_left_out_with_a_count(
    narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = narrow.data(tmp_path / "scenes")
    _edit(lambda data: data["annotations"][0].update(bbox=[4, 5, 0, 0], area=0))(annotations)
    assert narrow.run(narrow.task(annotations, tmp_path), tmp_path / "out") == 0
    assert "1 box" in capsys.readouterr().err


def test_a_key_that_nothing_reads_is_told_and_strict_refuses_it(
    narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = narrow.task(narrow.data(tmp_path / "scenes"), tmp_path)
    extra = ("DATASETS.FLICKR_GT_TYPE", "merged")
    assert narrow.run(task, tmp_path / "out", *extra) == 0
    assert "DATASETS.FLICKR_GT_TYPE = 'merged' was set but nothing read it" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
    code = narrow.run(task, tmp_path / "out", *extra, "--strict-config")
    assert_refused(code, capsys, tmp_path / "out", "DATASETS.FLICKR_GT_TYPE", "nothing read it")


def test_what_a_task_file_says_of_the_network_is_told_and_strict_refuses_it(
    narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = narrow.task(narrow.data(tmp_path / "scenes"), tmp_path)
    task.write_text(task.read_text() + "MODEL: {ATSS: {NMS_TH: 0.1}}\n")
    assert narrow.run(task, tmp_path / "out", "--dry-run") == 0
    assert "task.yaml: MODEL.ATSS.NMS_TH = 0.1 was set but nothing read it" in capsys.readouterr().err
    code = narrow.run(task, tmp_path / "out", "--strict-config")
    assert_refused(code, capsys, tmp_path / "out", "MODEL.ATSS.NMS_TH", "nothing read it")


ENTRY_MISTAKES = {
    "a key that nothing reads": ({"img_dri": "x"}, ("drawn", "img_dri", "img_dir")),
    "another evaluator": ({"evaluator": "lvis"}, ("drawn", "'lvis'", "'coco'")),
    "no evaluator": ({"evaluator": ""}, ("drawn", "without an evaluator")),
}


@pytest.mark.parametrize("mistake", ENTRY_MISTAKES)
def test_a_wrong_entry_is_named(
    narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    task = narrow.task(narrow.data(tmp_path / "scenes"), tmp_path)
    more, words = ENTRY_MISTAKES[mistake]
    tree = yaml.safe_load(task.read_text())
    tree["DATASETS"]["REGISTER"]["drawn"] |= more
    task.write_text(yaml.safe_dump(tree))
    assert_refused(narrow.run(task, tmp_path / "out"), capsys, tmp_path / "out", *words)


def test_without_config_or_weights_the_answer_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(test_grounding_net.main, []) == 2
    assert "--config-file" in capsys.readouterr().err
    assert cli.run(test_grounding_net.main, ["--config-file", CONFIG]) == 2
    assert "--weight" in capsys.readouterr().err
