"""``mrb label`` on real pictures, as it is typed, and what ``mrb data check`` says to the result."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_benchmark import mrb
from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.text.class_bank import ClassBank, write_bank
from tests.golden.common import shared_path
from tests.narrow_decola import CONFIGS, WIDTH, narrow_options

PATIENCE = 300  # seconds for a command
NAMES = ("fish", "jellyfish", "penguin", "person", "traffic light")  # that the network has embeddings of
LABELS = "jellyfish, person, fish"
MIN_SCORE = "0.01"
AQUARIUM = "odinw/Aquarium/Aquarium Combined.v2-raw-1024.coco/test"
EVERY = {AQUARIUM: 3, "coco/val2017": 12}  # folder -> how many of its pictures are passed over for one that is taken


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two of pictures, whose name has a space, one of which holds a file that is no picture too."""
    folder = tmp_path_factory.mktemp("real") / "my shots"
    for name, step in EVERY.items():
        source, part = shared_path("data", "DATASET", name), folder / name.split("/")[0]
        part.mkdir(parents=True)
        for file in sorted(source.glob("*.jpg"))[::step]:
            shutil.copy(file, part)
    (folder / "coco" / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a narrow phase 1 of DECOLA with seeded weights."""
    folder = tmp_path_factory.mktemp("net")
    generator = torch.Generator().manual_seed(0)
    for name, names in (("names", NAMES), ("object", ("object",))):
        bank = ClassBank(torch.randn(len(names), WIDTH, generator=generator), tuple(names))
        write_bank(bank, folder / f"{name}.safetensors")
    banks = {"WEIGHT_PATH": folder / "names.safetensors", "OBJECT_WEIGHT_PATH": folder / "object.safetensors"}
    keys: dict[str, object] = {f"MODEL__ZEROSHOT_CLS__{key}": path for key, path in banks.items()}
    keys |= {"MODEL__DEFORMABLE_DETR__NUM_CLASSES": len(NAMES), "MODEL__ZEROSHOT_CLS__NORM_TEMP": 1.0}  # no high scores
    opts = narrow_options(folder, **keys)
    torch.manual_seed(0)
    save_weights(build_detector(load_cfg(CONFIGS["phase 1"], opts=opts)).state_dict(), folder / "seeded.pth")
    given = ["--config-file", CONFIGS["phase 1"], "--weight", str(folder / "seeded.pth"), "--device", "cpu"]
    return [*given, "--min-score", MIN_SCORE, "--top", "20", "--set", *opts]


def words(shots: Path, out: Path, *more: str) -> list[str]:
    return ["label", *(str(shots / name.split("/")[0]) for name in EVERY), "--output", str(out), *more]


def test_labels_of_real_pictures_are_data(
    shots: Path, model: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert mrb.main([*words(shots, out, "--labels", LABELS), *model]) == 0
    told = capsys.readouterr()
    assert "1 of " in told.err
    assert "coco/broken.jpg" in told.err
    found = json.loads(out.read_text())
    assert [row["name"] for row in found["categories"]] == ["jellyfish", "person", "fish"]
    whole = {str(file.relative_to(shots)) for file in shots.glob("*/*.jpg")} - {"coco/broken.jpg"}
    assert {row["file_name"] for row in found["images"]} == whole
    check_boxes(found)

    command = shlex.split(told.out.partition("to check them: ")[2])  # as it is printed, the space in the folder too
    assert command[:3] == ["mrb", "data", "check"]
    assert mrb.main([*command[1:], "--output", str(tmp_path / "check")]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    assert (tmp_path / "check" / "sheet.png").is_file()


def check_boxes(found: dict[str, Any]) -> None:
    """That they lie in their pictures, are of the labels that were asked for, and that there are some of both sets."""
    images = {row["id"]: row for row in found["images"]}
    for row in found["annotations"]:
        x, y, w, h = row["bbox"]
        image = images[row["image_id"]]
        assert x >= 0
        assert y >= 0
        assert w > 0
        assert h > 0
        assert x + w <= image["width"] + 0.01
        assert y + h <= image["height"] + 0.01
        assert row["category_id"] in (1, 2, 3)
        assert row["score"] >= float(MIN_SCORE)
    folders = {images[row["image_id"]]["file_name"].split("/")[0] for row in found["annotations"]}
    assert folders == {name.split("/")[0] for name in EVERY}


def test_pictures_without_boxes_are_listed(shots: Path, model: Sequence[str], tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    options = list(model)
    options[options.index("--min-score") + 1] = "0.5"
    assert mrb.main([*words(shots, out, "--labels", LABELS), *options]) == 0
    found = json.loads(out.read_text())
    assert len(found["images"]) == len(list(shots.glob("*/*.jpg"))) - 1
    assert found["annotations"] == []


def test_a_killed_run_goes_on_to_the_same_file(shots: Path, model: Sequence[str], tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.json", tmp_path / "parts.json"
    ask = ["--labels", LABELS]
    assert mrb.main([*words(shots, whole, *ask), *model]) == 0
    slow = "; ".join(
        (
            "import sys, time",
            "from maskrcnn_benchmark import labelling, mrb",
            "from maskrcnn_benchmark.engine import shards",
            "shards.SOONEST = shards.SHARE = 0.0",  # what is found is on the disk at once
            "ask = labelling._ask",
            "labelling._ask = lambda *given: (time.sleep(0.05), ask(*given))[1]",
            "sys.exit(mrb.main(sys.argv[1:]))",
        )
    )
    run = subprocess.Popen([sys.executable, "-c", slow, *words(shots, out, *ask), *model])
    parts, end = out.with_suffix(".parts"), time.monotonic() + PATIENCE
    while len(list(parts.glob("*.safetensors"))) < 3 and run.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait(PATIENCE) == -signal.SIGKILL
    assert not out.exists()
    assert len(list(parts.glob("*.safetensors"))) >= 3

    assert mrb.main([*words(shots, out, *ask), *model]) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not parts.exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--labels", ""], "--labels: no names"),
        (["--labels", "fish, person, fish"], "'fish' comes more than once (names 1, 3)"),
        (["--labels", "fish, Fish"], "'fish' and 'Fish' are the same name"),
        (["--labels", "fish, submarine"], "no embedding of 'submarine': it has fish, jellyfish, penguin, ...; for any"),
        (["--labels", "fish", "--model", "decola-of-mine"], "no released model is called 'decola-of-mine'"),
    ],
)
def test_a_wrong_question_leaves_nothing_behind(
    shots: Path, model: Sequence[str], tmp_path: Path, more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "found.json"
    assert mrb.main([*words(shots, out, *more), *model]) == 2
    assert told in capsys.readouterr().err
    assert not out.exists()
    assert not out.with_suffix(".parts").exists()


def test_what_was_found_is_not_replaced_by_an_answer_to_something_else(
    shots: Path, model: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    out.write_text("{}")
    assert mrb.main([*words(shots, out, "--labels", "fish"), *model]) == 2
    assert "is there, and is of other pictures, labels or weights" in capsys.readouterr().err
    assert out.read_text() == "{}"
