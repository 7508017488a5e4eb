"""What the small MDETR of the drawn world starts from, ``python -m maskrcnn_benchmark.demo.mdetr_encoders``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.drawn import Split, World
from maskrcnn_benchmark.demo import mdetr_encoders
from maskrcnn_benchmark.demo.encoders import painted
from maskrcnn_benchmark.demo.mdetr_encoders import MOST, at, main, make_pool, words_of
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, Prompt
from maskrcnn_benchmark.text.positive_map import text_batch
from maskrcnn_benchmark.text.tokenizer import load_tokenizer
from maskrcnn_benchmark.training import starting_model

CONFIG = "configs/tiny/mdetr_drawn.yaml"


def test_pool_is_what_the_pictures_show() -> None:
    pool = make_pool(World(3, Split.TRAIN, (128, 128), most=MOST), 4)
    for number, picture in enumerate(World(3, Split.TRAIN, (128, 128), most=MOST).pictures(4)):
        chosen = torch.tensor([number])
        grid = pool.grid(chosen, 8)
        assert grid.shape == (1, 16, 16)
        colours, shapes = (painted(picture, fact)[4::8, 4::8] for fact in ("colour", "shape"))
        assert torch.equal(at(pool.colours[chosen], grid)[0], colours)
        assert torch.equal(at(pool.shapes[chosen], grid)[0], shapes)
        x1, y1, x2, y2 = picture.items[0].box
        width, height = pool.boxes[number, 0, 2:] * 128
        assert (width, height) == (x2 - x1, y2 - y1)
        texts = [text for text, _ in pool.said[number]]
        assert any(text.endswith(" .") for text in texts), "captions"
        assert any(not text.endswith(" .") for text in texts), "phrases"


def test_words_of_things() -> None:
    """A thing that two phrases name has the words of both; one that none names has none."""
    tokens = torch.zeros(2, 256)
    tokens[0, 1:3] = tokens[1, 2:5] = 1
    shares = words_of(tokens, [((0, 4), (0,)), ((5, 9), (0, 2))])
    assert shares[0].nonzero().flatten().tolist() == [1, 2, 3, 4]
    assert shares[0, 2] == 0.25
    assert shares[2].nonzero().flatten().tolist() == [2, 3, 4]
    assert shares[1].argmax() == shares[MOST].argmax() == 255
    assert torch.allclose(shares.sum(1), torch.ones(MOST + 1))


@pytest.mark.filterwarnings("ignore:Converting a tensor")
def test_a_training_starts_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    monkeypatch.setattr(mdetr_encoders, "POOL", 20)
    file = tmp_path / "start.safetensors"
    main(["--config-file", CONFIG, "--out", str(file), "--text-steps=2", "--picture-steps=2", "--joint-steps=2"])
    cfg = load_cfg(CONFIG, opts=["MODEL.WEIGHT", str(file)])
    started = starting_model(cfg).state_dict()
    torch.manual_seed(cfg.SOLVER.SEED)
    fresh = build_detector(cfg).state_dict()
    for part in ("backbone.0.body", "transformer.text_encoder", "transformer.encoder", "input_proj", "class_embed"):
        names = [name for name in fresh if name.startswith(part) and fresh[name].is_floating_point()]
        assert any(not torch.equal(started[name], fresh[name]) for name in names), part


@torch.no_grad()
def test_masks_on_a_dilated_body() -> None:
    pytest.importorskip("timm")
    keys = ["MODEL.MDETR.FROZEN_WEIGHTS", "", "MODEL.MDETR.MASK_THRESH", "0.0"]
    cfg = load_cfg("configs/tiny/mdetr_drawn_masks.yaml", opts=keys)
    model = build_detector(cfg).eval()
    image = model.encode_image(ImageBatch(torch.zeros(1, 3, 128, 96), (ImageMeta(1, (128, 96), (64, 48)),)))
    assert image.features.cells.shape[2:] == (8, 6)
    tokenizer = load_tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE)
    (found,) = model.detect(image, model.encode_text(text_batch([Prompt("a red circle", (), ())], tokenizer)))
    assert found.masks is not None
    assert found.masks.shape == (10, 64, 48)
