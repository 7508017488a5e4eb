"""LVIS data sets: labels that are ids, pictures by their address."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.catalog import resolve
from maskrcnn_benchmark.data.datasets.lvis import LvisDataset
from maskrcnn_benchmark.data.missing import refuse_missing
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.lvis import LvisEvaluator
from maskrcnn_benchmark.structures import Detections
from tests.conftest import shared_path
from tests.unit.coco_files import coco, write


def test_labels_are_category_ids_in_ascending_order(tmp_path: Path) -> None:
    data = coco()
    data["categories"].reverse()
    found = LvisDataset(tmp_path, write(tmp_path, data))
    assert found.label_to_category == {3: 3, 7: 7}
    assert found.prompt_categories == [(3, "cup"), (7, "jar")]
    assert found[0].target.labels.tolist() == [3, 7]


@pytest.mark.parametrize("name", ["", "COCO_val2014_000000000001.png"])
def test_the_address_says_where_a_picture_is(tmp_path: Path, name: str) -> None:
    data = coco()
    path = write(tmp_path / "val2017", data)
    for row in data["images"]:
        row["coco_url"] = f"http://images.cocodataset.org/val2017/{row.pop('file_name')}"
        row |= {"file_name": name} if name else {}
    path.write_text(json.dumps(data))
    found = LvisDataset(tmp_path, path)
    assert found.file(0) == tmp_path / "val2017" / "1.png"
    assert found[0].meta.image_id == 1


def test_neither_address_nor_name(tmp_path: Path) -> None:
    data = coco()
    path = write(tmp_path, data)
    del data["images"][0]["file_name"]
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"images\[0\] \(id 1\): no file_name"):
        LvisDataset(tmp_path, path)


@pytest.mark.parametrize(
    ("file", "classes", "seen"),
    [
        ("derived/lvis/lvis_v1_minival_inserted_image_name.json", 1203, "fc"),
        ("lvis/lvis_v0.5_val_64.json", 1230, "fcr"),
    ],
)
@pytest.mark.parametrize("protocol", ["fixed", "standard"])
def test_real_objects_as_detections_are_perfect(
    tmp_path: Path, file: str, classes: int, seen: str, protocol: str
) -> None:
    folder = shared_path("data", "DATASET")
    row = {"img_dir": str(folder / "coco"), "ann_file": str(folder / file)}
    task = tmp_path / "task.yaml"
    task.write_text(yaml.safe_dump({"DATASETS": {"REGISTER": {"lvis_evaluation_val": row}}}))
    entry = resolve(load_cfg(None, task), "lvis_evaluation_val", "test")
    assert (entry.kind, entry.evaluator) == ("lvis", "lvis")
    found = LvisDataset.from_entry(entry)
    refuse_missing(found)
    assert (len(found), len(found.prompt_categories)) == (64, classes)
    evaluator = LvisEvaluator(
        entry.annotations, found.label_to_category, protocol=protocol, categories=found.evaluation_categories
    )
    for index in range(len(found)):
        target = found[index].target
        boxes = target.boxes + torch.tensor([0, 0, 1, 1])  # targets hold their last pixel
        evaluator.update([Detections(boxes, torch.full((len(boxes),), 0.5), target.labels, target.meta)])
    numbers = evaluator.summary()
    assert {name: numbers[f"AP{name}"] for name in "rcf"} == pytest.approx(
        {name: 1.0 if name in seen else -1.0 for name in "rcf"}
    )
    assert evaluator.card()["counts"]["detections_with_unknown_labels"] == 0
