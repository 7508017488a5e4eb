"""The demonstration, ``python -m maskrcnn_benchmark.demo``: its sets, its numbers and its report."""

from __future__ import annotations

import html
import math
import re
import shlex
from base64 import b64decode
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from random import Random

import pytest
import torch
import yaml
from PIL import Image

from benchmarks import tiny
from maskrcnn_benchmark import cli
from maskrcnn_benchmark.api import Found
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.drawn import NEVER_SEEN, NEW_SHAPE, Split, World
from maskrcnn_benchmark.data.drawn.__main__ import main as draw_main
from maskrcnn_benchmark.data.training import build_training_data
from maskrcnn_benchmark.data.transforms import ColourJitter
from maskrcnn_benchmark.demo import measure, sets
from maskrcnn_benchmark.demo.__main__ import main
from maskrcnn_benchmark.demo.chart import line_chart
from maskrcnn_benchmark.demo.command_lines import Command
from maskrcnn_benchmark.demo.gallery import ABSENT, Asked, Gallery, Shown, Word, compare, enlarged, questions
from maskrcnn_benchmark.demo.measure import Absent, Tuned
from maskrcnn_benchmark.demo.report import Findings, write_page
from maskrcnn_benchmark.demo.sets import EXAMPLES, REMINDERS, SHOTS, TUNED, draw_sets, plan_sets, write_tasks
from maskrcnn_benchmark.structures import ImageMeta
from maskrcnn_benchmark.text.tokenizer import load_tokenizer

PAGE_NUMBERS = {
    "seen": {"AP50": 0.912, "AP": 0.723, "AR@100": 0.801},
    "never_seen": {"AP50": 0.714, "AP": 0.561, "AR@100": 0.699},
    "expressions": {"P@1": 0.777, "refcoco+/P@1": 0.888, "refcoco/P@1": 0.666},
}


def found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Found:
    meta = ImageMeta(1, (64, 64), (64, 64), "1.png")
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    picture = Image.new("RGB", (64, 64), "grey")
    return Found(rows, torch.tensor(scores), torch.tensor(labels, dtype=torch.int64), meta, picture=picture)


def test_scores_of_absent_things_are_a_share_of_all_scores() -> None:
    prompt = ["red star", "blue moon", "pink heart", "white cross"]
    here = found([[0, 0, 9, 9]] * 4, [0.9, 0.6, 0.25, 0.25], [2, 4, 1, 3])
    (right, right_mass), (wrong, wrong_mass) = measure.masses(here, prompt, ["blue moon", "white cross"])
    assert (right, wrong) == (2, 2)
    assert right_mass == pytest.approx(1.5)
    assert wrong_mass == pytest.approx(0.5)
    share = Absent(1, (right, wrong), (right_mass, wrong_mass)).share
    assert share == pytest.approx(0.25)


def test_a_detector_that_finds_nothing_has_no_share_and_does_not_reach_the_target() -> None:
    nothing = measure.masses(found([], [], []), ["red star", "blue moon"], ["red star"])
    assert nothing == [(0, 0), (0, 0)]
    absent = Absent(1, (0, 0), (0.0, 0.0))
    assert absent.share is None
    assert tiny.goal("share", absent.share, 0.05, most=True)[1:] == ["-", "<= 0.05", "no"]
    assert tiny.goal("share", 0.04, 0.05, most=True)[-1] == "yes"
    assert tiny.goal("AP50", 0.84, 0.85)[-1] == "no"


def test_as_many_absent_names_are_asked_for_as_present_ones() -> None:
    names = [f"name {index}" for index in range(9)]
    prompt = measure.question(names[:3], names, Random(1))
    assert len(prompt) == len(set(prompt)) == 6
    assert set(names[:3]) < set(prompt)
    assert measure.question(names[:3], names, Random(1)) == prompt
    assert sorted(measure.question(names[:6], names, Random(1))) == names


