"""A folder with drawn data, a small tokenizer and configs, all where MDETR's instructions want them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.data.drawn import FORMS, World
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.text.train_tokenizer import train_tokenizer
from tools import main as mdetr_main

SIZE = (96, 128)
NARROW = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.CONV_BODY": "R-18-MDETR",
    "MODEL.LANGUAGE_BACKBONE.LANG_DIM": 32,
    "MODEL.LANGUAGE_BACKBONE.NUM_LAYERS": 1,
    "MODEL.LANGUAGE_BACKBONE.NUM_HEADS": 2,
    "MODEL.LANGUAGE_BACKBONE.INTERMEDIATE_SIZE": 32,
    "MODEL.MDETR.HIDDEN_DIM": 128,
    "MODEL.MDETR.FFN_DIM": 64,
    "MODEL.MDETR.ENC_LAYERS": 1,
    "MODEL.MDETR.DEC_LAYERS": 2,
    "MODEL.MDETR.NUM_QUERIES": 10,
}
SMALL = {
    "INPUT.MIN_SIZE_TRAIN": "(64,96)",
    "INPUT.MAX_SIZE_TRAIN": 128,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 96,
    "AUGMENT.CROP_FROM": "(72,)",
    "AUGMENT.CROP_SIZES": "(48,128)",
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.LOG_PERIOD": 1,
}
"""What makes a network, and its pictures, small."""


@dataclass(frozen=True)
class Place:
    """The folder; ``tokenizers`` is for ``MB_TOKENIZERS``."""

    folder: Path
    tokenizers: Path

    def opts(self, changed: Mapping[str, object] | None = None) -> list[str]:
        """Keys and values of a narrow network on small pictures."""
        vocab = json.loads((self.tokenizers / "roberta-base" / "config.json").read_text())["vocab_size"]
        keys = {**NARROW, **SMALL, "MODEL.LANGUAGE_BACKBONE.VOCAB_SIZE": vocab, **(changed or {})}
        return [str(part) for pair in keys.items() for part in pair]

    def main(self, *words: object, **changed: Any) -> int:
        """``tools/main.py`` in this process, narrow; ``SOLVER__SEED=1`` stands for ``SOLVER.SEED 1``."""
        keys = {key.replace("__", "."): value for key, value in changed.items()}
        return cli.run(mdetr_main.main, [*map(str, words), *self.opts(keys)])

    def enter(self, monkeypatch: Any) -> None:
        """Go there."""
        monkeypatch.chdir(self.folder)
        monkeypatch.setenv("MB_TOKENIZERS", str(self.tokenizers))
        for variable in ("DATASET", "MODEL", "RANK", "WORLD_SIZE"):
            monkeypatch.delenv(variable, raising=False)


def make_place(folder: Path, count: int = 4) -> Place:
    """All splits of a data set have the same few pictures."""
    data, world = folder / "DATASET", World(1, size=SIZE)
    for name in ("flickr", "refcoco", "phrasecut"):
        FORMS[name](folder / "drawn" / name, world, count)
    drawn, annotations = folder / "drawn", data / "mdetr_annotations"
    annotations.mkdir(parents=True)
    for split in ("train", "val", "test"):
        shutil.copytree(drawn / "flickr" / "pictures", data / "flickr30k" / "flickr30k_images" / split)
        shutil.copy(
            drawn / "flickr" / "final_flickr_separateGT_train.json",
            annotations / f"final_flickr_separateGT_{split}.json",
        )
    shutil.copytree(drawn / "flickr" / "entities", data / "flickr30k" / "flickr30k")
    for split in ("val", "test"):
        shutil.copy(data / "flickr30k" / "flickr30k" / "train.txt", data / "flickr30k" / "flickr30k" / f"{split}.txt")
    for images in (data / "coco" / "train2014", data / "gqa" / "images"):
        shutil.copytree(drawn / "refcoco" / "pictures", images)
    expressions = json.loads((drawn / "refcoco" / "finetune_refcoco_train.json").read_text())
    for name in ("final_refexp_val", "finetune_refcoco_train", "finetune_refcoco_val", "finetune_refcoco_testA"):
        (annotations / f"{name}.json").write_text(json.dumps(expressions))
    (annotations / "final_gqa_val.json").write_text(json.dumps(expressions))
    mixed = {**expressions, "images": [{**row, "data_source": "coco"} for row in expressions["images"]]}
    (annotations / "final_mixed_train.json").write_text(json.dumps(mixed))
    shutil.copytree(drawn / "phrasecut" / "pictures", data / "gqa" / "images", dirs_exist_ok=True)
    shutil.copytree(drawn / "phrasecut" / "VGPhraseCut_v0", data / "VGPhraseCut_v0")
    for split in ("train", "miniv", "test"):
        shutil.copy(
            drawn / "phrasecut" / "finetune_phrasecut_train.json", annotations / f"finetune_phrasecut_{split}.json"
        )
        if split != "train":
            shutil.copy(data / "VGPhraseCut_v0" / "refer_train.json", data / "VGPhraseCut_v0" / f"refer_{split}.json")
    tokenizers = folder / "tokenizers"
    words = [row["caption"] for row in expressions["images"]] * 4
    train_tokenizer(words, tokenizers / "roberta-base", vocab_size=400)
    (folder / "MODEL").mkdir()
    return Place(folder, tokenizers)


def write_zeros(path: Path, cfg: Any, averaged: bool = True) -> None:
    """A checkpoint as MDETR's authors write them, of zeros, for the network of a config."""
    with torch.device("meta"):
        state = build_detector(cfg).state_dict()
    zeros = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": zeros, "model_ema": zeros if averaged else None, "epoch": 9}, path)
