"""A narrow FIBER with its own small tokenizer, random weights and drawn scenes: a whole run without shared material."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.drawn import CLASSES, World, write_coco
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.text.train_tokenizer import train_tokenizer
from tools import test_grounding_net

CONFIG = "configs/demo/fiber_narrow.yaml"
WORDS = (
    "red blue green yellow circle square triangle star person dog traffic light left right of the a an and big small "
    * 3,
)


@dataclass(frozen=True)
class Narrow:
    """Files of a small world; ``opts`` make any config use its tokenizer and small pictures."""

    folder: Path
    opts: tuple[str, ...]
    weights: Path

    def data(self, folder: Path, count: int = 3, seed: int = 1) -> Path:
        """Draw ``count`` scenes into ``folder``; returns the annotation file."""
        return write_coco(folder, World(seed, size=(96, 128), classes=CLASSES), count).annotations

    def task(self, annotations: Path, folder: Path, **datasets: object) -> Path:
        """A task file that evaluates on ``annotations``, whose pictures lie beside it."""
        entry = {"ann_file": str(annotations), "img_dir": str(annotations.parent)}
        path = folder / "task.yaml"
        tree = {"DATASETS": {"REGISTER": {"drawn": entry}, "TEST": ["drawn"], **datasets}}
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    def run(self, task: Path, output: Path, *extra: str, weight: Path | str | None = None) -> int:
        """The evaluation tool in this process; returns its exit code."""
        argv = ["--config-file", CONFIG, "--weight", str(weight or self.weights), "--task_config", str(task)]
        return cli.run(test_grounding_net.main, [*argv, *self.opts, "OUTPUT_DIR", str(output), *extra])


def make_narrow(folder: Path) -> Narrow:
    tokenizer = train_tokenizer(WORDS, folder / "tokenizer", vocab_size=400)
    vocab = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    keys = {
        "MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE": tokenizer,
        "MODEL.LANGUAGE_BACKBONE.VOCAB_SIZE": vocab,
        "MODEL.DEVICE": "cpu",
        "MODEL.ATSS.INFERENCE_TH": 0.0,
        "INPUT.MIN_SIZE_TEST": 64,
        "INPUT.MAX_SIZE_TEST": 96,
        "DATALOADER.NUM_WORKERS": 0,
        "TEST.IMS_PER_BATCH": 2,
        "TEST.EVAL_TASK": "detection",
    }
    opts = tuple(str(part) for pair in keys.items() for part in pair)
    torch.manual_seed(0)
    weights = folder / "narrow.pth"
    save_weights(build_detector(load_cfg(CONFIG, opts=opts)).state_dict(), weights)
    return Narrow(folder, opts, weights)
