"""Readers of pictures of one class each: ImageNet in one file, tab-separated, in folders; and what is wrong there."""

from __future__ import annotations

import base64
import json
import os
import pickle
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskrcnn_benchmark.data.box_files import write_coco, write_npz, write_pth
from maskrcnn_benchmark.data.datasets.image_folder import ImageFolder
from maskrcnn_benchmark.data.datasets.imagenet_binary import ImageNetBinary
from maskrcnn_benchmark.data.datasets.imagenet_labels import parse_objects
from maskrcnn_benchmark.data.datasets.imagenet_tsv import ImageNetSplits, ImageNetTsv
from maskrcnn_benchmark.data.drawn import Split, World
from maskrcnn_benchmark.data.drawn.forms import write_labels
from maskrcnn_benchmark.data.pictures import PictureError
from maskrcnn_benchmark.data.sample import Sample
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.structures import Target
from tests.golden.common import shared_path
from tests.unit.dap_files import (
    NAMES,
    pixels,
    sizes,
    table,
    without_labels,
    write_binary,
    write_folder,
    write_split,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MB_CACHE", str(tmp_path / "cache"))


def target(sample: Sample) -> Target:
    assert sample.target is not None
    return sample.target


def change(path: Path, line: int, how: Callable[[str], str]) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1] = how(lines[line - 1])
    path.write_text("".join(lines))


# ImageNet in one file


def test_one_file(tmp_path: Path) -> None:
    boxes = table(6)
    folder = write_binary(tmp_path / "in", 6, boxes)
    dataset = ImageNetBinary(folder, boxes="train.cam3nms8xyxy.npz")
    for index in range(6):
        sample = dataset[index]
        assert (np.asarray(sample.image) == pixels(index, sizes(6)[index])).all()
        assert (target(sample).boxes.numpy() == boxes.boxes[boxes.rows(index)]).all()
        assert set(target(sample).labels.tolist()) == {index % 3 + 1} == {dataset.label(index)}
        assert sample.meta.image_id == f"n{index:08d}_{index}" == dataset.key(index)
    assert dataset.sizes.tolist() == [list(size) for size in sizes(6)]


def test_pictures_without_a_box_are_left_out_and_told(tmp_path: Path) -> None:
    folder = write_binary(tmp_path / "in", 4, table(4, [1, 0, 2, 0]))
    dataset = ImageNetBinary(folder, boxes="train.cam3nms8xyxy.npz")
    assert [dataset.key(index)[-1] for index in range(len(dataset))] == ["0", "2"]
    assert dataset[1].meta.image_id.__str__().endswith("_2")
    assert dataset.notes == [f"2 of 4 pictures have no box in {folder / 'train.cam3nms8xyxy.npz'}: left out"]


@pytest.mark.parametrize(
    ("line", "how", "told"),
    [
        (3, lambda row: row[:9] + "\n", "line 3: 1 columns, not 6"),
        (6, lambda row: row.rsplit("\t", 1)[0], "line 6: 5 columns, not 6"),
        (2, lambda row: row.replace("\t1\t", "\tdog\t"), "line 2: label is 'dog', not a whole number from 0"),
        (2, lambda row: row.replace("\t1\t", "\t-1\t"), "line 2: label is '-1', not a whole number from 0"),
        (1, lambda row: row.replace("\t0\t0\t", "\t0\t999999\t"), "line 1: its picture ends at byte"),
    ],
)
def test_a_broken_list(tmp_path: Path, line: int, how: Callable[[str], str], told: str) -> None:
    folder = write_binary(tmp_path / "in")
    change(folder / "train.binary.label", line, how)
    with pytest.raises(DataError, match=f"train.binary.label: {told}"):
        ImageNetBinary(folder)


def test_a_file_of_pictures_that_is_cut_short(tmp_path: Path) -> None:
    folder = write_binary(tmp_path / "in")
    path = folder / "train.binary"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"line 6: its picture ends at byte .* it is cut short"):
        ImageNetBinary(folder)


