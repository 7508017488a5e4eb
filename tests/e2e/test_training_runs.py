"""A narrow network learns from real pictures in minutes on one core."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from maskrcnn_benchmark.data.datasets.coco_grounding import CocoGrounding
from maskrcnn_benchmark.training import train_net
from tests.golden.common import shared_path

pytestmark = pytest.mark.full

CONFIG = "configs/demo/fiber_narrow.yaml"
KEYS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.SWINT.DROP_PATH_RATE": 0.0,
    "MODEL.DYHEAD.NUM_CONVS": 1,
    "MODEL.DYHEAD.USE_CHECKPOINT": False,
    "INPUT.MIN_SIZE_TRAIN": 240,
    "INPUT.MAX_SIZE_TRAIN": 400,
    "INPUT.MIN_SIZE_TEST": 240,
    "INPUT.MAX_SIZE_TEST": 400,
    "AUGMENT.MULT_MIN_SIZE_TRAIN": "()",
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.BASE_LR": 5e-4,
    "SOLVER.LANG_LR": 5e-4,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WARMUP_ITERS": 30,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MODEL_EMA": 0.0,
    "SOLVER.USE_AMP": False,
    "SOLVER.CHECKPOINT_PERIOD": 1000,
    "TEST.IMS_PER_BATCH": 2,
}
"""Random weights, few steps, small pictures, and nothing of what keeps large networks from overfitting."""


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MB_TOKENIZERS", str(shared_path("tokenizers")))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(folder: Path, datasets: Mapping[str, Any], **keys: Any) -> dict[str, Any]:
    """A training into ``folder/run``; keys with "__" for "."."""
    task = folder / "task.yaml"
    task.write_text(yaml.safe_dump({"DATASETS": dict(datasets)}), encoding="utf-8")
    given = {**KEYS, **{name.replace("__", "."): value for name, value in keys.items()}}
    opts = [str(part) for pair in given.items() for part in pair]
    return train_net(CONFIG, str(task), opts, str(folder / "run"))


def losses(folder: Path) -> list[float]:
    rows = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows]


def test_the_loss_falls_on_the_three_kinds_of_pretraining_data_together(tmp_path: Path) -> None:
    data = shared_path("data", "DATASET")
    captions = data / "derived" / "mdetr_annotations" / "final_flickr_separateGT_train.json"
    phrases = data / "mdetr_annotations" / "finetune_refcocos_train.json"
    sets = {
        "objects365": {"kind": "tsv", "ann_file": str(data / "derived" / "Objects365_tsv" / "train.yaml")},
        "flickr30k": {"kind": "flickr", "img_dir": str(data / "coco" / "train2017"), "ann_file": str(captions)},
        "mixed": {"kind": "mixed", "img_dir": str(data / "coco" / "val2017"), "ann_file": str(phrases)},
    }
    run(
        tmp_path,
        {"REGISTER": sets, "TRAIN": list(sets), "TEST": []},
        SOLVER__MAX_ITER=50,
        SOLVER__WARMUP_ITERS=5,
        SOLVER__STEPS="(0.9,)",
        SOLVER__LOG_PERIOD=1,
        SOLVER__PICTURES_PERIOD=25,
    )
    steps = losses(tmp_path)
    assert len(steps) == 50
    first, last = sum(steps[:10]) / 10, sum(steps[-10:]) / 10
    print(f"mean loss of the first 10 steps {first:.3f}, of the last 10 {last:.3f}")
    assert last < first
    seen = sorted(file.name for file in (tmp_path / "run" / "seen").iterdir())
    assert seen == ["step_0000025.png", "step_0000050.png"]


def shots(folder: Path, pictures: Path, annotations: Path, count: int) -> Path:
    """The annotations of the pictures that a few-shot training is given."""
    chosen = CocoGrounding(pictures, annotations, "train", shots=count)
    ids = {chosen[index].meta.image_id for index in range(len(chosen))}
    tree = json.loads(annotations.read_text(encoding="utf-8"))
    tree["images"] = [row for row in tree["images"] if row["id"] in ids]
    tree["annotations"] = [row for row in tree["annotations"] if row["image_id"] in ids]
    path = folder / "shots.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path