def test_a_box_counts_once_and_only_under_its_own_name() -> None:
    truth = {"star": torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]]), "moon": torch.tensor([[40.0, 0, 50, 10]])}
    boxes = [[0.0, 0, 10, 10], [1, 0, 11, 10], [40, 0, 50, 10], [40, 0, 50, 10], [21, 0, 31, 10]]
    here = found(boxes, [0.9, 0.8, 0.7, 0.6, 0.5], [1, 1, 1, 2, 3])
    assert compare(here, ["star", "moon", "cross"], truth) == (2, 1, 3)


def test_the_command_of_a_set_draws_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "AGAIN", 1)
    for drawn in plan_sets(2, 5):
        drawn.write(tmp_path / "written")
        draw_main(drawn.command(tmp_path / "commanded")[3:])
        files = [path for path in (tmp_path / "written" / drawn.name).rglob("*") if path.is_file()]
        assert len(files) > 2
        for file in files:
            assert (tmp_path / "commanded" / file.relative_to(tmp_path / "written")).read_bytes() == file.read_bytes()


def test_the_task_files_learn_from_the_examples_and_score_on_other_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets, "AGAIN", 1)
    drawn = draw_sets(tmp_path / "data", 3, 5)
    tasks = write_tasks(tmp_path / "tasks", drawn)
    tree = yaml.safe_load(tasks[TUNED].read_text(encoding="utf-8"))
    register = tree["DATASETS"]["REGISTER"]
    assert tree["DATASETS"]["TRAIN"] == [EXAMPLES, *REMINDERS]
    assert drawn[EXAMPLES].counts["pictures"] == SHOTS
    learned = build_training_data(load_cfg(measure.CONFIG, tasks[TUNED]), load_tokenizer("fiber_tiny"))
    varied = {part.dataset.name.removesuffix("_grounding"): part.transform for part in learned.sets}
    assert (varied[EXAMPLES].flip_down, varied[EXAMPLES].jitter.hue) == (0.5, 0.5)  # an arrow points anywhere
    for name in REMINDERS:  # colours are named there, and a heart upside down is none
        assert (varied[name].flip, varied[name].flip_down, varied[name].jitter) == (0, 0, ColourJitter())
    for name in REMINDERS:  # nobody shows another arrow with them
        pictures = World(5 + 2 + REMINDERS.index(name), Split.SEEN).pictures(9)
        assert all(item.shape != NEW_SHAPE for picture in pictures for item in picture.items)
    assert tree["TEST"]["RETENTION_DATASET"] in register
    train = {path.read_bytes() for path in Path(register[EXAMPLES]["img_dir"]).glob("*.png")}
    for name in tree["DATASETS"]["TEST"]:
        assert not train & {path.read_bytes() for path in Path(register[name]["img_dir"]).glob("*.png")}
    asked = list(questions(drawn["never_seen"].annotations, seed=1))
    assert all(set(one.names) <= set(NEVER_SEEN) for one in asked)
    one = next(questions(drawn["seen"].annotations, seed=1, absent=1))
    assert [name in one.truth for name in one.names] == [True] * (len(one.names) - 1) + [False]


def test_a_long_command_is_broken_into_lines_that_a_shell_reads_as_one() -> None:
    words = ("mrb", "detect", "my pictures/1.png", "--labels", "red star, blue moon", "--config-file", "a/b/c.yaml")
    words += ("--weight", f"{'far/' * 9}w.pth", "--set", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", f"{'out/' * 9}folder")
    text = Command("Find", words).text()
    lines = text.splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) < 120
    assert not any(line.removesuffix(" \\").endswith(("--labels", "--weight", "DIR")) for line in lines)
    assert shlex.split(text.replace("\\\n", "")) == list(words)


