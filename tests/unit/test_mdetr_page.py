"""A sentence asked of MDETR: boxes and masks called by the words that they belong to, from Python and over HTTP."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw
from pycocotools import mask as mask_api

from maskrcnn_benchmark import Predictor
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
