"""Trainings of the narrow DECOLA on drawn pictures, some of which have no boxes, only names of what is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from maskrcnn_benchmark.data.drawn import CLASSES, World, write_coco
from tests.narrow import Narrow
from tests.narrow_decola import CONFIGS, narrow_options
from tests.training_runs import Small

RUN: dict[str, Any] = {
    "MODEL__DEFORMABLE_DETR__HIDDEN_DIM": 32,
    "MODEL__DEFORMABLE_DETR__NHEADS": 2,
    "MODEL__DEFORMABLE_DETR__DROPOUT": 0.1,
    "MODEL__SWINT__DEPTHS": "(1, 1, 1, 1)",
    "MODEL__SWINT__DROP_PATH_RATE": 0.1,
    "MODEL__FED_LOSS__ENABLED": True,
    "MODEL__FED_LOSS__NUM_CLASSES": 5,
    "INPUT__AUG": "ResizeShortestEdge",
    "INPUT__MIN_SIZE_TRAIN": "(64,)",
    "INPUT__MAX_SIZE_TRAIN": 96,
    "INPUT__MIN_SIZE_TEST": 64,
    "INPUT__MAX_SIZE_TEST": 96,
    "SOLVER__USE_AMP": False,
    "SOLVER__MAX_ITER": 6,
    "SOLVER__STEPS": "(4,)",
    "SOLVER__CHECKPOINT_PERIOD": 2,
    "SOLVER__LOG_PERIOD": 1,
    "TEST__IMS_PER_BATCH": 2,
}
"""With all that draws random numbers."""
WITH_NAMES: dict[str, Any] = {
    "DATASETS__TRAIN": "('drawn_train', 'drawn_names')",
    "DATASETS__WITH_IMAGE_LABELS": True,
    "DATALOADER__SAMPLER": "multi_dataset",
    "DATALOADER__DATASET_RATIO": "(1, 1)",
    "DATALOADER__USE_DIFF_BS_SIZE": True,
    "DATALOADER__DATASET_BS": "(2, 2)",
    "DATALOADER__USE_RFS": "(True, False)",
    "DATALOADER__DATASET_ANN": "('box', 'image')",
    "DATALOADER__DATASET_MIN_SIZES": "((64, 80), (48, 64))",
    "DATALOADER__DATASET_MAX_SIZES": "(96, 96)",
}
"""What adds a second set, of names only."""


class SmallDecola(Small):
    """As :class:`Small`; ``network`` is one of :data:`CONFIGS`."""

    network = "phase 1"

    def argv(self, output: Path, **keys: Any) -> list[str]:
        given = ["--config-file", CONFIGS[self.network], "--task_config", str(self.task), "--skip-test"]
        options = narrow_options(self.narrow.folder, **{**RUN, **keys})
        return [*given, "--override_output_dir", str(output), *options]


def make_small_decola(folder: Path, count: int = 6) -> SmallDecola:
    """Pictures in ``folder``, registered as drawn_train and drawn, and with names only as drawn_names."""
    annotations = write_coco(folder / "scenes", World(1, size=(96, 128), classes=CLASSES), count).annotations
    named = write_coco(folder / "named", World(2, size=(96, 128), classes=CLASSES), count).annotations
    only_names(named)
    sets = {
        "drawn_train": {"kind": "coco", "ann_file": str(annotations), "img_dir": str(annotations.parent)},
        "drawn": {"kind": "coco", "ann_file": str(annotations), "img_dir": str(annotations.parent)},
        "drawn_names": {"kind": "imagenet_lvis", "ann_file": str(named), "img_dir": str(named.parent)},
    }
    task = folder / "train.yaml"
    task.write_text(yaml.safe_dump({"DATASETS": {"REGISTER": sets, "TRAIN": ["drawn_train"], "TEST": ["drawn"]}}))
    return SmallDecola(Narrow(folder, (), folder / "none.pth"), task, annotations)


def only_names(annotations: Path) -> None:
    """Turn a file of boxes into one that says what is in each picture, and no more."""
    data = json.loads(annotations.read_text(encoding="utf-8"))
    for image in data["images"]:
        own = {row["category_id"] for row in data["annotations"] if row["image_id"] == image["id"]}
        image["pos_category_ids"] = sorted(own)
    data["annotations"] = []
    annotations.write_text(json.dumps(data), encoding="utf-8")
