"""Objects365 under the names of the catalog: trained on like LVIS, scored like COCO."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from maskrcnn_benchmark import mrb
from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.catalog import resolve
from maskrcnn_benchmark.data.datasets.lvis import LvisDataset
from maskrcnn_benchmark.data.drawn import CLASSES, World, write_coco
from maskrcnn_benchmark.data.training import build_training_data
from maskrcnn_benchmark.evaluation.build import Protocols, make_evaluator
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.structures import Detections
from tests.narrow_decola import narrow_options

CONFIG = "configs/decola/DECOLA_PHASE1_O365_CLIP_SwinT.yaml"


def write(root: Path, file: str, split: str = "val") -> Path:
    """A file of that form: pictures in patches, boxes without outlines; ids with gaps, in no order."""
    patch = root / f"datasets/objects365/{split}/images/v1/patch0"
    data = json.loads(write_coco(patch, World(1, size=(96, 128), classes=CLASSES), 3).annotations.read_text())
    for image in data["images"]:
        image["file_name"] = f"images/v1/patch0/{image['file_name']}"
    for row in data["annotations"]:
        del row["segmentation"]
        row |= {"category_id": 2 * row["category_id"], "isfake": 0, "isreflected": 0}
    data["categories"] = [{**row, "id": 2 * row["id"]} for row in reversed(data["categories"])]
    path = root / "datasets/objects365/annotations" / file
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What $DATASET says."""
    monkeypatch.setenv("DATASET", str(tmp_path / "data"))
    return tmp_path / "data"


def test_its_own_boxes_are_perfect(root: Path, tmp_path: Path) -> None:
    write(root, "zhiyuan_objv2_val_fixname.json")
    entry = resolve(load_cfg(CONFIG), "objects365_v2_val", "test")
    dataset = LvisDataset.from_entry(entry)
    evaluator = make_evaluator(entry, dataset, Protocols(plus_one=False))
    for index in range(len(dataset)):
        target = dataset[index].target
        assert target is not None
        boxes = target.boxes + torch.tensor([0, 0, 1, 1])  # targets hold their last pixel
        evaluator.update([Detections(boxes, torch.full((len(boxes),), 0.5), target.labels, target.meta)])
    assert evaluator.summary()["AP"] == pytest.approx(1)


@pytest.mark.parametrize("conditioned", [True, False])
def test_a_released_config_is_scored(root: Path, tmp_path: Path, conditioned: bool) -> None:
    """Detections have the ids of the file, whichever they are."""
    data = json.loads(write(root, "objects365_v1_val_fixname.json").read_text())
    opts = narrow_options(tmp_path, TEST__CONDITIONED__USE_GT_NAMES=conditioned)
    torch.manual_seed(0)
    weight = save_weights(build_detector(load_cfg(CONFIG, opts=opts)).state_dict(), tmp_path / "weights.pth")
    argv = ["eval", "--config-file", CONFIG, "--weight", str(weight), "--output", str(tmp_path / "out")]
    assert mrb.main([*argv, "--set", *opts]) == 0
    folder = tmp_path / "out/eval/weights/inference/objects365_v1_val"
    results = json.loads((folder / "results.json").read_text())
    assert {"AP", "AP50", "APs"} <= set(results["metrics"])
    assert results["counts"]["detections_with_unknown_labels"] == 0
    found = json.loads((folder / "bbox.json").read_text())
    ids = {row["id"] for row in data["categories"]}
    assert {row["category_id"] for row in found} <= ids
    if conditioned:
        own = {(row["image_id"], row["category_id"]) for row in data["annotations"]}
        assert {(row["image_id"], row["category_id"]) for row in found} <= own
    else:
        assert max(row["category_id"] for row in found) > len(ids)


def test_it_is_trained_on(root: Path, tmp_path: Path) -> None:
    write(root, "zhiyuan_objv2_train_fixname_fixmiss.json", "train")
    opts = narrow_options(tmp_path, DATASETS__TRAIN="('objects365_v2_train',)", INPUT__AUG="ResizeShortestEdge")
    made = build_training_data(load_cfg(CONFIG, opts=opts), None)
    assert made.classes == tuple(CLASSES)
    assert all(len(target) for batch in made.loader(0) for target in batch.targets)
