"""``mrb data split``: a few pictures of each class, or a part of all, drawn by a seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_benchmark import mrb
from maskrcnn_benchmark.data.datasets.coco_grounding import CocoGrounding
from maskrcnn_benchmark.data.datasets.voc import VOC_CLASSES, VocDataset
from tests.golden.common import shared_path
from tests.unit.coco_files import coco, write
from tests.unit.voc_files import voc_object, write_voc


def draw(source: Path, file: Path, *argv: object) -> dict[str, Any]:
    assert mrb.main(["data", "split", str(source), str(file), *map(str, argv)]) == 0
    tree: dict[str, Any] = json.loads(file.read_text())
    return tree


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert mrb.main(["data", "split", *map(str, argv)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


def names(tree: dict[str, Any]) -> list[str]:
    return [row["file_name"] for row in tree["images"]]


def many(folder: Path, count: int = 30) -> Path:
    """Picture ``i`` has class ``i % 3 + 1``, every fifth one class 1 too; the last has no box. Ids are far apart."""
    tree = coco(count)
    categories = [{"id": 10 * number, "name": f"class {number}"} for number in (1, 2, 3)]
    rows: list[dict[str, Any]] = []
    for place, row in enumerate(tree["images"]):
        row["id"] = 1000 - 7 * place
        row["license"] = place
        labels = [] if place == count - 1 else sorted({10 * (place % 3 + 1), *([10] if place % 5 == 0 else [])})
        for label in labels:
            box = {"bbox": [2.25, 3, 10, 8], "area": 80, "iscrowd": 0}
            rows.append(
                {"id": len(rows) + 1, "image_id": row["id"], "category_id": label, "attributes": {"a": 1}, **box}
            )
    tree = {**tree, "annotations": rows, "categories": categories}
    return write(folder, tree)


def test_so_many_pictures_of_each_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = many(tmp_path / "all")
    tree = draw(source, tmp_path / "new" / "few.json", "--per-class", 4, "--seed", 5)
    whole = json.loads(source.read_text())
    counts = {10: 0, 20: 0, 30: 0}
    for row in tree["annotations"]:
        counts[row["category_id"]] += 1
    assert all(4 <= count <= 6 for count in counts.values())
    for key in ("images", "annotations"):  # the rows of the source, with all that they have
        assert all(row in whole[key] for row in tree[key])
    assert tree["categories"] == whole["categories"]
    kept = {row["id"] for row in tree["images"]}
    assert [row for row in whole["annotations"] if row["image_id"] in kept] == tree["annotations"]
    assert {key: tree["info"][key] for key in ("per_class", "seed")} == {"per_class": 4, "seed": 5}
    told = capsys.readouterr().out
    assert f"few.json: {len(kept)} of 30 pictures" in told
    assert f"the pictures are in {tmp_path / 'all'}" in told
    assert len(CocoGrounding(tmp_path / "all", tmp_path / "new" / "few.json")) == len(kept)


@pytest.mark.parametrize("share", [("--per-class", 3), ("--fraction", 0.3)])
def test_a_draw_depends_on_its_seed_alone(tmp_path: Path, share: Sequence[object]) -> None:
    source = many(tmp_path / "all")
    one = draw(source, tmp_path / "1.json", *share, "--seed", 1)
    tree = json.loads(source.read_text())
    tree["images"].reverse()
    source.write_text(json.dumps(tree))
    assert names(draw(source, tmp_path / "2.json", *share, "--seed", 1)) == names(one)
    assert names(draw(source, tmp_path / "3.json", *share, "--seed", 2)) != names(one)


def test_a_draw_stays_what_it_was(tmp_path: Path) -> None:
    """Figures that are published with a seed can be made again by any later version."""
    source = many(tmp_path / "all", 12)
    few = draw(source, tmp_path / "few.json", "--per-class", 3, "--seed", 1)
    assert [row["id"] for row in few["images"]] == [930, 944, 951, 965, 972, 979, 986, 1000]
    part = draw(source, tmp_path / "part.json", "--fraction", 0.4, "--seed", 2)
    assert [row["id"] for row in part["images"]] == [951, 958, 979, 1000]


def test_a_fraction(tmp_path: Path) -> None:
    source = many(tmp_path / "all")
    trees = [draw(source, tmp_path / f"{part}.json", "--fraction", part) for part in (0.001, 0.1, 0.5)]
    assert [len(tree["images"]) for tree in trees] == [1, 3, 14]  # of the 29 with boxes
    assert set(names(trees[0])) < set(names(trees[1])) < set(names(trees[2]))
    assert "30.png" not in names(trees[2])


def test_voc_without_difficult_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = {
        f"{number:06d}": [
            voc_object(("cat", "dog")[number % 2], 3, 4, 20, 21),
            voc_object("sofa", 1, 1, 9, 9, difficult=1),
        ]
        for number in range(8)
    }
    folder = write_voc(tmp_path / "VOC2007", objects, split="trainval")
    tree = draw(folder, tmp_path / "few.json", "--per-class", 2)
    assert [row["name"] for row in tree["categories"]] == list(VOC_CLASSES)
    assert "left out: difficult objects (8)" in capsys.readouterr().out
    few = CocoGrounding(folder / "JPEGImages", tmp_path / "few.json")
    assert len(few) == 4
    whole = VocDataset(folder, folder, "trainval", keep_difficult=False)
    for index in range(len(few)):
        found = few[index]
        place = whole.ids.index(Path(found.meta.file).stem)
        wanted = whole[place].target
        assert wanted is not None
        assert found.target is not None
        assert found.target.boxes.tolist() == wanted.boxes.tolist() == [[2, 3, 19, 20]]
        assert found.target.labels.tolist() == wanted.labels.tolist()


def test_splits_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cats = {f"{number}": [voc_object("cat", 3, 4, 20, 21)] for number in range(6)}
    folder = write_voc(tmp_path / "VOC2007", dict(list(cats.items())[:3]), split="train")
    write_voc(folder, dict(list(cats.items())[3:]), split="val")
    out = tmp_path / "few.json"
    assert "has the splits train, val: say with --split" in refused(capsys, folder, out, "--fraction", 0.5)
    assert "has no split 'test'; it has train, val" in refused(
        capsys, folder, out, "--fraction", 0.5, "--split", "test"
    )
    assert not out.exists()
    tree = draw(folder, out, "--per-class", 6, "--split", "train", "val")
    assert len(tree["images"]) == 6
    assert f"{out} is there already" in refused(capsys, folder, out, "--fraction", 0.5)


def test_nothing_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = coco(3)
    for row in tree["annotations"]:
        row["iscrowd"] = 1
    source = write(tmp_path / "all", tree)
    told = refused(capsys, source, tmp_path / "few.json", "--per-class", 1)
    assert "none of its 3 pictures has a box to train on" in told


def test_a_real_voc_folder(tmp_path: Path) -> None:
    folder = shared_path("data", "DATASET", "derived", "voc", "VOC2007")
    tree = draw(folder, tmp_path / "few.json", "--per-class", 1, "--split", "train", "val")
    present = {row["category_id"] for row in tree["annotations"]}
    whole = VocDataset(folder, folder, "trainval", keep_difficult=False)
    classes = {label for found in whole.objects for label in found.labels[~found.difficult].tolist()}
    assert present == classes
    assert len(CocoGrounding(folder / "JPEGImages", tmp_path / "few.json")) == len(tree["images"])
