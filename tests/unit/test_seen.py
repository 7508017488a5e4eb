"""Pictures of what a training sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from maskrcnn_benchmark.data.training import TrainingData, build_training_data
from maskrcnn_benchmark.data.transforms import Normalise
from maskrcnn_benchmark.demo.seen import GAP, NO_WORDS, Seen, draw_batch
from maskrcnn_benchmark.modeling.interface import Batch
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta
from maskrcnn_benchmark.text.tokenizer import Tokenizer, load_tokenizer
from tests.unit.tiny_tokenizers import write_bpe
from tests.unit.training_files import as_captions, as_coco, everything, training_config


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_bpe(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written."""
    written: list[str] = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, xy, word, *a, **k: written.append(word) or text(self, xy, word, *a, **k),
    )
    return written


def captions(folder: Path, words: Tokenizer, *opts: str) -> tuple[TrainingData, Batch]:
    cfg = training_config(folder, {"words": as_captions(folder / "m")}, "AUGMENT.MULT_MIN_SIZE_TRAIN", "(96,)", *opts)
    data = build_training_data(cfg, words)
    return data, data.prepare(next(iter(data.loader(0))), "cpu")


def test_boxes_carry_the_words_that_they_own(tmp_path: Path, words: Tokenizer, texts: list[str]) -> None:
    data, batch = captions(tmp_path, words)
    draw_batch(batch, words.decode, data.normalise)
    assert texts[:2] == ["the street", "a dog"]
    assert texts[2:9] == ["<s>", "a", "dog", "on", "the", "street", "</s>"]


def test_a_box_without_words_says_so(tmp_path: Path, words: Tokenizer, texts: list[str]) -> None:
    data, batch = captions(tmp_path, words)
    targets = [replace(target, positive_map=torch.zeros_like(target.positive_map)) for target in batch.targets]
    draw_batch(replace(batch, targets=targets), words.decode, data.normalise)
    assert texts[:2] == [NO_WORDS, NO_WORDS]


def test_hidden_words_show_as_the_network_gets_them(tmp_path: Path, words: Tokenizer, texts: list[str]) -> None:
    data, batch = captions(tmp_path, words)
    assert batch.text is not None
    ids = batch.text.input_ids.clone()
    ids[0, batch.targets[0].positive_map[0].bool()] = words.mask_id
    draw_batch(replace(batch, text=replace(batch.text, input_ids=ids)), words.decode, data.normalise)
    assert "<mask>" in texts[1]
    assert "a dog" not in texts[:2]


def test_pixels_are_those_of_the_picture_and_padding_is_grey(tmp_path: Path, words: Tokenizer) -> None:
    data = build_training_data(everything(tmp_path), words)
    raw = next(iter(data.loader(0)))
    targets = [target[torch.zeros(len(target), dtype=torch.bool)] for target in raw.targets]
    batch = replace(data.prepare(raw, "cpu"), targets=targets)
    sheet = np.asarray(draw_batch(batch, words.decode, data.normalise))
    for index, (row, meta) in enumerate(zip(raw.images.pixels, raw.images.metas, strict=True)):
        left, (height, width) = index * (row.shape[2] + GAP), meta.size
        shown = sheet[: row.shape[1], left : left + row.shape[2]]
        assert np.array_equal(shown[:height, :width], row[:, :height, :width].permute(1, 2, 0).numpy())
        assert (shown[height:] == (124, 116, 104)).all()
        assert (shown[:, width:] == (124, 116, 104)).all()


@pytest.mark.parametrize(
    ("mean", "std", "bgr"), [((103.5, 116.3, 123.7), (57.4, 57.1, 58.4), True), ((0.4,) * 3, (0.2,) * 3, False)]
)
def test_normalisation_is_undone(mean: tuple[float, ...], std: tuple[float, ...], bgr: bool) -> None:
    raw = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    raw[:, 1] = 255 - raw[:, 1]
    normalise = Normalise(mean, std, bgr)
    pixels = normalise(ImageBatch(raw, (ImageMeta(0, (16, 16), (16, 16)),))).pixels
    assert torch.equal(normalise.undo(pixels), raw)


def test_files_appear_every_so_many_steps(tmp_path: Path, words: Tokenizer) -> None:
    cfg = training_config(tmp_path, {"boxes": as_coco(tmp_path / "c")})
    data = build_training_data(cfg, words)
    batch = data.prepare(next(iter(data.loader(0))), "cpu")
    for period in (0, 2):
        seen = Seen(tmp_path / f"seen_{period}", period, words, data.normalise)
        for step in range(1, 6):
            seen(step, batch)
    assert not (tmp_path / "seen_0").exists()
    files = sorted((tmp_path / "seen_2").iterdir())
    assert [file.name for file in files] == ["step_0000002.png", "step_0000004.png"]
    with Image.open(files[0]) as picture:
        assert picture.mode == "RGB"