def test_a_damaged_picture_is_named_with_its_line(tmp_path: Path) -> None:
    folder = write_binary(tmp_path / "in")
    data = bytearray((folder / "train.binary").read_bytes())
    data[:40] = bytes(40)
    (folder / "train.binary").write_bytes(data)
    dataset = ImageNetBinary(folder)
    with pytest.raises(PictureError, match=r"train.binary .bytes 0 to .*line 1 of train.binary.label.: not a picture"):
        dataset[0]
    assert dataset[1].image.size == sizes(6)[1][::-1]


def test_boxes_of_another_number_of_pictures(tmp_path: Path) -> None:
    folder = write_binary(tmp_path / "in", 6, table(5))
    with pytest.raises(DataError, match=r"nms8xyxy.npz: boxes of 5 pictures, but .*train.binary.label has 6"):
        ImageNetBinary(folder, boxes="train.cam3nms8xyxy.npz")
    with pytest.raises(DataError, match=r"other.npz: no such file of boxes"):
        ImageNetBinary(folder, boxes="other.npz")
    with pytest.raises(DataError, match=r"test.binary: no such file"):
        ImageNetBinary(folder, "test")


def test_a_label_out_of_range_is_named_with_its_line(tmp_path: Path) -> None:
    folder = write_binary(tmp_path / "in")
    change(folder / "train.binary.label", 5, lambda row: row.replace("\t1\t", "\t1000\t"))
    dataset = ImageNetBinary(folder)
    dataset.refuse_labels(1001)
    with pytest.raises(DataError, match=r"label:5: n00000004_4 has label 1000 \(from 0\), but the network has 1000"):
        dataset.refuse_labels(1000)


def test_boxes_of_a_resized_picture_are_resized(tmp_path: Path) -> None:
    made = table(2)
    halves = sizes(2)
    folder = write_binary(tmp_path / "in", 2)
    double = type(made)(made.first, made.boxes * 2, made.scores, None, np.array(halves, np.int32) * 2)
    write_pth(folder / "pseudo.pth", double)
    dataset = ImageNetBinary(folder, boxes="pseudo.pth")
    for index in range(2):
        assert target(dataset[index]).boxes.numpy() == pytest.approx(made.boxes[made.rows(index)], rel=1e-5)


# ImageNet-22k


