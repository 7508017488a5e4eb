"""A narrow MDETR with masks, its own small tokenizer and random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from maskrcnn_benchmark import load_model
from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.engine.inference import Model
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.text.train_tokenizer import train_tokenizer
from tests.mdetr_place import NARROW
from tests.narrow import WORDS

MDETR_CONFIG = "configs/base/mdetr.yaml"


def narrow_mdetr(folder: Path) -> tuple[Model, Path, tuple[str, ...]]:
    """The model, its weights and its options; every query is kept."""
    tokenizer = train_tokenizer(WORDS, folder / "tokenizer", vocab_size=400)
    keys = NARROW | {
        "MODEL.META_ARCHITECTURE": "MDETR_SEGM",
        "MODEL.MDETR.MASK_THRESH": 0.0,
        "MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE": tokenizer,
        "MODEL.LANGUAGE_BACKBONE.VOCAB_SIZE": json.loads((tokenizer / "config.json").read_text())["vocab_size"],
        "INPUT.MIN_SIZE_TEST": 96,
        "INPUT.MAX_SIZE_TEST": 128,
        "TEST.USE_EMA": False,
    }
    opts = tuple(str(part) for pair in keys.items() for part in pair)
    torch.manual_seed(0)
    detector = build_detector(load_cfg(MDETR_CONFIG, opts=opts))
    weights = save_weights(detector.state_dict(), folder / "mdetr.safetensors")
    return load_model(MDETR_CONFIG, weights, "cpu", opts), weights, opts
