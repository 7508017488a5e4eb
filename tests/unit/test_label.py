"""``mrb label``: pictures to COCO JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from maskrcnn_benchmark import labelling, mrb
from maskrcnn_benchmark.api import Predictor
from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.text.class_bank import ClassBank, write_bank
from tests.narrow import CONFIG, Narrow, make_narrow
from tests.narrow_decola import CONFIGS, WIDTH, narrow_options

LABELS = "red circle, dog"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Narrow:
    return make_narrow(tmp_path_factory.mktemp("narrow"))


@pytest.fixture
def shots(narrow: Narrow, tmp_path: Path) -> Path:
    """Three pictures, in a folder of their own and one below it, and a file that is none."""
    narrow.data(tmp_path / "scenes")
    files = sorted((tmp_path / "scenes").glob("*.png"))
    folder = tmp_path / "shots"
    (folder / "more").mkdir(parents=True)
    for file in files[:2]:
        shutil.copy(file, folder)
    shutil.copy(files[2], folder / "more" / files[2].name)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def label(narrow: Narrow, shots: Path, out: Path, *extra: str) -> int:
    words = ["label", str(shots), str(shots / "more"), "--output", str(out), "--config-file", CONFIG]
    words += ["--weight", str(narrow.weights), "--device", "cpu", "--min-score", "0", "--top", "5", *extra]
    return mrb.main([*words, "--set", *narrow.opts])


def test_boxes_become_annotations_that_check_accepts(
    narrow: Narrow, shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels" / "found.json"
    assert label(narrow, shots, out, "--labels", LABELS) == 0
    assert "3 pictures, 1 cannot be read" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert [row["name"] for row in found["categories"]] == ["red circle", "dog"]
    assert list(found["info"]["unreadable"]) == ["broken.png"]
    assert sorted(row["file_name"].count("/") for row in found["images"]) == [0, 0, 1]
    sizes = {row["id"]: (row["width"], row["height"]) for row in found["images"]}
    for row in found["annotations"]:
        x, y, w, h = row["bbox"]
        assert min(x, y) >= 0
        assert (x + w, y + h) <= tuple(side + 0.02 for side in sizes[row["image_id"]])
    checked = ["data", "check", str(out), "--images", str(shots), "--output", str(tmp_path / "check")]
    assert mrb.main(checked) == 0
    assert not out.with_suffix(".parts").exists()


def test_a_baseline_labels_with_its_classes_or_some(
    shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BoxSup on Deformable DETR."""
    bank = ClassBank(torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0)), ("dog", "bus stop", "kite"))
    keys = {
        "MODEL__ZEROSHOT_CLS__WEIGHT_PATH": write_bank(bank, tmp_path / "names.safetensors"),
        "MODEL__DEFORMABLE_DETR__NUM_CLASSES": 3,
    }
    options = narrow_options(tmp_path, **keys)
    cfg = load_cfg(CONFIGS["baseline"], opts=options)
    weights = save_weights(build_detector(cfg).state_dict(), tmp_path / "boxsup.pth")
    words = ["label", str(shots), "--config-file", CONFIGS["baseline"], "--weight", str(weights), "--device", "cpu"]

    def ask(out: Path, *labels: str) -> int:
        return mrb.main([*words, "--min-score", "0", *labels, "--output", str(out), "--set", *options])

    for number, wanted in enumerate((bank.names, ("kite", "Bus_Stop"))):
        out = tmp_path / f"{number}.json"
        assert ask(out, *(("--labels", ", ".join(wanted)) if number else ())) == 0
        found = json.loads(out.read_text())
        assert [row["name"] for row in found["categories"]] == list(wanted)
        assert {row["category_id"] for row in found["annotations"]} <= set(range(1, len(wanted) + 1))
        assert len(found["annotations"]) > 0
        assert mrb.main(["data", "check", str(out), "--images", str(shots), "--output", str(tmp_path / "check")]) == 0
    capsys.readouterr()
    assert ask(tmp_path / "more.json", "--labels", "kite, submarine") == 2
    assert "no embedding of 'submarine'" in capsys.readouterr().err


def test_an_interrupted_run_goes_on(
    narrow: Narrow, shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.json", tmp_path / "parts.json"
    assert label(narrow, shots, whole, "--labels", LABELS) == 0
    asked: list[Path] = []
    ask = labelling._ask

    def stop(predictor: Predictor, file: Path, query: labelling.Query) -> object:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(file)
        return ask(predictor, file, query)

    monkeypatch.setattr(labelling, "_ask", stop)
    assert label(narrow, shots, out, "--labels", LABELS) == 130
    assert not out.exists()
    asked.clear()
    assert label(narrow, shots, out, "--labels", LABELS) == 0
    assert len(asked) == 2  # of four, one of which is no picture
    assert json.loads(out.read_text()) == json.loads(whole.read_text())


def test_what_is_there_is_not_overwritten(
    narrow: Narrow, shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert label(narrow, shots, out, "--labels", LABELS) == 0
    before = out.stat().st_mtime_ns
    assert label(narrow, shots, out, "--labels", LABELS) == 0
    assert out.stat().st_mtime_ns == before
    assert label(narrow, shots, out, "--labels", "star") == 2
    assert "is of other pictures, labels or weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "nothing is asked: give --labels or --labels-file"),
        (["--labels", "dog, cat, dog"], "'dog' comes more than once (names 1, 3)"),
        (["--labels", "traffic light, dog, Traffic_light"], "'traffic light' and 'Traffic_light' are the same name"),
        (["--labels-file", "absent.txt"], "absent.txt: class names cannot be read"),
    ],
)
def test_bad_questions(
    narrow: Narrow, shots: Path, tmp_path: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(narrow, shots, tmp_path / "found.json", *words) == 2
    assert told in capsys.readouterr().err


def test_no_picture_at_all(narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "more").mkdir()
    for file in (tmp_path / "a.png", tmp_path / "more" / "b.png"):
        file.write_bytes(b"no picture")
    assert label(narrow, tmp_path, tmp_path / "out" / "found.json", "--labels", "dog") == 2
    assert "none of 2 pictures can be read" in capsys.readouterr().err
