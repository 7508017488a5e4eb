"""``mrb data check`` and ``mrb data convert`` on small sets of every form, and on real ones."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from maskrcnn_benchmark import mrb
from maskrcnn_benchmark.data.datasets.coco import CocoDataset
from maskrcnn_benchmark.data.datasets.voc import VocDataset
from maskrcnn_benchmark.data.forms.convert import convert
from maskrcnn_benchmark.data.forms.model import DataSet, Picture, Problem, Problems, Thing
from maskrcnn_benchmark.data.forms.read import read, usable
from maskrcnn_benchmark.data.forms.recognise import recognise
from maskrcnn_benchmark.demo.sheet import CELL, choose, contact_sheet
from maskrcnn_benchmark.errors import DataError
from tests.golden.common import shared_path
from tests.unit.coco_files import coco, write
from tests.unit.voc_files import voc_object, write_voc

FORMS = ("coco", "voc", "yolo", "labelme")
SLACK = {"coco": 1e-6, "voc": 0.5, "yolo": 1e-3, "labelme": 1e-6}


def splits(folder: Path, **names: int) -> Path:
    """COCO files of so many pictures in folders of these names, each picture another one."""
    for number, (name, count) in enumerate(names.items()):
        data = coco(count)
        for image in data["images"]:
            image["file_name"] = f"{name}_{image['id']}.png"
        write(folder / name, data).rename(folder / name / "_annotations.coco.json")
        for image in data["images"]:
            Image.new("RGB", (32, 24), (40 * number, 9 * image["id"], 50)).save(folder / name / image["file_name"])
    return folder


def check(capsys: pytest.CaptureFixture[str], tmp_path: Path, *argv: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, what is printed, and the report."""
    capsys.readouterr()
    code = mrb.main(["data", "check", *argv, "--output", str(tmp_path / "out")])
    report = tmp_path / "out" / "check.json"
    return code, "".join(capsys.readouterr()), json.loads(report.read_text()) if report.exists() else {}


def levels(report: dict[str, Any]) -> Counter[str]:
    return Counter(problem["level"] for problem in report["problems"])


def things(data: DataSet) -> dict[tuple[str, str], list[Thing]]:
    """(split, picture without ending) -> what is in it."""
    return {(s, p.file.stem): list(p.things) for s, pictures in data.splits.items() for p in pictures}


def rich(folder: Path) -> DataSet:
    """Splits, fractions of pixels, a polygon of two parts, a crowd, a difficult and a truncated object."""
    data = coco(2)
    rows = data["annotations"]
    rows[0] |= {"bbox": [3.25, 4.6, 10.1, 8.2], "segmentation": [[4, 5, 8, 5, 8, 9], [9, 9, 12, 9, 12, 12]], "area": 50}
    rows[1] |= {"iscrowd": 1, "segmentation": {"size": [24, 32], "counts": [3, 4, 761]}}
    rows[2] |= {"difficult": 1}
    rows[3] |= {"truncated": 1}
    write(folder / "train", data)
    other = coco(1)
    other["images"][0]["file_name"] = "other.png"
    write(folder / "val", other)
    return usable(recognise(folder))


@pytest.mark.parametrize("form", FORMS)
def test_boxes_and_classes_survive_another_form(tmp_path: Path, form: str) -> None:
    data = rich(tmp_path / "data")
    lost = convert(data, tmp_path / form, form)
    there = usable(recognise(tmp_path / form))
    convert(there, tmp_path / "back", "coco")
    back = usable(recognise(tmp_path / "back"))
    assert back.classes == there.classes == data.classes == ["cup", "jar"]
    assert things(back).keys() == things(data).keys()
    for key, before in things(data).items():
        if form == "yolo":
            before = [thing for thing in before if not thing.crowd]
        after = things(back)[key]
        assert [thing.name for thing in after] == [thing.name for thing in before]
        for one, other in zip(before, after, strict=True):
            np.testing.assert_allclose(other.box, one.box, atol=SLACK[form], rtol=0)
    told = " ".join(lost)
    assert ("masks" in told) == (form != "coco")
    assert ("crowd regions" in told) == (form in ("voc", "yolo"))


