"""The Python API and ``mrb detect``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_benchmark import Predictor, load_model, mrb
from maskrcnn_benchmark.engine import inference
from maskrcnn_benchmark.engine.inference import Model
from maskrcnn_benchmark.errors import DataError, PromptError
from tests.narrow import CONFIG, Narrow, make_narrow


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Narrow:
    return make_narrow(tmp_path_factory.mktemp("narrow"))


@pytest.fixture(scope="module")
def model(narrow: Narrow) -> Model:
    return load_model(CONFIG, narrow.weights, device="cpu", opts=narrow.opts)


@pytest.fixture
def picture(narrow: Narrow, tmp_path: Path) -> Path:
    narrow.data(tmp_path / "scenes", count=1)
    return next((tmp_path / "scenes").glob("*.png"))


def test_labels_are_found_and_named(model: Model, picture: Path) -> None:
    found = Predictor(model).set_image(picture).predict(labels=["red circle", "dog"])
    assert len(found) > 0
    assert {found.name(i) for i in range(len(found))} <= {"red circle", "dog"}
    width, height = Image.open(picture).size
    assert found.boxes.min() >= 0
    assert found.boxes[:, 2].max() <= width
    assert found.boxes[:, 3].max() <= height
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert len(found.filter(float(found.scores[0]))) >= 1
    assert found.draw(top=3).size == (width, height)
    record = json.loads(found.to_json())
    assert record["width"] == width
    assert record["detections"][0]["box"] == pytest.approx(found.boxes[0].tolist())


def test_a_picture_is_encoded_once_for_many_prompts(
    model: Model, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    encode = type(model.detector).encode_image
    monkeypatch.setattr(
        type(model.detector), "encode_image", lambda self, images: calls.append(1) or encode(self, images)
    )
    predictor = Predictor(model).set_image(picture)
    first = predictor.predict(labels=["red circle"])
    predictor.predict(labels=["dog", "person"])
    again = predictor.predict(labels=["red circle"])
    assert len(calls) == 1
    assert torch.equal(first.boxes, again.boxes)
    assert torch.equal(first.scores, again.scores)


def test_file_array_and_picture_give_the_same(model: Model, picture: Path) -> None:
    image = Image.open(picture).convert("RGB")
    found = [Predictor(model).set_image(x).predict(labels=["star"]) for x in (picture, image, np.asarray(image))]
    for other in found[1:]:
        assert torch.equal(found[0].boxes, other.boxes)


def test_a_caption_is_looked_for_as_a_whole_or_by_phrases(model: Model, picture: Path) -> None:
    predictor = Predictor(model).set_image(picture)
    caption = "a red circle left of the dog"
    whole = predictor.predict(caption=caption)
    assert {whole.name(i) for i in range(len(whole))} == {caption}
    best = [predictor.predict(caption=caption, phrases=[word], top=1).scores.max() for word in caption.split()]
    assert whole.scores.max() == pytest.approx(float(max(best)), abs=1e-6)
    parts = predictor.predict(caption=caption, phrases=["red circle", "dog"])
    assert {parts.name(i) for i in range(len(parts))} <= {"red circle", "dog"}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({}, "labels"),
        ({"labels": []}, "list of labels is empty"),
        ({"labels": ["dog", "dog"]}, "dog"),
        ({"labels": ["dog", " "]}, "no word"),
        ({"labels": "dog"}, "labels=['dog']"),
        ({"labels": ["dog"], "caption": "a dog"}, "either"),
        ({"labels": ["dog"], "phrases": ["dog"]}, "phrases go with a caption"),
        ({"labels": ["dog"], "top": -3}, "top must be"),
        ({"caption": ""}, "no words"),
        ({"caption": "a dog", "phrases": ["cat"]}, "cat"),
        ({"labels": ["dog " * 400]}, "tokens"),
    ],
)
def test_words_that_make_no_prompt(model: Model, picture: Path, query: dict, words: str) -> None:
    with pytest.raises(PromptError, match=words.replace("[", r"\[")):
        Predictor(model).set_image(picture).predict(**query)


@pytest.mark.parametrize("labels", [["c++ (box)", "a.b*", "[x]"], ["数字", "café"], ["container", "container number"]])
def test_any_name_can_be_asked_for(model: Model, picture: Path, labels: list[str]) -> None:
    found = Predictor(model).set_image(picture).predict(labels=labels)
    assert {found.name(i) for i in range(len(found))} <= set(labels)


def test_pictures_that_cannot_be_used(model: Model, tmp_path: Path) -> None:
    predictor = Predictor(model)
    with pytest.raises(DataError, match="set_image"):
        predictor.predict(labels=["dog"])
    with pytest.raises(DataError, match=r"none\.png"):
        predictor.set_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="uint8"):
        predictor.set_image(np.zeros((4, 4)))
    with pytest.raises(DataError, match=r"uint8 \(H, W, 3\).* \(0, 4, 3\)"):
        predictor.set_image(np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(DataError, match="got NoneType"):
        predictor.set_image(None)  # type: ignore[arg-type]


def detect(narrow: Narrow, *argv: str | Path) -> int:
    opts = ["--config-file", CONFIG, "--weight", narrow.weights, "--set", *narrow.opts]
    return mrb.main(["detect", *map(str, [*argv, *opts])])


def test_mrb_detect_writes_pictures_and_json(narrow: Narrow, tmp_path: Path) -> None:
    narrow.data(tmp_path / "a", count=2)
    narrow.data(tmp_path / "b", count=1)
    output = tmp_path / "found"
    pictures = [tmp_path / "a", tmp_path / "b" / "*.png"]
    assert detect(narrow, *pictures, "--labels", "red circle, dog", "--output", output, "--min-score", "0") == 0
    records = json.loads((output / "detections.json").read_text())
    assert len(records) == 3
    drawn = {record["drawn"] for record in records}
    assert drawn == {path.name for path in output.glob("*.jpg")}
    assert len(drawn) == 3, "pictures of one name from two folders are both kept"
    assert {d["name"] for r in records for d in r["detections"]} <= {"red circle", "dog"}


def test_mrb_detect_goes_on_after_a_damaged_picture(
    narrow: Narrow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shots"
    narrow.data(folder, count=2)
    (folder / "broken.png").write_bytes(b"\x89PNG broken")
    assert detect(narrow, folder, "--labels", "dog", "--output", tmp_path / "found") == 0
    good, other, bad = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert good["drawn"] != other["drawn"]
    assert bad["file"] == str(folder / "broken.png")
    assert "broken.png" in bad["error"]
    told = capsys.readouterr()
    assert "2 pictures and detections.json" in told.out
    assert told.out.endswith(", 1 cannot be read\n")
    assert "broken.png" in told.err
    (folder / "000001.png").write_bytes(b"no")
    (folder / "000002.png").write_bytes(b"no")
    assert detect(narrow, folder, "--labels", "dog", "--output", tmp_path / "none") == 2
    assert "none of 3 pictures can be read, such as" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere.jpg", "--labels", "dog"], "nowhere.jpg"),
        (["{folder}", "--labels", "dog"], "no pictures"),
        (["{broken}", "--labels", "dog"], "broken.png"),
        (["{good}", "--labels", " , "], "list of labels is empty"),
        (["{good}", "--labels", "dog, dog"], "dog"),
        (["{good}", "--labels", "dog", "--phrases", "dog"], "--caption"),
    ],
)
def test_mrb_detect_refuses_in_one_line(
    narrow: Narrow, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    names = {"folder": tmp_path / "empty", "broken": tmp_path / "broken.png", "good": picture}
    output = tmp_path / "found"
    assert detect(narrow, *(arg.format(**names) for arg in argv), "--output", output) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert words in line
    assert not output.exists()


def test_mrb_detect_refuses_an_output_that_is_a_file(
    narrow: Narrow, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "found").write_text("mine")
    assert detect(narrow, picture, "--labels", "dog", "--output", tmp_path / "found") == 2
    assert "error: --output" in capsys.readouterr().err
    assert (tmp_path / "found").read_text() == "mine"


@pytest.mark.parametrize("top", ["0", "-1", "few"])
def test_mrb_detect_keeps_at_least_one(narrow: Narrow, capsys: pytest.CaptureFixture[str], top: str) -> None:
    with pytest.raises(SystemExit) as stop:
        detect(narrow, "x.jpg", "--labels", "dog", "--top", top)
    assert stop.value.code == 2
    assert "--top" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--labels", "dog, dog"], ["--labels", "dog", "--weight", "none.pth"]])
def test_mrb_detect_tells_mistakes_before_the_network_is_built(
    narrow: Narrow, picture: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    monkeypatch.setattr(inference, "build_detector", lambda cfg: pytest.fail("built"))
    opts = ["--config-file", CONFIG, "--weight", str(narrow.weights), *argv, "--set", *narrow.opts]
    assert mrb.main(["detect", str(picture), *opts]) == 2
