"""A very small Faster R-CNN, RetinaNet beside it, and drawn pictures in the form of PASCAL VOC to train it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from maskrcnn_benchmark.data.drawn import CLASSES, World
from maskrcnn_benchmark.data.drawn.forms import write_voc
from tests.narrow import Narrow
from tests.training_runs import Small

CONFIG = "configs/base/rcnn_voc.yaml"
NARROW = {
    "MODEL.WEIGHT": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": 16,
    "MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM": 32,
    "MODEL.ROI_BOX_HEAD.NUM_CLASSES": len(CLASSES) + 1,
    "MODEL.ROI_HEADS.SCORE_THRESH": 0.0,
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MAX_SIZE_TRAIN": 96,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 96,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 6,
    "SOLVER.MAX_EPOCH": 0,
    "SOLVER.STEPS_EPOCH": "()",
    "SOLVER.CHECKPOINT_EPOCH": 0,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.WARMUP_ITERS": 4,
    "SOLVER.TEST_PERIOD": 0,
    "SOLVER.LOG_PERIOD": 1,
    "TEST.IMS_PER_BATCH": 2,
}


class SmallRcnn(Small):
    """As :class:`Small`, of a narrow Faster R-CNN."""

    def argv(self, output: Path, **keys: Any) -> list[str]:
        changed = {**NARROW, **{key.replace("__", "."): value for key, value in keys.items()}}
        opts = [str(part) for pair in changed.items() for part in pair]
        given = ["--config-file", CONFIG, "--task_config", str(self.task), "--skip-test"]
        return [*given, "--override_output_dir", str(output), *opts]


def make_small_rcnn(folder: Path, count: int = 6) -> SmallRcnn:
    """Pictures in ``folder``, registered as drawn_train and drawn."""
    written = write_voc(folder / "scenes", World(1, size=(96, 128), classes=CLASSES), count)
    entry = dict(written.entry)
    task = folder / "train.yaml"
    sets = {"REGISTER": {"drawn_train": entry, "drawn": entry}, "TRAIN": ["drawn_train"], "TEST": ["drawn"]}
    task.write_text(yaml.safe_dump({"DATASETS": sets}), encoding="utf-8")
    return SmallRcnn(Narrow(folder, (), folder / "none.pth"), task, written.annotations)
