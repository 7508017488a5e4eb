"""OpenImages' AP50 by hand, LVIS's novel and base classes, conditioned AP, and the most detections of a class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.drawn import CLASSES, World, write_coco
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.lvis_open import OpenLvisEvaluator
from maskrcnn_benchmark.evaluation.openimages import OpenImagesEvaluator
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.structures import Detections, ImageMeta
from tests.narrow_decola import CONFIGS, narrow_options
from tools import test_grounding_net

Row = dict[str, Any]
TREE = {"LabelName": "/m/root", "Subcategory": [{"LabelName": "/m/1", "Subcategory": [{"LabelName": "/m/2"}]}]}


def truth(*rows: tuple[int, int, list[float], int], images: int = 1) -> Row:
    """(picture, category, box, group) each; both categories were looked for everywhere."""
    return {
        "images": [
            {"id": i, "width": 100, "height": 100, "pos_category_ids": [1], "neg_category_ids": [2]}
            for i in range(1, images + 1)
        ],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": box, "iscrowd": group}
            for n, (image, category, box, group) in enumerate(rows, 1)
        ],
        "categories": [
            {"id": 1, "name": "animal", "freebase_id": "/m/1"},
            {"id": 2, "name": "cat", "freebase_id": "/m/2"},
        ],
    }


def found(image: int, *rows: tuple[int, float, list[float]]) -> Detections:
    boxes = torch.tensor([[x, y, x + w, y + h] for _, _, (x, y, w, h) in rows]).reshape(-1, 4).float()
    scores = torch.tensor([score for _, score, _ in rows])
    labels = torch.tensor([label for label, _, _ in rows], dtype=torch.int64)
    return Detections(boxes, scores, labels, ImageMeta(image, (100, 100), (100, 100)))


BOX, OTHER, GROUP = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 10.0, 10.0], [0.0, 60.0, 40.0, 40.0]
IN_GROUP = [5.0, 65.0, 10.0, 10.0]


@pytest.mark.parametrize(
    ("objects", "detections", "score"),
    [
        ([(1, 1, BOX, 0)], [(1, 0.9, BOX)], 1.0),
        ([(1, 1, BOX, 0)], [(1, 0.9, BOX), (1, 0.8, BOX)], 1.0),  # a second one is wrong, and comes later
        ([(1, 1, BOX, 0)], [(1, 0.9, OTHER), (1, 0.8, BOX)], 0.5),
        ([(1, 1, BOX, 0), (1, 1, OTHER, 0)], [(1, 0.9, BOX)], 0.5),
        ([(1, 1, GROUP, 1)], [(1, 0.9, IN_GROUP), (1, 0.8, IN_GROUP)], 1.0),  # many in a group are one right answer
        ([(1, 1, BOX, 0), (1, 1, GROUP, 1)], [(1, 0.9, BOX)], 0.5),  # a group is to be found
        ([(1, 1, BOX, 0)], [], 0.0),
        ([], [(1, 0.9, BOX)], -1.0),
    ],
)
def test_openimages_by_hand(objects: list[Any], detections: list[Any], score: float) -> None:
    evaluator = OpenImagesEvaluator(truth(*objects))
    evaluator.update([found(1, *detections)])
    assert evaluator.summary() == {"AP50": pytest.approx(score)}


def test_a_class_that_nobody_looked_for_does_not_count() -> None:
    data = truth((1, 1, BOX, 0), images=2)
    data["images"][1] |= {"pos_category_ids": [], "neg_category_ids": []}
    evaluator = OpenImagesEvaluator(data)
    evaluator.update([found(1, (1, 0.5, BOX)), found(2, (1, 0.9, BOX))])
    assert evaluator.summary()["AP50"] == 1.0


def test_detections_are_of_the_classes_above_too(tmp_path: Path) -> None:
    data = truth((1, 1, BOX, 0))
    alone, expanded = OpenImagesEvaluator(data), OpenImagesEvaluator(data, hierarchy=TREE)
    for evaluator in (alone, expanded):
        evaluator.update([found(1, (2, 0.9, BOX))])
    assert alone.summary()["AP50"] == 0.0
    assert expanded.summary()["AP50"] == 1.0
    expanded.write(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["protocol"]["detections_expanded"]


def test_wrong_openimages_files() -> None:
    data = truth((1, 2, BOX, 0))
    data["images"][0]["neg_category_ids"] = []
    with pytest.raises(DataError, match="is of category 2, which is not in pos_category_ids or neg_category_ids"):
        OpenImagesEvaluator(data)
    del data["images"][0]["pos_category_ids"]
    with pytest.raises(DataError, match="pos_category_ids None is no list"):
        OpenImagesEvaluator(data)
    with pytest.raises(DataError, match="'/m/9' is the freebase_id of no category"):
        OpenImagesEvaluator(truth(), hierarchy={"Subcategory": [{"LabelName": "/m/9"}]})


def lvis() -> Row:
    """Three classes, one of each frequency, one object each."""
    categories = [{"id": i, "name": f"c{i}", "frequency": kind} for i, kind in enumerate("rcf", 1)]
    image = {"id": 1, "width": 100, "height": 100, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    boxes = {1: BOX, 2: OTHER, 3: GROUP}
    rows = [{"id": i, "image_id": 1, "category_id": i, "bbox": box, "area": 100.0} for i, box in boxes.items()]
    return {"images": [image], "annotations": rows, "categories": categories}


def test_novel_and_base_classes_and_conditioned_ap(tmp_path: Path) -> None:
    evaluator = OpenLvisEvaluator(lvis(), protocol="standard", per_image=2, conditioned=True)
    evaluator.update([found(1, (1, 0.9, BOX), (3, 0.8, GROUP), (2, 0.7, OTHER))])  # the last one is one too many
    numbers = evaluator.summary()
    assert numbers["AP-novel"] == numbers["APr"] == numbers["C-APr@2"] == pytest.approx(1)
    assert numbers["AP-base"] == pytest.approx(0.5)
    assert numbers["C-AP@2"] == numbers["AP"] == pytest.approx(2 / 3)
    assert "conditioned" in evaluator.table()
    evaluator.write(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["protocol"]["conditioned"]


def test_the_most_detections_of_a_class() -> None:
    evaluator = OpenLvisEvaluator(lvis(), protocol="standard", per_image_class=1)
    evaluator.update([found(1, (1, 0.9, OTHER), (1, 0.8, BOX))])
    assert evaluator.summary()["AP-novel"] == 0.0
    assert "C-AP@300" not in evaluator.summary()


def test_a_registered_set_of_openimages_is_scored_with_its_hierarchy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Round things are above all other classes of the drawn world: what is found of these is one of them too."""
    written = write_coco(tmp_path / "drawn", World(1, size=(96, 128), classes=CLASSES), 2)
    data = json.loads(written.annotations.read_text())
    for row in data["categories"]:
        row["freebase_id"] = f"/m/{row['id']}"
    everything = [row["id"] for row in data["categories"]]
    data["images"] = [{**row, "pos_category_ids": everything, "neg_category_ids": []} for row in data["images"]]
    written.annotations.write_text(json.dumps(data))
    tree = tmp_path / "hierarchy.json"
    below = [{"LabelName": f"/m/{number}"} for number in everything[1:]]
    tree.write_text(json.dumps({"LabelName": "/m/0bl9f", "Subcategory": [{"LabelName": "/m/1", "Subcategory": below}]}))
    opts = narrow_options(tmp_path)
    save_weights(build_detector(load_cfg(CONFIGS["phase 2"], opts=opts)).state_dict(), tmp_path / "seeded.pth")

    def score(output: str, **keys: object) -> int:
        entry = {"kind": "lvis", "evaluator": "openimages", "img_dir": str(tmp_path / "drawn"), **keys}
        entry["ann_file"] = str(written.annotations)
        task = tmp_path / "task.yaml"
        task.write_text(yaml.safe_dump({"DATASETS": {"REGISTER": {"oid_mine": entry}, "TEST": ["oid_mine"]}}))
        argv = [
            "--config-file",
            CONFIGS["phase 2"],
            "--weight",
            str(tmp_path / "seeded.pth"),
            "--task_config",
            str(task),
        ]
        return cli.run(test_grounding_net.main, [*argv, *opts, "OUTPUT_DIR", str(tmp_path / output)])

    for output, keys in (("alone", {}), ("expanded", {"hierarchy": str(tree)})):
        assert score(output, **keys) == 0
        (results,) = (tmp_path / output).rglob("results.json")
        assert json.loads(results.read_text())["protocol"]["detections_expanded"] == bool(keys)
    assert score("wrong", hierarchy="absent.json") == 2
    assert "data set 'oid_mine': hierarchy 'absent.json' not found" in capsys.readouterr().err
    assert score("wrong", hierarchy=str(tree), evaluator="lvis") == 2
    assert "hierarchy goes with the evaluator openimages" in capsys.readouterr().err
