"""Small training sets on disk: captions in MDETR's form, tab-separated files, and a config that trains on them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from maskrcnn_benchmark.config import Cfg, load_cfg
from tests.unit.coco_files import SIZE, coco, write

CAPTION = "a dog on the street"


def mdetr(images: int = 3) -> dict[str, Any]:
    """Captions 1, 2, ... with a box for "a dog" and one for "the street" each."""
    height, width = SIZE
    rows = []
    for image in range(1, images + 1):
        for box, span in (([4, 5, 10, 8], [0, 5]), ([0, 12, 32, 12], [9, 19])):
            rows.append({"image_id": image, "category_id": 1, "bbox": box, "iscrowd": 0, "tokens_positive": [span]})
    picture = {"height": height, "width": width, "caption": CAPTION, "dataset_name": "mine"}
    return {
        "images": [{"id": i, "file_name": f"{i}.png", **picture} for i in range(1, images + 1)],
        "annotations": [{"id": i, "area": 80, **row} for i, row in enumerate(rows)],
    }


OBJECTS = [{"class": "dog", "rect": [4, 5, 13, 12]}, {"class": "cat", "rect": [20, 2, 26, 13.5], "conf": 1.0}]
LABELS = {"dog": 1, "cat": 2, "car": 3, "shark": 4, "bow": 5}


def picture(size: tuple[int, int] = SIZE, colour: int = 100) -> str:
    """A grey PNG in base64."""
    stream = io.BytesIO()
    Image.new("RGB", size[::-1], (colour, colour, colour)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def write_tsv(folder: Path, rows: int = 3, objects: Any = OBJECTS, lines: Sequence[int] | None = None) -> Path:
    """The YAML of a set of ``rows`` pictures with the keys 11, 12, ..., and the files that it names."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = [str(11 + row) for row in range(rows)]
    hw = json.dumps([{"height": SIZE[0], "width": SIZE[1]}])
    save(folder / "images.tsv", [(key, "x", picture(colour=100 + row)) for row, key in enumerate(keys)])
    save(folder / "label.tsv", [(key, json.dumps(objects)) for key in keys])
    save(folder / "hw.tsv", [(key, hw) for key in keys])
    (folder / "names.json").write_text(json.dumps(LABELS))
    parts = {"img": "images.tsv", "label": "label.tsv", "hw": "hw.tsv", "labelmap": "names.json"}
    if lines is not None:
        parts["linelist"] = "lines.tsv"
        save(folder / "lines.tsv", [(str(line),) for line in lines])
    path = folder / "set.yaml"
    path.write_text(yaml.safe_dump(parts))
    return path


def save(path: Path, rows: Sequence[Sequence[str]]) -> None:
    path.write_text("".join("\t".join(row) + "\n" for row in rows))


def training_config(folder: Path, sets: dict[str, dict[str, str]], *opts: str, **datasets: Any) -> Cfg:
    """A config that trains on these entries, on small pictures, in this process."""
    tree = {"DATASETS": {"REGISTER": sets, "TRAIN": list(sets), **datasets}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.yaml").write_text(yaml.safe_dump(tree))
    keys = {
        "INPUT.MIN_SIZE_TRAIN": 32,
        "INPUT.MAX_SIZE_TRAIN": 96,
        "AUGMENT.MULT_MIN_SIZE_TRAIN": "(32, 48)",
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 2,
    }
    given = [str(part) for pair in keys.items() for part in pair]
    return load_cfg("configs/demo/fiber_narrow.yaml", folder / "train.yaml", [*given, *opts])


def as_coco(folder: Path, images: int = 5, change: Callable[[dict[str, Any]], object] | None = None) -> dict[str, str]:
    data = coco(images)
    for row in data["images"][::2]:  # every other picture is upright
        row["height"], row["width"] = 40, 32
    if change:
        change(data)
    return {"kind": "coco_grounding", "img_dir": str(folder), "ann_file": str(write(folder, data))}


def as_captions(folder: Path, images: int = 3) -> dict[str, str]:
    return {"kind": "flickr", "img_dir": str(folder), "ann_file": str(write(folder, mdetr(images)))}


def as_table(folder: Path, objects: Any = OBJECTS) -> dict[str, str]:
    return {"kind": "tsv", "ann_file": str(write_tsv(folder, rows=4, objects=objects))}


def everything(folder: Path, *opts: str, **datasets: Any) -> Cfg:
    sets = {"boxes": as_coco(folder / "c"), "words": as_captions(folder / "m"), "table": as_table(folder / "t")}
    return training_config(folder, sets, *opts, **datasets)
