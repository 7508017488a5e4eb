"""The demonstration from end to end: a report, its numbers beside those of the evaluations, its commands as printed."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.api import Predictor, load_model
from maskrcnn_benchmark.data.drawn import Split, World, expressions
from maskrcnn_benchmark.demo.__main__ import main
from maskrcnn_benchmark.demo.measure import CONFIG, WEIGHT
from maskrcnn_benchmark.structures.boxes import iou
from tests.training_runs import ROOT, environment

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a demonstration with few pictures and half the training."""
    folder = tmp_path_factory.mktemp("demo") / "made"
    argv = ["--output", str(folder), "--pictures", "4"]
    argv += ["--config-file", str(ROOT / CONFIG), "--weight", str(ROOT / WEIGHT)]
    assert cli.run(main, [*argv, "SOLVER.MAX_EPOCH", "1"]) == 0
    return folder


@pytest.fixture(scope="module")
def page(demo: Path) -> str:
    return (demo / "index.html").read_text(encoding="utf-8")


def test_a_sentence_alone_finds_what_it_is_about() -> None:
    """Most words of "the circle left of the star" name nothing, and must not hide the thing that one names."""
    predictor = Predictor(load_model(str(ROOT / CONFIG), str(ROOT / WEIGHT), device="cpu"))
    right = []
    for picture in World(77, Split.SEEN, (160, 160)).pictures(40):
        for said in (one for one in expressions(picture, picture.dice) if one.kind == "relation"):
            found = predictor.set_image(picture.pixels).predict(caption=said.text, top=1)
            box = torch.tensor([picture.items[said.item].box], dtype=torch.float32)
            right.append(len(found) == 1 and float(iou(found.boxes, box)[0, 0]) >= 0.5)
    assert len(right) > 15
    assert sum(right) / len(right) > 0.7


def test_every_picture_is_in_the_report(page: str) -> None:
    pictures = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) >= 4 + 4 + 1 + 1 + 2 * 4  # pairs, never seen, a sentence, absent things, before and after
    assert {Image.open(BytesIO(b64decode(picture))).size for picture in pictures} == {(512, 512)}
    assert not re.search(r'(?:src|href)="(?!data:)', page)


def test_the_numbers_are_those_of_the_result_files(demo: Path, page: str) -> None:
    (inference,) = demo.glob("eval/*/inference")
    tuned = demo / "tuned" / "ft_task_1"
    shown = [(inference / name, "AP50") for name in ("seen", "never_seen")] + [(inference / "expressions", "P@1")]
    shown += [(side / "retention/seen", "AP") for side in (tuned / "zero_shot", tuned / "eval" / "model_final")]
    cells = re.findall(r"<td>([^<]*)</td>", page)
    for folder, key in shown:
        metrics = json.loads((folder / "results.json").read_text(encoding="utf-8"))["metrics"]
        assert f"{metrics[key]:.3f}" in cells, (folder, key)
    told = json.loads((demo / "demo.json").read_text(encoding="utf-8"))
    before, after = told["numbers"]["new_shape"]["AP50"]
    for value, side in ((before, tuned / "zero_shot"), (after, tuned / "eval" / "model_final")):
        rows = json.loads((side / "arrow" / "results.json").read_text(encoding="utf-8"))["per_category"]["bbox"]
        assert [row["AP50"] for row in rows if row["name"] == "arrow"] == [value]
    assert f"{before:.3f} → {after:.3f}" in page
    assert all(seconds > 0 for seconds in told["seconds"].values())


def test_every_command_of_the_report_runs_as_printed(demo: Path, page: str) -> None:
    commands = [html.unescape(block) for block in re.findall(r"<pre>(.*?)</pre>", page, re.S)]
    env = environment() | {"PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))}
    assert len(commands) == 12
    for command in commands:
        run = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200, check=False
        )
        assert run.returncode == 0, f"{command}\n{run.stderr[-3000:]}"
    again = demo / "again"
    assert json.loads((again / "tuned" / "finetune.json").read_text(encoding="utf-8"))["rows"]
    for name in ("seen", "never_seen", "expressions"):
        (first,), (second,) = (
            list(folder.glob(f"eval/*/inference/{name}/results.json")) for folder in (demo, again / "scores")
        )
        assert json.loads(first.read_text())["metrics"] == json.loads(second.read_text())["metrics"]