def test_a_chart_has_a_line_for_each_curve_within_its_frame() -> None:
    svg = line_chart("losses", {"all": [(1, 3.0), (2, 1.0)], "a < b": [(1, 2.0), (2, 0.5)]}, "step")
    lines = re.findall(r'<polyline points="([^"]+)"', svg)
    assert len(lines) == 2
    points = [tuple(map(float, point.split(","))) for line in lines for point in line.split()]
    assert all(0 <= x <= 720 and 0 <= y <= 300 for x, y in points)
    assert points[0][1] < points[1][1]  # a loss that falls goes down
    assert "a &lt; b" in svg
    assert line_chart("losses", {}, "step") == ""
    assert "polyline" in line_chart("one step", {"all": [(1, 0.0)]}, "step")


def findings(tmp_path: Path) -> Findings:
    here = found([[8, 8, 40, 40]], [0.9], [1])
    words = (Word("red star", "#e6194b"), Word("<moon>", "#3cb44b", ABSENT))
    shown = Shown(enlarged(here), words, "1 of 1 found", True, tmp_path / "1.png")
    before = replace(shown, verdict="0 of 1 found", right=False)
    return Findings(
        count=7,
        scores=PAGE_NUMBERS,
        absent=Absent(7, (30, 12), (27.0, 3.0)),
        tuned=Tuned((0.111, 0.555), (0.1, 0.4), (0.912, 0.901), (0.723, 0.711), tmp_path, tmp_path / "w.pth"),
        gallery=Gallery([shown], [shown], [shown], [shown], [(before, shown)]),
        chart=line_chart("losses", {"all": [(1, 3.0), (2, 1.0)]}, "step"),
        commands=[Command("Find <it>", ("mrb", "detect", "a b.png"))],
        seconds={"draw": 3.0, "score": 9.0},
        versions={"torch": "2.11"},
    )


def test_the_report_has_the_numbers_and_the_pictures_and_loads_nothing(tmp_path: Path) -> None:
    page = write_page(findings(tmp_path))
    for number in ("0.912", "0.714", "0.777", "0.888", "0.666", "10.0 %", "0.111 → 0.555", "+0.444", "-0.011"):
        assert number in page, number
    pictures = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 6
    assert all(Image.open(BytesIO(b64decode(picture))).size == (128, 128) for picture in pictures)
    assert "&lt;moon&gt;" in page
    assert "<moon>" not in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert html.unescape(re.findall(r"<pre>(.*?)</pre>", page, re.S)[0]) == "mrb detect 'a b.png'"
    assert "$" not in page


def test_a_picture_says_how_many_of_its_things_were_found(tmp_path: Path) -> None:
    class Fixed:
        def set_image(self, file: Path) -> Fixed:
            return self

        def predict(self, names: list[str], min_score: float) -> Found:
            return found([[0, 0, 10, 10], [30, 30, 50, 50]], [0.9, 0.8], [1, 2])

    asked = Asked(tmp_path / "1.png", ("star", "moon"), {"star": torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])})
    shown = asked.show(Fixed())  # type: ignore[arg-type]
    assert shown.verdict == "1 of 2 found, 1 wrong"
    assert not shown.right
    assert [word.mark for word in shown.words] == ["", ABSENT]
    assert math.prod(shown.image.size) == 128 * 128


@pytest.mark.parametrize("name", ["others", "a,b"])
def test_it_takes_no_folder_that_holds_other_files(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, weight = tmp_path / name, tmp_path / "w.pth"
    weight.touch()
    folder.mkdir()
    mine = folder / "mine.txt"
    mine.write_text("keep me")
    argv = ["--output", str(folder), "--config-file", "configs/demo/fiber_narrow.yaml", "--weight", str(weight)]
    assert cli.run(main, argv) == 2
    assert "--output" in capsys.readouterr().err
    assert mine.read_text() == "keep me"


def test_missing_weights_show_before_anything_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--output", str(tmp_path / "demo"), "--weight", "not_there.safetensors"]
    assert cli.run(main, argv) == 2
    assert "not_there.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