def test_splits(tmp_path: Path) -> None:
    folder, boxes = tmp_path / "tax", table(5)
    for part in (10, 2):
        write_split(folder, part, 5, boxes)
    plain, found = ImageNetSplits(folder), ImageNetSplits(folder, boxes="cam1nms8xyxy")
    keys = [f"p{part}_{number}" for part in (2, 10) for number in range(5)]
    for dataset in (plain, found):
        assert [dataset.key(index) for index in range(len(dataset))] == keys
        assert [dataset.label(index) for index in range(10)] == [1, 2, 3, 1, 2] * 2
        assert dataset.sizes.tolist() == [list(size) for size in sizes(5)] * 2
        assert dataset.names == dict(enumerate(NAMES, 1))
        assert len(dataset.notes) == 1
        assert dataset.notes[0].startswith("62 of 64 splits trainval_*_64.tsv are not there: 0, 1, 3,")
    for index in range(10):
        sample = found[index]
        assert (np.asarray(sample.image) == pixels((200, 1000)[index // 5] + index % 5, sizes(5)[index % 5])).all()
        assert (target(sample).boxes.numpy() == boxes.boxes[boxes.rows(index % 5)]).all()
        assert set(target(sample).labels.tolist()) == {index % 5 % 3 + 1}
        height, width = sizes(5)[index % 5]
        assert target(plain[index]).boxes.tolist() == [[0, 0, width, height]]


def test_a_fixed_random_order(tmp_path: Path) -> None:
    for part in range(3):
        write_split(tmp_path / "tax", part, 8, table(8))

    def keys(seed: int | None) -> list[str]:
        dataset = ImageNetSplits(tmp_path / "tax", boxes="cam1nms8xyxy", order_seed=seed)
        found = [dataset.key(index) for index in range(len(dataset))]
        assert [dataset[index].meta.image_id for index in range(len(dataset))] == found
        assert [dataset.size(index) for index in range(24)] == [tuple(row) for row in dataset.sizes.tolist()]
        return found

    one = keys(7)
    assert one == keys(7)
    assert one != keys(8)
    assert sorted(one) == sorted(keys(None))
    parts = [key.split("_")[0] for key in one]
    assert sorted(parts[::8]) == ["p0", "p1", "p2"]  # a split stays together
    assert parts == [part for part in parts[::8] for _ in range(8)]


def test_a_picture_that_cannot_be_read_is_replaced_by_the_next_one(tmp_path: Path) -> None:
    path = write_split(tmp_path / "tax", 0, 4, table(4))
    no_picture = base64.b64encode(b"no picture at all, but as long as one").decode()
    for line in (2, 3):
        change(path, line, lambda row: "\t".join([*row.split("\t")[:2], no_picture]) + "\n")
    path.with_suffix(".lineidx").unlink()
    dataset = ImageNetSplits(tmp_path / "tax", boxes="cam1nms8xyxy")
    for _ in range(2):
        sample = dataset[1]
        assert sample.meta.image_id == "p0_3"
        assert len(target(sample).boxes) == len(target(dataset[3]).boxes)
        assert "trainval_0_64.tsv:2 (key 'p0_1'): not a picture" in sample.note
        assert sample.note.endswith("trainval_0_64.tsv:4 is used instead")
        assert not dataset[3].note
    change(path, 4, lambda row: "\t".join([*row.split("\t")[:2], no_picture]) + "\n")
    path.with_suffix(".lineidx").unlink()
    assert ImageNetSplits(tmp_path / "tax")[3].meta.image_id == "p0_0"  # the first one comes after the last
    change(path, 1, lambda row: "\t".join([*row.split("\t")[:2], no_picture]) + "\n")
    path.with_suffix(".lineidx").unlink()
    with pytest.raises(PictureError, match=r":4 .key 'p0_3'.: not a picture"):
        ImageNetSplits(tmp_path / "tax")[3]


@pytest.mark.parametrize(
    ("line", "how", "told"),
    [
        (2, lambda row: row.split("\t")[0] + "\n", r":2 \(key 'p0_1'\): 1 columns, not key, anything, picture"),
        (3, lambda row: row[:-4] + "\n", r":3 \(key 'p0_2'\): the picture is not base64 .* cut short"),
        (3, lambda row: "other" + row[4:], r":3 \(key 'p0_2'\): is a picture with the key 'other"),
    ],
)
def test_a_broken_line_of_pictures(tmp_path: Path, line: int, how: Callable[[str], str], told: str) -> None:
    path = write_split(tmp_path / "tax", 0, 4)
    change(path, line, how)
    path.with_suffix(".lineidx").unlink()
    dataset = ImageNetSplits(tmp_path / "tax")
    with pytest.raises(PictureError, match=f"trainval_0_64.tsv{told}"):
        dataset[line - 1]
    assert not dataset[line - 2].note


def test_a_file_that_ends_inside_a_line(tmp_path: Path) -> None:
    path = write_split(tmp_path / "tax", 0, 4)
    path.write_text(path.read_text()[:-41])
    with pytest.raises(DataError, match=r"trainval_0_64.tsv:4: the last line has no end: the file is cut short"):
        ImageNetSplits(tmp_path / "tax")


@pytest.mark.parametrize(
    ("ending", "line", "how", "told"),
    [
        (".hw.tsv", 2, lambda row: "p0_1\t24\n", "line 2: '24' is not height and width"),
        (".hw.tsv", 4, lambda row: "", "has 3 lines, but trainval_0_64.tsv has 4: one of them is cut short"),
        (".label.tsv", 4, lambda row: "", "has 3 lines, but trainval_0_64.tsv has 4"),
        (".label.tsv", 3, lambda row: row[:-9], "neither JSON nor a Python list; it is cut short|has 3 lines"),
        (".label.tsv", 1, lambda row: row.replace("ape", "dog"), "line 1: class 'dog' is not in labelmap.txt"),
        (".label.tsv", 1, lambda row: row.replace("p0_0", "x"), "line 1: is of 'x', but the picture is 'p0_0'"),
        (".label.tsv", 1, lambda row: row.replace("[0, 0, ", "["), r"line 1: rect is \[\d+, \d+\], not"),
        (
            ".label.tsv",
            2,
            lambda row: "p0_1\t__import__('os').abort()\n",
            "line 2: .* is neither JSON nor a Python list",
        ),
    ],
)
def test_a_broken_file_beside_the_pictures(
    tmp_path: Path, ending: str, line: int, how: Callable[[str], str], told: str
) -> None:
    path = write_split(tmp_path / "tax", 0, 4)
    change(path.with_suffix(ending), line, how)
    with pytest.raises(DataError, match=f"trainval_0_64{ending}.*({told})"):
        ImageNetSplits(tmp_path / "tax")


def test_files_of_boxes_that_do_not_fit(tmp_path: Path) -> None:
    path = write_split(tmp_path / "tax", 0, 4, table(3))
    with pytest.raises(DataError, match=r"cam1nms8xyxy.pth: boxes of 3 pictures, but .*trainval_0_64.tsv has 4"):
        ImageNetSplits(tmp_path / "tax", boxes="cam1nms8xyxy")
    write_pth(path.with_suffix(".cam1xyxy.pth"), without_labels(table(4)))
    with pytest.raises(DataError, match=r"cam1xyxy.pth: its boxes have no labels"):
        ImageNetSplits(tmp_path / "tax", boxes="cam1xyxy")
    write_pth(path.with_suffix(".cam2xyxy.pth"), table(4))
    dataset = ImageNetSplits(tmp_path / "tax", boxes="cam2xyxy")
    dataset.refuse_labels(3)
    with pytest.raises(DataError, match=r"cam2xyxy.pth:3: p0_2 has label 2 \(from 0\), but the network has 2 classes"):
        dataset.refuse_labels(2)


def test_folders_without_splits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no splits; they are called like trainval_0_64.tsv"):
        ImageNetSplits(tmp_path)
    write_split(tmp_path, 0, 2).rename(tmp_path / "trainval_0_8.tsv")
    write_split(tmp_path, 0, 2)
    with pytest.raises(DataError, match=r"splits of several kinds, trainval_\*_8.tsv, trainval_\*_64.tsv"):
        ImageNetSplits(tmp_path)
    (tmp_path / "trainval_0_8.tsv").unlink()
    (tmp_path / "labelmap.txt").unlink()
    with pytest.raises(DataError, match=r"labelmap.txt: cannot be read"):
        ImageNetSplits(tmp_path)


def test_label_texts() -> None:
    names = {"ape": 1, "bear": 2, "twice": 0}
    rect = [1, 2, 3, 4.5]
    old = ["k", json.dumps([{"class": "bear", "rect": rect}, {"class": "ape", "rect": rect, "conf": None}])]
    assert parse_objects(old, names, None) == [(2, rect), (1, rect)]
    python = ["k", str([{"class": "bear", "rect": tuple(rect), "diff": True, "of": None}])]
    assert parse_objects(python, names, None) == [(2, rect)]
    new = ["k", "30", "40", json.dumps([{"c": "ape", "rect": rect}]), "123"]
    assert parse_objects(new, names, None) == [(1, rect)]
    number = ["k", "30", "40", json.dumps([{"c": 1, "rect": rect}]), "123"]
    assert parse_objects(number, names, 0) == [(2, rect)]
    assert parse_objects(number, names, 1) == [(1, rect)]
    assert parse_objects(["k", "[]"], names, None) == []
    refused: list[tuple[list[str], int | None, str]] = [
        (number, None, "c is the number 1; say with the key class_base"),
        ([*number[:3], json.dumps([{"c": 3, "rect": rect}]), ""], 0, "class 3 .from 0. is out of range"),
        ([*number[:3], json.dumps([{"c": 0, "rect": rect}]), ""], 1, "class 0 .from 1. is out of range"),
        ([*number[:3], json.dumps([{"class": "ape", "rect": rect}]), ""], 1, "has no 'c'"),
        (["k", json.dumps([{"class": "twice", "rect": rect}])], None, "more than once"),
        (["k", json.dumps([{"class": True, "rect": rect}])], 0, "neither a name nor a number"),
        (["k", "{}"], None, "no list of objects"),
        (["k", "3", "4"], None, "3 columns, not 2 .* or 5"),
    ]
    for columns, base, told in refused:
        with pytest.raises(ValueError, match=told):
            parse_objects(columns, names, base)


# folders


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures")
    (folder / "ape" / "notes.txt").write_text("not a picture")
    plain = ImageFolder(folder, folder)
    assert [plain.key(index) for index in range(6)] == [f"{name}/{turn}.png" for name in NAMES for turn in range(2)]
    assert [plain.label(index) for index in range(6)] == [1, 1, 2, 2, 3, 3]
    assert plain.names == dict(enumerate(NAMES, 1))
    height, width = sizes(6)[3]
    assert target(plain[3]).boxes.tolist() == [[0, 0, width, height]]
    assert (np.asarray(plain[3].image) == pixels(3, (height, width))).all()
    boxes = table(6)
    write_npz(tmp_path / "boxes.npz", boxes)
    found = ImageFolder(folder, folder, boxes=tmp_path / "boxes.npz")
    for index in range(6):
        assert (target(found[index]).boxes.numpy() == boxes.boxes[boxes.rows(index)]).all()
        assert set(target(found[index]).labels.tolist()) == {index // 2 + 1}


def test_a_folder_with_boxes_in_coco(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures")
    boxes, keys = table(6), [f"{name}/{turn}.png" for name in NAMES for turn in range(2)]
    write_coco(tmp_path / "boxes.json", boxes, keys, NAMES)
    found = ImageFolder(folder, folder, boxes=tmp_path / "boxes.json")
    for index in range(6):
        assert target(found[index]).boxes.numpy() == pytest.approx(boxes.boxes[boxes.rows(index)], abs=1e-4)
        assert set(target(found[index]).labels.tolist()) == {index % 3 + 1}
    write_coco(tmp_path / "names.json", boxes, keys, ("ape", "bear", "dog"))
    with pytest.raises(DataError, match=r"names.json: category 'dog' is none of the 3 classes"):
        ImageFolder(folder, folder, boxes=tmp_path / "names.json")
    write_coco(tmp_path / "files.json", boxes, ["ape/9.png", *keys[1:]], NAMES)
    with pytest.raises(DataError, match=r"files.json: 1 of 6 pictures are not in it, such as ape/0.png"):
        ImageFolder(folder, folder, boxes=tmp_path / "files.json")


def test_a_folder_without_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no folders; there must be one of pictures for each class"):
        ImageFolder(tmp_path, tmp_path)
    (tmp_path / "ape").mkdir()
    with pytest.raises(DataError, match=r"ape: has no pictures"):
        ImageFolder(tmp_path, tmp_path)


def test_the_json_of_the_drawn_world(tmp_path: Path) -> None:
    folder = tmp_path / "drawn"
    write_labels(folder, World(1, Split.TRAIN), 6)
    listed, walked = ImageFolder(folder, folder / "image_info.json"), ImageFolder(folder, folder)
    assert {walked.names[walked.label(i)]: walked.key(i) for i in range(6)} == {
        listed.names[listed.label(i)].replace(" ", "_"): listed.key(i) for i in range(6)
    }
    assert listed.size(0) == listed[0].meta.orig_size


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda tree: tree["images"][0].pop("pos_category_ids"), "no pos_category_ids"),
        (lambda tree: tree["images"][1].update(pos_category_ids=[9]), "pos_category_ids has 9, which is not in"),
        (lambda tree: tree["images"][1].pop("file_name"), "needs a whole number as id, and a file_name"),
        (lambda tree: tree["categories"][1].update(id=1), "each needs a whole number of its own"),
        (lambda tree: tree["categories"][1].pop("name"), "no name"),
    ],
)
def test_a_broken_json_of_classes(tmp_path: Path, edit: Callable[[Any], object], told: str) -> None:
    tree = {
        "images": [{"id": i, "file_name": f"{i}.png", "pos_category_ids": [i]} for i in (1, 2)],
        "categories": [{"id": i, "name": str(i)} for i in (1, 2)],
    }
    edit(tree)
    (tmp_path / "info.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=f"info.json: .*{told}"):
        ImageFolder(tmp_path, tmp_path / "info.json")


def test_real_pictures_with_image_labels() -> None:
    root = shared_path("data", "DATASET")
    listed = root / "derived" / "imagelabel" / "coco_lvis_image_info.json"
    dataset = ImageFolder(root / "coco", listed)
    rows = sorted(json.loads(listed.read_text())["images"], key=lambda row: row["id"])
    assert len(dataset) == len(rows)
    for index in range(0, len(rows), 20):
        sample = dataset[index]
        assert sample.meta.orig_size == (rows[index]["height"], rows[index]["width"])
        assert dataset.label(index) == rows[index]["pos_category_ids"][0]  # LVIS counts from 1 without gaps


# processes and memory


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_do_not_disturb_each_other(tmp_path: Path) -> None:
    write_binary(tmp_path / "in", 12)
    write_split(tmp_path / "tax", 0, 12)
    for dataset in (ImageNetBinary(tmp_path / "in"), ImageNetSplits(tmp_path / "tax")):
        dataset[0]  # opens the file before the processes part
        wanted = [np.asarray(dataset[index].image).tobytes() for index in range(12)]
        children = []
        for _ in range(3):
            child = os.fork()
            if not child:
                os._exit(any(np.asarray(dataset[i % 12].image).tobytes() != wanted[i % 12] for i in range(60)))
            children.append(child)
        for index in range(60):
            assert np.asarray(dataset[index % 12].image).tobytes() == wanted[index % 12]
        assert all(os.waitpid(child, 0)[1] == 0 for child in children)


def test_a_data_set_travels_as_the_names_of_its_files(tmp_path: Path) -> None:
    write_binary(tmp_path / "in", 200, table(200))
    dataset = ImageNetBinary(tmp_path / "in", boxes="train.cam3nms8xyxy.npz")
    wanted = np.asarray(dataset[150].image)
    again = pickle.loads(pickle.dumps(dataset))
    assert (np.asarray(again[150].image) == wanted).all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of Linux")
def test_large_files_are_not_read_whole(tmp_path: Path) -> None:
    """300 MB of pictures, of which a few are looked at."""
    folder = write_binary(tmp_path / "in", 3)
    gap = 300 << 20
    data = (folder / "train.binary").read_bytes()
    with open(folder / "train.binary", "wb") as file:
        file.seek(gap)
        file.write(data)
    lines = [line.split("\t") for line in (folder / "train.binary.label").read_text().splitlines()]
    rows = ["\t".join([*row[:2], str(int(row[2]) + gap), *row[3:]]) for row in lines]
    (folder / "train.binary.label").write_text("".join(f"{row}\n" for row in rows * 50))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dataset = ImageNetBinary(folder)
    for index in range(150):
        assert (np.asarray(dataset[index].image) == pixels(index % 3, sizes(3)[index % 3])).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_the_pictures_of_a_split_open_one_file(tmp_path: Path) -> None:
    path = write_split(tmp_path / "tax", 0, 6)
    dataset = ImageNetTsv(path)
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("needs /proc")
    for _ in range(5):
        for index in range(6):
            assert isinstance(dataset[index].image, Image.Image)
    opened = [os.readlink(link) for link in folder.iterdir() if link.exists()]
    assert opened.count(str(path)) == 1