def test_coco_and_labelme_keep_polygons_crowds_and_marks(tmp_path: Path) -> None:
    data = rich(tmp_path / "data")
    for form in ("coco", "labelme"):
        convert(data, tmp_path / form, form)
        one, crowd, hard, cut = (t for name in "12" for t in things(usable(recognise(tmp_path / form)))["train", name])
        assert one.polygons == [[4, 5, 8, 5, 8, 9], [9, 9, 12, 9, 12, 12]]
        assert (crowd.crowd, hard.difficult, cut.truncated) == (True, True, True)
        assert (one.crowd, one.difficult, one.truncated) == (False, False, False)


def test_whole_pixels_come_back_exactly_from_voc(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train", coco(2) | {"categories": [{"id": 3, "name": "cup"}, {"id": 7, "name": "jar"}]})
    data = usable(recognise(tmp_path / "data"))
    lost = convert(data, tmp_path / "voc", "voc")
    assert lost["boxes whose corners were rounded to whole pixels"] == 2  # the width of 6.5
    after = things(usable(recognise(tmp_path / "voc")))
    assert all(after[key][0].box == rows[0].box for key, rows in things(data).items())


def test_the_readers_of_training_and_evaluation_take_the_results(tmp_path: Path) -> None:
    data = rich(tmp_path / "data")
    convert(data, tmp_path / "coco", "coco")
    convert(data, tmp_path / "voc", "voc", link=True)
    folder = tmp_path / "coco" / "train"
    assert len(CocoDataset(folder, folder / "annotations.json")[0].target.boxes) == 1  # without the crowd
    voc = VocDataset(tmp_path / "voc", tmp_path / "voc", "train", classes=("cup", "jar"))
    assert [len(sample.target.boxes) for sample in (voc[0], voc[1])] == [2, 2]
    assert (tmp_path / "voc" / "JPEGImages" / "1.png").is_symlink()


def test_pictures_of_one_name_are_kept_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "val"):
        write(tmp_path / "data" / name, coco(1))
    assert mrb.main(["data", "convert", str(tmp_path / "data"), str(tmp_path / "voc"), "--to", "voc"]) == 0
    assert "another name" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "voc" / "JPEGImages").iterdir()) == ["1.png", "1_2.png"]


def test_convert_tells_what_it_leaves_and_needs_a_new_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = coco(1)
    data["images"][0]["licence"] = "by"
    data["categories"][0]["supercategory"] = "crockery"
    file = write(tmp_path / "data", data)
    argv = ["data", "convert", str(file), str(tmp_path / "yolo"), "--to", "yolo"]
    assert mrb.main(argv) == 0
    told = capsys.readouterr().out
    assert "images: licence (1)" in told
    assert "categories: supercategory (1)" in told
    assert "called train" in told
    assert mrb.main(argv) == 2
    assert "is there already" in capsys.readouterr().err


def test_convert_stops_at_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = coco(2)
    data["annotations"][0]["category_id"] = 99
    data["annotations"][1]["bbox"] = [1, 2, -3, 4]
    file = write(tmp_path / "data", data)
    assert mrb.main(["data", "convert", str(file), str(tmp_path / "voc"), "--to", "voc"]) == 2
    told = capsys.readouterr().err
    assert "category_id 99 is not in categories" in told
    assert "1 more error" in told
    assert not (tmp_path / "voc").exists()


def test_a_good_set_has_counts_a_sheet_and_exit_code_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told, report = check(capsys, tmp_path, str(splits(tmp_path / "data", train=3, valid=2)))
    assert code == 0
    assert "COCO (Roboflow export): train, val" in told
    assert report["problems"] == []
    assert report["classes (boxes, pictures)"]["cup"] == {"train": [3, 3], "val": [2, 2]}
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width >= 4 * CELL[0]


