"""Small sets in DAP's forms, with random pictures and boxes."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.data.box_files import BoxTable, write_npz, write_pth

NAMES = ("ape", "bear", "cow")


def pixels(number: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def sizes(count: int) -> list[tuple[int, int]]:
    """(h, w) of the pictures: every other one is upright."""
    return [(24 + number, 40) if number % 2 else (40, 24 + number) for number in range(count)]


def png(number: int, size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(number, size)).save(stream, "PNG")
    return stream.getvalue()


def table(count: int, boxes: Sequence[int] | None = None) -> BoxTable:
    """As many random boxes in each picture as ``boxes`` says, of picture ``i`` all with the label ``i % 3``, from 0."""
    rng = np.random.default_rng(count)
    many = [1 + number % 3 for number in range(count)] if boxes is None else boxes
    rows = []
    for number, (height, width) in zip(many, sizes(count), strict=True):
        corners = np.sort(rng.uniform(0, 1, (number, 2, 2)), axis=1).reshape(number, 4)
        rows.append((corners * [width - 1, height - 1, width - 1, height - 1]).astype(np.float32))
    scores = [rng.uniform(0, 1, number).astype(np.float32) for number in many]
    return BoxTable.of(rows, scores, [np.full(n, i % 3) for i, n in enumerate(many)], sizes(count))


def write_binary(folder: Path, count: int = 6, boxes: BoxTable | None = None) -> Path:
    """``train.binary`` and its list; labels are 0, 1, 2, 0, ... Boxes go to ``train.cam3nms8xyxy.npz``."""
    folder.mkdir(parents=True, exist_ok=True)
    data, rows = b"", []
    for number, size in enumerate(sizes(count)):
        picture = png(number, size)
        rows.append(f"n{number:08d}_{number}\t{number % 3}\t{len(data)}\t{len(picture)}\t{size[1]}\t{size[0]}\n")
        data += picture
    (folder / "train.binary").write_bytes(data)
    (folder / "train.binary.label").write_text("".join(rows))
    if boxes is not None:
        write_npz(folder / "train.cam3nms8xyxy.npz", boxes)
    return folder


def write_split(folder: Path, part: int = 0, count: int = 6, boxes: BoxTable | None = None) -> Path:
    """``trainval_<part>_64.tsv`` and what belongs to it, its boxes as ``cam1nms8xyxy``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labelmap.txt").write_text("".join(f"{name}\n" for name in NAMES))
    path, offset = folder / f"trainval_{part}_64.tsv", 0
    lines, offsets, hw, labels = [], [], [], []
    for number, size in enumerate(sizes(count)):
        key = f"p{part}_{number}"
        lines.append(f"{key}\t[]\t{base64.b64encode(png(100 * part + number, size)).decode()}\n")
        offsets.append(f"{offset}\n")
        offset += len(lines[-1])
        hw.append(f"{key}\t{size[0]} {size[1]}\n")
        whole = {"class": NAMES[number % 3], "rect": [0, 0, size[1], size[0]]}
        labels.append(f"{key}\t{json.dumps([whole])}\n")
    for ending, rows in ((".tsv", lines), (".lineidx", offsets), (".hw.tsv", hw), (".label.tsv", labels)):
        path.with_suffix(ending).write_text("".join(rows))
    if boxes is not None:
        write_pth(path.with_suffix(".cam1nms8xyxy.pth"), boxes)
    return path


def write_folder(folder: Path, each: int = 2) -> Path:
    """A folder of pictures for each class."""
    for label, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for turn in range(each):
            number = each * label + turn
            Image.fromarray(pixels(number, sizes(3 * each)[number])).save(folder / name / f"{turn}.png")
    return folder


def without_labels(boxes: BoxTable) -> BoxTable:
    return replace(boxes, labels=None)


def closed_config(folder: Path, rows: dict[str, dict[str, Any]], *opts: object, classes: int = 3) -> Cfg:
    """A config of Faster R-CNN that trains on these entries, on small pictures, in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "closed.yaml").write_text(yaml.safe_dump({"DATASETS": {"REGISTER": rows, "TRAIN": list(rows)}}))
    keys = {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.ROI_BOX_HEAD.NUM_CLASSES": classes + 1,
        "INPUT.MIN_SIZE_TRAIN": "(32, 48)",
        "INPUT.MAX_SIZE_TRAIN": 96,
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.SIZE_DIVISIBILITY": 32,
        "SOLVER.IMS_PER_BATCH": 2,
    }
    given = [str(part) for pair in keys.items() for part in pair]
    return load_cfg(None, folder / "closed.yaml", [*given, *map(str, opts)])
