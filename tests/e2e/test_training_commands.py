"""Training commands of FIBER's instructions, as printed there but for the number of processes, on real data."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.checkpoint.resume import load_latest
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.engine.log import PACKAGE
from maskrcnn_benchmark.modeling.build import build_detector
from tests.golden.common import shared_path
from tests.training_runs import ROOT, environment

pytestmark = pytest.mark.full

COCO = """python -m torch.distributed.launch --nproc_per_node=2 tools/train_net.py \
       --config-file configs/e2e_dyhead_SwinT_B_FPN_coco_finetuning_fusion_backbone.yaml \
       --skip-test \
       MODEL.WEIGHT {model_checkpoint}"""
PRETRAIN = """python -m torch.distributed.launch --nproc_per_node=2 tools/train_net.py \
    --config-file configs/pretrain/mixed_nococo_flickr_objects365.yaml \
    --skip-test --use-tensorboard --override_output_dir {output_dir} \
    MODEL.WEIGHT {model_checkpoint}"""
REFCOCO = """python -m torch.distributed.launch --nproc_per_node=2 tools/train_net.py
        --config-file configs/refcoco.yaml
        --skip-test
        MODEL.WEIGHT {model_checkpoint}"""
NETWORK = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.OUT_CHANNELS": 32,
    "MODEL.SWINT.DEPTHS": "(1,1,5,2)",
    "MODEL.SWINT.EMBED_DIM": 8,
    "MODEL.SWINT.NUM_HEADS": "(1,1,2,2)",
    "MODEL.SWINT.OUT_CHANNELS": "(8,16,32,64)",
    "MODEL.SWINT.WINDOW_SIZE": 4,
    "MODEL.LANGUAGE_BACKBONE.NUM_LAYERS": 6,
    "MODEL.LANGUAGE_BACKBONE.LANG_DIM": 32,
    "MODEL.LANGUAGE_BACKBONE.NUM_HEADS": 2,
    "MODEL.LANGUAGE_BACKBONE.INTERMEDIATE_SIZE": 32,
    "MODEL.DYHEAD.CHANNELS": 32,
    "MODEL.DYHEAD.NUM_CONVS": 1,
}
STEPS = {
    "INPUT.MIN_SIZE_TRAIN": 96,
    "INPUT.MAX_SIZE_TRAIN": 128,
    "INPUT.MIN_SIZE_TEST": 96,
    "INPUT.MAX_SIZE_TEST": 128,
    "AUGMENT.MULT_MIN_SIZE_TRAIN": "(64,96)",
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_EPOCH": 0,
    "SOLVER.MAX_ITER": 3,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.LOG_PERIOD": 1,
    "TEST.IMS_PER_BATCH": 2,
}


def few(data: Path, file: str, folder: Path, count: int) -> Path:
    """The first ``count`` pictures of a COCO-format file."""
    tree: dict[str, Any] = json.loads((data / file).read_text(encoding="utf-8"))
    tree["images"] = sorted(tree["images"], key=lambda row: row["id"])[:count]
    ids = {row["id"] for row in tree["images"]}
    tree["annotations"] = [row for row in tree["annotations"] if row["image_id"] in ids]
    path = folder / Path(file).name
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def sets(name: str, data: Path, folder: Path) -> dict[str, dict[str, Path | str]]:
    """What has other places in the shared folder than in the instructions, by name."""
    pictures = data / "coco" / "val2017"
    if name == "coco":  # the set for training lies where it should
        return {
            "coco_2017_val": {
                "img_dir": pictures,
                "ann_file": few(data, "coco/annotations/instances_val2017.json", folder, 2),
            }
        }
    expressions = data / "mdetr_annotations" / "finetune_refcocos_{}.json"
    if name == "refcoco":
        return {
            f"refcoco_{split}": {"img_dir": pictures, "ann_file": str(expressions).format(split)}
            for split in ("train", "val")
        }
    derived = data / "derived"
    captions = derived / "mdetr_annotations" / "final_flickr_separateGT_train.json"
    return {
        "mixed_train_no_coco": {"img_dir": pictures, "ann_file": str(expressions).format("train")},
        "flickr30k_train": {"img_dir": data / "coco" / "train2017", "ann_file": captions},
        "object365_dt_train": {"ann_file": derived / "Objects365_tsv" / "train.yaml"},
    }


@pytest.mark.parametrize(("name", "command"), [("coco", COCO), ("refcoco", REFCOCO), ("pretrain", PRETRAIN)])
def test_the_command_trains_in_two_processes(
    name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, tokenizers = shared_path("data", "DATASET"), shared_path("tokenizers")
    if "--use-tensorboard" in command:
        pytest.importorskip("tensorboardX")
    monkeypatch.setenv("MB_TOKENIZERS", str(tokenizers))
    network = [str(part) for pair in NETWORK.items() for part in pair]
    weights = tmp_path / "start.pth"
    words = command.format(model_checkpoint=weights, output_dir=tmp_path / "out").split()
    config = words[words.index("--config-file") + 1]
    save_weights(build_detector(load_cfg(config, opts=network)).state_dict(), weights)
    keys: dict[str, Any] = {**STEPS, "OUTPUT_DIR": tmp_path / "out"}
    for entry, files in sets(name, data, tmp_path).items():
        keys |= {f"DATASETS.REGISTER.{entry}.{key}": path for key, path in files.items()}
    words += [*network, *(str(part) for pair in keys.items() for part in pair)]

    launcher = {"PET_STANDALONE": "1", "PET_LOCAL_ADDR": "127.0.0.1"}  # it chooses a free port
    env = {key: value for key, value in os.environ.items() if key not in ("MASTER_ADDR", "MASTER_PORT")}
    env |= environment(DATASET=str(data), MB_TOKENIZERS=str(tokenizers)) | launcher
    run = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stderr
    output = tmp_path / "out"
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(math.isfinite(value) for row in rows for key, value in row.items() if key.startswith("loss"))
    state = load_latest(output)
    assert state is not None
    assert state["iteration"] == 3
    assert len(state["rng"]) == 2, "the state of each process is in the checkpoint"
    assert (output / "model_final.pth").is_file()
    assert (output / "tensorboard").is_dir() == ("--use-tensorboard" in words)

    assert len(run.stdout.splitlines()) == 1, "one of the processes talks"
    assert run.stdout.startswith("3 steps")
    lines = (line for line in (output / "log.txt").read_text().splitlines() if f" {PACKAGE}" in line)
    logged = Counter(line.split(": ", 1)[1] for line in lines if not line.endswith("-+"))  # but for tables
    told = Counter(line.removeprefix("warning: ") for line in run.stderr.splitlines())
    assert any(message.startswith("training data: ") for message in logged)
    assert {message: told[message] for message in logged} == logged