def test_every_problem_is_listed_with_file_field_and_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = coco(4)
    rows = data["annotations"]
    data["categories"].insert(0, {"id": 0, "name": "things"})
    rows[0] |= {"id": 0}
    rows[1] |= {"bbox": [5, 5, 0, 0]}
    rows[2] |= {"bbox": [40, 5, 4, 4]}
    rows[3] |= {"bbox": [20, 2, 20, 12]}
    rows[4] |= {"image_id": 77}
    rows[5] |= {"category_id": 8}
    rows[6] |= {"bbox": [1, 2, "x", 4]}
    rows.append({"id": 20, "image_id": 2, "category_id": 7, "bbox": [20, 2, 20, 12.1]})
    file = write(tmp_path / "data", data)
    (tmp_path / "data" / "3.png").unlink()
    (tmp_path / "data" / "4.png").write_bytes(b"\x89PNG broken")
    code, told, report = check(capsys, tmp_path, str(file))
    assert code == 1
    found = {(p["level"], p["field"].split(":")[0]): p for p in report["problems"]}
    expected = {
        ("error", "annotations[4] (id 5)"): "image_id 77",
        ("error", "annotations[5] (id 6)"): "category_id 8",
        ("error", "annotations[6] (id 7)"): "not four numbers",
        ("error", "3.png"): "missing",
        ("warning", "categories[0] (id 0, 'things')"): "background",
        ("warning", "annotations[0]"): "id 0",
        ("warning", "annotations[1] (id 2)"): "without area",
        ("warning", "annotations[2] (id 3)"): "beyond the border",
        ("warning", "annotations[3] (id 4)"): "partly outside",
        ("warning", "annotations[3] (id 4) and annotations[8] (id 20)"): "almost the same",
    }
    for key, words in expected.items():
        assert words in found[key]["text"], key
        assert found[key]["remedy"]
        assert found[key]["text"] in told
    assert any(p["level"] == "error" and p["file"].endswith("4.png") for p in report["problems"])


def test_warnings_fail_only_when_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = coco(1)
    data["annotations"][0]["bbox"] = [5, 5, 0, 0]
    file = write(tmp_path / "data", data)
    assert check(capsys, tmp_path, str(file))[0] == 0
    assert check(capsys, tmp_path, str(file), "--strict")[0] == 1


def test_a_cleaned_file_is_preferred_and_the_raw_one_is_checked_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = splits(tmp_path / "data", train=1)
    raw = json.loads((folder / "train" / "_annotations.coco.json").read_text())
    (folder / "train" / "annotations_without_background.json").write_text(json.dumps(raw))
    raw["categories"].insert(0, {"id": 0, "name": "dishes"})
    (folder / "train" / "_annotations.coco.json").write_text(json.dumps(raw))
    assert recognise(folder).parts[0].files[0].name == "annotations_without_background.json"
    _, told, report = check(capsys, tmp_path, str(folder))
    assert "also " in told
    assert [Path(p["file"]).name for p in report["problems"]] == ["_annotations.coco.json"]


def test_one_picture_in_two_splits_and_names_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = splits(tmp_path / "data", train=2, valid=1)
    (folder / "valid" / "valid_1.png").write_bytes((folder / "train" / "train_2.png").read_bytes())
    for name in ("train", "valid"):
        file = folder / name / "_annotations.coco.json"
        data = json.loads(file.read_text())
        data["categories"][1]["name"] = "Cup"
        file.write_text(json.dumps(data))
    _, told, report = check(capsys, tmp_path, str(folder))
    assert levels(report) == {"warning": 2}
    assert "the same picture is in 'train' as train_2.png" in told
    assert "look like one class" in told


def test_voc_fields_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {
        "a": [
            voc_object("cup", 1, 1, 9.5, 9),
            voc_object("cup", 9, 9, 3, 3),
            voc_object("jar", 1, 1, 5, 5, difficult=7),
        ],
        "b": ["<object><name>cup</name></object>"],
        "c": [],
    }
    folder = write_voc(tmp_path / "voc", rows, split="train")
    (folder / "Annotations" / "c.xml").write_text("<annotation>")
    code, told, report = check(capsys, tmp_path, str(folder))
    assert code == 1
    assert levels(report)["error"] == 4
    for words in (
        "object 2 (cup): bndbox",
        "object 3 (jar): difficult",
        "b.xml: object 1 (cup): has no bndbox",
        "c.xml",
    ):
        assert words in told
    assert "object 1 (cup): xmax: is 9.5" in told


def yolo(folder: Path, **labels: str) -> Path:
    """Pictures of 40 x 20 pixels as Roboflow exports them, with these label files."""
    for name, text in labels.items():
        for kind in ("images", "labels"):
            (folder / "train" / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20)).save(folder / "train" / "images" / f"{name}.jpg")
        (folder / "train" / "labels" / f"{name}.txt").write_text(text)
    tree = {"train": "../train/images", "nc": 2, "names": ["cup", "jar"], "roboflow": {"version": 1}}
    (folder / "data.yaml").write_text(yaml.safe_dump(tree))
    return folder


