"""Benchmarks in the layout of DATA.md, cut down to a few real pictures."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.golden.common import shared_path

LVIS = "derived/lvis/lvis_v1_minival_inserted_image_name.json"


@dataclass(frozen=True)
class Benchmark:
    """A data set in the layout of DATA.md, cut down to a few pictures."""

    name: str  # in the catalog
    annotations: str  # in the shared folder
    file: str  # where the catalog looks for them
    pictures: str  # likewise
    count: int
    task: str


BENCHMARKS = {
    "coco": Benchmark(
        "coco_2017_val",
        "coco/annotations/instances_val2017.json",
        "coco/annotations/instances_val2017.json",
        "coco/val2017",
        9,
        "detection",
    ),
    "lvis": Benchmark(
        "lvis_evaluation_mini_val",
        LVIS,
        "coco/annotations/lvis_v1_minival_inserted_image_name.json",
        "coco/val2017",
        3,
        "detection",
    ),
    "flickr": Benchmark(
        "flickr30k_val",
        "derived/mdetr_annotations/final_flickr_separateGT_val.json",
        "mdetr_annotations/final_flickr_separateGT_val.json",
        "flickr30k/flickr30k_images/val",
        4,
        "grounding",
    ),
    "flickr_test": Benchmark(
        "flickr30k_test",
        "derived/mdetr_annotations/final_flickr_separateGT_test.json",
        "mdetr_annotations/final_flickr_separateGT_test.json",
        "flickr30k/flickr30k_images/test",
        2,
        "grounding",
    ),
    "refexp": Benchmark(
        "refcoco_val",
        "mdetr_annotations/finetune_refcocos_val.json",
        "mdetr_annotations/finetune_refcoco_val.json",
        "refcoco/train2014",
        8,
        "grounding",
    ),
}


def lay_out(benchmark: Benchmark, folder: Path) -> Path:
    """A DATASET folder with the first pictures or captions."""
    shared, root = shared_path("data", "DATASET"), folder / "DATASET"
    data: dict[str, Any] = json.loads((shared / benchmark.annotations).read_text())
    rows = sorted(data["images"], key=lambda row: row["id"])
    names = list(dict.fromkeys(row["file_name"] for row in rows))[: benchmark.count]
    data["images"] = [row for row in rows if row["file_name"] in names]  # a picture with all of its captions
    ids = {row["id"] for row in data["images"]}
    data["annotations"] = [row for row in data["annotations"] if row["image_id"] in ids]
    file, pictures = root / benchmark.file, root / benchmark.pictures
    for path in (file, pictures):
        path.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data))
    pictures.symlink_to(shared / "coco" / "val2017")
    if benchmark.name.startswith("flickr"):
        entities = root / "flickr30k" / "flickr30k"
        if not entities.exists():
            source = shared / "derived" / "flickr30k_entities"
            shutil.copytree(source, entities, copy_function=shutil.copyfile)
        used = dict.fromkeys(str(row["original_img_id"]) for row in data["images"])
        (entities / f"{benchmark.name.removeprefix('flickr30k_')}.txt").write_text("\n".join(used))
    return root
