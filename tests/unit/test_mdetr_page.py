"""A sentence asked of MDETR: boxes and masks called by their words of it, from Python, over HTTP and by ``mrb``."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw
from pycocotools import mask as mask_api

from maskrcnn_benchmark import Predictor, mrb
from maskrcnn_benchmark.demo import server
from maskrcnn_benchmark.engine.inference import Model
from tests.narrow_mdetr import MDETR_CONFIG, narrow_mdetr

SENTENCE = "a red circle left of the dog"


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path, tuple[str, ...]]:
    return narrow_mdetr(tmp_path_factory.mktemp("mdetr"))


def picture() -> Image.Image:
    image = Image.new("RGB", (120, 80), "#bcd")
    ImageDraw.Draw(image).ellipse((10, 10, 60, 60), fill="red")
    return image


def test_boxes_are_called_by_words_of_the_sentence(setting: tuple[Model, Path, tuple[str, ...]]) -> None:
    found = Predictor(setting[0]).set_image(picture()).predict(caption=SENTENCE)
    assert len(found) == 10, "one for each query"
    assert found.labels[0] == 1
    words = SENTENCE.split()
    for row in range(len(found)):
        assert {word for word in found.name(row).split() if word != "…"} <= set(words)
        same = [other for other in range(len(found)) if found.name(other) == found.name(row)]
        assert found.labels[same].unique().tolist() == [found.labels[row]]
    asked = Predictor(setting[0]).set_image(picture()).predict(caption=SENTENCE, phrases=["red circle", "dog"])
    assert asked.names == {1: "red circle", 2: "dog"}, "phrases of one's own are looked for, as before"


def test_the_page_is_told_words_and_masks(setting: tuple[Model, Path, tuple[str, ...]]) -> None:
    model, weights, opts = setting
    source = server.Source(MDETR_CONFIG, str(weights), "cpu", opts)
    data = io.BytesIO()
    picture().save(data, "PNG")
    with TestClient(server.build_app(model, source), base_url="http://localhost") as client:
        assert client.get("/about").json()["own_words"] is True
        key = client.post("/pictures", params={"name": "a.png"}, content=data.getvalue()).json()["picture"]
        answer = client.post("/find", json={"picture": key, "words": SENTENCE, "mode": "sentence"}).json()
    found = Predictor(model).set_image(picture()).predict(caption=SENTENCE)
    assert found.masks is not None
    assert {row["label"]: row["name"] for row in answer["detections"]} == found.names
    assert {part["label"]: part["text"] for part in answer["parts"]} == found.names
    assert all(part["own"] for part in answer["parts"])
    for row, mask in zip(answer["detections"], found.masks.numpy(), strict=True):
        counts = row["mask"]["counts"].encode()
        assert (mask_api.decode({"size": row["mask"]["size"], "counts": counts}) == mask).all()


def test_mrb_detect_writes_words_and_masks(setting: tuple[Model, Path, tuple[str, ...]], tmp_path: Path) -> None:
    model, weights, opts = setting
    file, output = tmp_path / "a.png", tmp_path / "found"
    picture().save(file)
    asked = ["detect", file, "--caption", SENTENCE, "--min-score", 0, "--top", 3, "--output", output]
    given = ["--config-file", MDETR_CONFIG, "--weight", weights, "--set", *opts]
    assert mrb.main([str(word) for word in (*asked, *given)]) == 0
    found = Predictor(model).set_image(file).predict(caption=SENTENCE, top=3)
    (record,) = json.loads((output / "detections.json").read_text())
    assert (record["drawn"], record["width"], record["height"]) == ("a.jpg", 120, 80)
    assert [row["name"] for row in record["detections"]] == [found.name(row) for row in range(3)]
    assert found.masks is not None
    assert found.masks.any()
    for row, mask in zip(record["detections"], found.masks.numpy(), strict=True):
        counts = row["mask"]["counts"].encode()
        assert (mask_api.decode({"size": row["mask"]["size"], "counts": counts}) == mask).all()
    drawn = (output / "a.jpg").read_bytes()
    assert drawn == jpeg(found.draw())
    assert drawn != jpeg(replace(found, masks=None).draw()), "masks are drawn too"


def jpeg(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=92)
    return data.getvalue()