def test_yolo_boxes_polygons_and_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = yolo(tmp_path / "good", a="0 0.5 0.5 0.5 0.5\n1 0.1 0.1 0.5 0.1 0.5 0.6\n", b="")
    data = usable(recognise(good))
    cup, jar = data.splits["train"][0].things
    assert cup.box == (10, 5, 30, 15)
    np.testing.assert_allclose(jar.box, (4, 2, 20, 12))
    assert len(jar.polygons) == 1
    bad = yolo(tmp_path / "bad", a="0 0.5 0.5\n5 0.5 0.5 0.1 0.1\n0 20 10 8 8\nx 1 1 1 1\n")
    (bad / "train" / "labels" / "stray.txt").write_text("")
    code, told, report = check(capsys, tmp_path, str(bad))
    assert code == 1
    assert [p["field"] for p in report["problems"] if p["level"] == "error"][:4] == [
        "line 1",
        "line 2: class",
        "line 3",
        "line 4",
    ]
    assert "there is no picture for these labels" in told


def test_labelme_shapes(tmp_path: Path) -> None:
    shapes = [
        {"label": "cup", "points": [[9, 8], [1, 2]], "shape_type": "rectangle"},
        {"label": "jar", "points": [[10, 10], [13, 14]], "shape_type": "circle"},
        {"label": "jar", "points": [[1, 1]], "shape_type": "point"},
        {"label": "", "points": [[1, 1], [2, 2]], "shape_type": "rectangle"},
    ]
    folder = tmp_path / "lm"
    folder.mkdir()
    Image.new("RGB", (32, 24)).save(folder / "a.png")
    tree = {"shapes": shapes, "imagePath": "..\\pictures\\a.png", "imageHeight": 24, "imageWidth": 32}
    (folder / "a.json").write_text(json.dumps(tree))
    problems = Problems()
    data = read(recognise(folder), problems)
    assert [thing.box for thing in data.splits["all"][0].things] == [(1, 2, 9, 8), (5, 5, 15, 15)]
    assert [(p.level, p.field) for p in problems] == [
        ("error", "shapes[3]: label"),
        ("warning", "shapes[2] (jar)"),
    ]


def test_what_is_no_data_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "results.json").write_text("[]")
    for name, words in {
        "nowhere": "no such file or folder",
        "empty": "no annotations and no pictures",
        "pictures": "1 pictures, and no annotations",
        "results.json": "looks like results",
    }.items():
        with pytest.raises(DataError, match=words):
            recognise(tmp_path / name)


ODD = {  # what is put in place of a field of a COCO file -> what is said
    "images.0.width": ("x", "width x height is 'x'"),
    "annotations.0.bbox": ([10**400, 1, 1, 1], "is not four numbers"),
    "annotations.0.image_id": ([1], "image_id [1] is not in images"),
    "annotations.0.segmentation": ({"a": 1}, "neither a list of polygons"),
    "annotations.0.iscrowd": ({}, ""),
    "categories.0.name": (None, "no name"),
    "categories.1.name": ("cup", "two categories are called 'cup'"),
    "images.0.file_name": ("", "no file_name"),
    "images.0": (7, "images[0] is 7, not a JSON object"),
}


@pytest.mark.parametrize("field", ODD)
def test_odd_values_are_told_and_stop_nothing(field: str, tmp_path: Path) -> None:
    data: Any = coco(2)
    file = write(tmp_path / "data", data)
    row, (value, words) = data, ODD[field]
    *path, last = (int(part) if part.isdigit() else part for part in field.split("."))
    for part in path:
        row = row[part]
    row[last] = value
    file.write_text(json.dumps(data))
    problems = Problems()
    read(recognise(file), problems)
    assert words in " ".join(map(str, problems))


def test_voc_pictures_beside_the_folder_are_found(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "set" / "voc", {"a": [voc_object("cup", 1, 1, 9, 9)]}, split="train")
    (folder / "JPEGImages").rename(tmp_path / "set" / "pictures")
    (picture,) = usable(recognise(folder)).pictures
    assert picture.file == tmp_path / "set" / "pictures" / "a.jpg"
    assert picture.things[0].box == (0, 0, 9, 9)


