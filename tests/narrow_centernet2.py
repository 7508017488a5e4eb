"""A very small CenterNet2 with the heads of Detic, and drawn pictures with outlines, or with names only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from maskrcnn_benchmark.data.drawn import CLASSES, World
from maskrcnn_benchmark.data.drawn.forms import write_coco
from tests.narrow import Narrow
from tests.training_runs import Small

CONFIG = "configs/decola/DECOLA_C2_LbaseI_CLIP_R5021k_640b64_ft4x.yaml"
WIDTH = 16  # of the embeddings of names
NARROW: Mapping[str, object] = {
    "MODEL.WEIGHT": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.CONV_BODY": "SWIN-FPN-P6P7",
    "MODEL.BACKBONE.OUT_CHANNELS": 64,
    "MODEL.SWINT.SIZE": "",
    "MODEL.SWINT.EMBED_DIM": 8,
    "MODEL.SWINT.DEPTHS": "(1, 1, 2, 1)",
    "MODEL.SWINT.NUM_HEADS": "(1, 1, 2, 2)",
    "MODEL.SWINT.DROP_PATH_RATE": 0.0,
    "MODEL.ROI_HEADS.NUM_CLASSES": len(CLASSES),
    "MODEL.ROI_HEADS.SCORE_THRESH": 0.0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
    "MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM": 32,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.CENTERNET.NUM_BOX_CONVS": 1,
    "MODEL.CENTERNET.POST_NMS_TOPK_TEST": 32,
    "MODEL.CENTERNET.POST_NMS_TOPK_TRAIN": 64,
    "MODEL.ZEROSHOT_CLS.DIM": WIDTH,
    "TEST.DETECTIONS_PER_IMG": 20,
    "TEST.IMS_PER_BATCH": 2,
    "INPUT.TRAIN_SIZE": 96,
    "INPUT.MIN_SIZE_TEST": 96,
    "INPUT.MAX_SIZE_TEST": 160,
    "DATALOADER.NUM_WORKERS": 0,
    "DATALOADER.DATASET_RATIO": "(1, 1)",
    "DATALOADER.DATASET_BS": "(2, 2)",
    "DATALOADER.DATASET_INPUT_SIZE": "(96, 64)",
    "DATALOADER.DATASET_INPUT_SCALE": "((0.5, 2.0), (0.5, 1.5))",
    "DATALOADER.USE_RFS": "(False, False)",
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.CHECKPOINT_PERIOD": 5,
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.LOG_PERIOD": 1,
}


class SmallCenterNet2(Small):
    """As :class:`Small`, of a narrow CenterNet2."""

    def argv(self, output: Path, **keys: Any) -> list[str]:
        opts = options(self.narrow.folder, **keys)
        given = ["--config-file", CONFIG, "--task_config", str(self.task), "--skip-test"]
        return [*given, "--override_output_dir", str(output), *opts]


def options(folder: Path, **keys: object) -> list[str]:
    """KEY VALUE words of the narrow network, and changes of them."""
    table = {"MODEL.ZEROSHOT_CLS.WEIGHT_PATH": folder / "names.npy"}
    changed = {**NARROW, **table, **{key.replace("__", "."): value for key, value in keys.items()}}
    return [str(part) for pair in changed.items() for part in pair]


def make_small_centernet2(folder: Path, count: int = 6) -> SmallCenterNet2:
    """Pictures in ``folder``, registered as drawn_boxes, drawn_names (which has no boxes), and drawn."""
    written = write_coco(folder / "scenes", World(1, size=(96, 128), classes=CLASSES), count)
    data = json.loads(written.annotations.read_text())
    for image in data["images"]:
        mine = [row["category_id"] for row in data["annotations"] if row["image_id"] == image["id"]]
        image["pos_category_ids"] = sorted(set(mine))
    names = written.annotations.with_name("names.json")
    names.write_text(json.dumps({**data, "annotations": []}))
    np.save(folder / "names.npy", np.random.RandomState(0).standard_normal((len(CLASSES), WIDTH)).astype(np.float16))
    entry = dict(written.entry)
    sets = {
        "REGISTER": {"drawn_boxes": entry, "drawn_names": {**entry, "ann_file": str(names)}, "drawn": entry},
        "TRAIN": ["drawn_boxes", "drawn_boxes"],
        "TEST": ["drawn"],
    }
    task = folder / "train.yaml"
    task.write_text(yaml.safe_dump({"DATASETS": sets}), encoding="utf-8")
    return SmallCenterNet2(Narrow(folder, (), folder / "none.pth"), task, written.annotations)
