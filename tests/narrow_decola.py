"""A very small DECOLA, in either phase, and a very small baseline; drawn pictures with boxes to train them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.data.drawn import CLASSES, World
from maskrcnn_benchmark.modeling.interface import Batch
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, Target

CONFIGS = {
    "phase 1": "configs/decola/DECOLA_PHASE1_Lbase_CLIP_R5021k_4x.yaml",
    "phase 2": "configs/decola/DECOLA_PHASE2_LbaseI_CLIP_R5021k_4x_ft4x.yaml",
    "baseline": "configs/decola/BoxSup-DeformDETR_Lbase_CLIP_R5021k_4x.yaml",
}
WIDTH = 16  # of the embeddings of names
SIZE = (96, 128)  # of the pictures
NARROW: Mapping[str, object] = {
    "MODEL.WEIGHT": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.CONV_BODY": "SWIN",
    "MODEL.SWINT.SIZE": "",
    "MODEL.SWINT.EMBED_DIM": 16,
    "MODEL.SWINT.DEPTHS": "(1, 1, 2, 1)",
    "MODEL.SWINT.NUM_HEADS": "(1, 2, 2, 4)",
    "MODEL.SWINT.DROP_PATH_RATE": 0.0,
    "MODEL.DEFORMABLE_DETR.NUM_CLASSES": len(CLASSES),
    "MODEL.DEFORMABLE_DETR.HIDDEN_DIM": 64,
    "MODEL.DEFORMABLE_DETR.NHEADS": 4,
    "MODEL.DEFORMABLE_DETR.ENC_LAYERS": 1,
    "MODEL.DEFORMABLE_DETR.DEC_LAYERS": 2,
    "MODEL.DEFORMABLE_DETR.DIM_FEEDFORWARD": 128,
    "MODEL.DEFORMABLE_DETR.NUM_OBJECT_QUERIES": 30,
    "MODEL.DECOLA.QUERIES_PER_PROMPT": 20,
    "MODEL.FED_LOSS.ENABLED": False,
    "MODEL.ZEROSHOT_CLS.DIM": WIDTH,
    "TEST.DETECTIONS_PER_IMG": 50,
    "INPUT.AUG": "",
    "INPUT.MIN_SIZE_TRAIN": "(96,)",
    "INPUT.MAX_SIZE_TRAIN": 160,
    "INPUT.MIN_SIZE_TEST": 96,
    "INPUT.MAX_SIZE_TEST": 160,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
}


def narrow_options(folder: Path, **keys: object) -> list[str]:
    """KEY VALUE words of a narrow network, and changes of them; its embeddings of names are written to ``folder``."""
    state = np.random.RandomState(0)
    tables = {"WEIGHT_PATH": (folder / "names.npy", len(CLASSES)), "OBJECT_WEIGHT_PATH": (folder / "object.npy", 1)}
    for path, rows in tables.values():
        np.save(path, state.standard_normal((rows, WIDTH)).astype(np.float16))
    paths = {f"MODEL.ZEROSHOT_CLS.{key}": path for key, (path, _) in tables.items()}
    changed = {**NARROW, **paths, **{key.replace("__", "."): value for key, value in keys.items()}}
    return [str(part) for pair in changed.items() for part in pair]


def narrow_cfg(kind: str, folder: Path, **keys: object) -> Cfg:
    """The config of "phase 1", "phase 2" or "baseline" made narrow, with changes such as ``MODEL__DEVICE="cpu"``."""
    return load_cfg(CONFIGS[kind], opts=narrow_options(folder, **keys))


def drawn_batch(count: int = 2, seed: int = 1) -> Batch:
    """Drawn pictures with boxes of the drawn world's classes."""
    world = World(seed, size=SIZE, classes=CLASSES)
    labels = {name: label for label, name in enumerate(CLASSES, 1)}
    pixels, targets = [], []
    for number in range(1, count + 1):
        picture, meta = world[number], ImageMeta(number, SIZE, SIZE)
        own = [item for item in picture.items if item.name in labels]
        boxes = torch.tensor([item.box for item in own], dtype=torch.float32).reshape(-1, 4)
        targets.append(Target(boxes, torch.tensor([labels[item.name] for item in own], dtype=torch.int64), meta))
        pixels.append(torch.from_numpy(np.array(picture.pixels)).permute(2, 0, 1).float() / 128 - 1)
    return Batch(ImageBatch.pad(pixels, [target.meta for target in targets], 0), targets)