def test_roboflow_voc_takes_the_picture_beside_each_file(tmp_path: Path) -> None:
    for split, colour in (("train", "red"), ("valid", "blue")):
        made = write_voc(tmp_path / "made", {"a": [voc_object("cup", 1, 1, 9, 9)]})
        (tmp_path / "data" / split).mkdir(parents=True)
        (made / "Annotations" / "a.xml").rename(tmp_path / "data" / split / "a.xml")
        Image.new("RGB", (40, 30), colour).save(tmp_path / "data" / split / "a.jpg")
    (tmp_path / "data" / "README.roboflow.txt").write_text("")
    layout = recognise(tmp_path / "data")
    assert (layout.form, layout.roboflow) == ("voc", True)
    files = {split: rows[0].file.parent.name for split, rows in usable(layout).splits.items()}
    assert files == {"train": "train", "val": "valid"}


def test_a_problem_reads_as_one_line() -> None:
    problem = Problem("error", "a.json", "images[0]: id", "is missing", "add it")
    assert str(problem) == "error: a.json: images[0]: id: is missing; add it"


def test_a_sheet_shows_every_class_and_no_broken_picture(tmp_path: Path) -> None:
    pictures = [
        Picture(tmp_path / f"{i}.png", f"{i}.png", (20, 30), (Thing(name, (1, 1, 9, 9)),), tmp_path / "x")
        for i, name in enumerate(["cup"] * 8 + ["jar"])
    ]
    for picture in pictures[1:]:
        Image.new("RGB", (30, 20)).save(picture.file)
    data = DataSet("coco", tmp_path, {"train": pictures}, ["cup", "jar"])
    assert {thing.name for _, picture in choose(data, 3) for thing in picture.things} == {"cup", "jar"}
    sheet = contact_sheet(data, 3)
    assert sheet is not None
    assert sheet.width == 2 * (CELL[0] + 8)  # the first of the three cannot be read
    assert contact_sheet(DataSet("coco", tmp_path, {"train": pictures[:1]}, ["cup"]), 3) is None


REAL = {  # folder or file -> (form, splits, kinds of problems and how many)
    "odinw/BCCD/train/_annotations.coco.json": (
        "coco",
        {"train": 205},
        {"twins": 4, "annotation ids": 1, "a box without area": 1},
    ),
    "odinw/BCCD/voc": ("voc", {"train": 205, "val": 87, "test": 72}, {"twins": 7}),
    "odinw/Aquarium": (
        "coco",
        {"train": 100, "val": 44, "test": 63},
        {"annotation ids": 3, "a box without area": 2, "a side of the box is under 5 pixels": 4},
    ),
    "coco/annotations/instances_val2017.json": ("coco", {"val": 152}, {"crowd": 1, "a picture without a box": 1}),
}


@pytest.mark.parametrize("name", REAL)
def test_the_problems_of_real_data_are_found(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    form, pictures, kinds = REAL[name]
    path = shared_path("data", "DATASET", name)
    code, told, report = check(capsys, tmp_path, str(path), "--fast", "--pictures", "0")
    assert (code, report["form"], report["pictures"]) == (0, form, pictures)
    counts = Counter(problem["kind"] for problem in report["problems"])
    assert {kind: counts[kind] for kind in kinds} == kinds
    if report["roboflow"]:
        assert "it looks like the background" in told


def test_the_pictures_of_lvis_are_found_by_their_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shared_path("data", "DATASET")
    argv = [str(data / "lvis/lvis_v0.5_val_64.json"), "--images", str(data / "coco/val2017"), "--pictures", "0"]
    code, _, report = check(capsys, tmp_path, *argv, "--fast")
    assert (code, report["form"]) == (0, "lvis")
    counts = Counter(problem["kind"] for problem in report["problems"])
    assert (counts["coco_url"], counts["the list of absent categories is empty"]) == (1, 1)
    assert counts["a picture without a box"] == 2


def test_captions_are_checked_and_not_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shared_path("data", "DATASET")
    file, images = data / "mdetr_annotations/finetune_refcocos_val.json", data / "coco/val2017"
    code, told, report = check(capsys, tmp_path, str(file), "--images", str(images), "--pictures", "4")
    assert (code, report["form"]) == (0, "mdetr")
    assert "there is an id 0" in told or "has the id 0" in told
    argv = ["data", "convert", str(file), str(tmp_path / "x"), "--to", "coco", "--images", str(images)]
    assert mrb.main(argv) == 2
    assert "have no classes" in capsys.readouterr().err
