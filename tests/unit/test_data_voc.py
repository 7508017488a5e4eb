"""PASCAL VOC folders: what is read, and what is said about those that are broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.catalog import Entry, resolve
from maskrcnn_benchmark.data.datasets.voc import VOC_CLASSES, VocDataset
from maskrcnn_benchmark.data.pictures import PictureError
from maskrcnn_benchmark.data.sample import TrainPictures
from maskrcnn_benchmark.data.xml_files import read_xml
from maskrcnn_benchmark.errors import DataError
from tests.golden.common import shared_path
from tests.unit.voc_files import voc_object, write_voc

DOG, CAT = voc_object("dog", 1, 1, 10, 20), voc_object(" Cat ", 5, 6, 40, 30, difficult=1)


def read(folder: Path, split: str = "test", **options: Any) -> VocDataset:
    return VocDataset(folder, folder, split, **options)


def test_a_split_in_the_order_of_its_list(tmp_path: Path) -> None:
    data = read(write_voc(tmp_path / "VOC2007", {"000009": [DOG, CAT], "000002": []}))
    assert (data.name, len(data), data.ids) == ("VOC2007_test", 2, ["000009", "000002"])
    assert data.prompt_categories == list(enumerate(VOC_CLASSES, 1))
    assert (data.label_to_category[20], data.evaluation_categories[19]) == (20, {"id": 20, "name": "tvmonitor"})
    found = data.objects[0]
    assert found.boxes.tolist() == [[0, 0, 9, 19], [4, 5, 39, 29]]
    assert (found.labels.tolist(), found.difficult.tolist()) == ([12, 8], [False, True])
    assert data.size(0) == (30, 40)
    assert data.file(1) == tmp_path / "VOC2007/JPEGImages/000002.jpg"
    sample = data[0]
    assert (sample.meta.image_id, sample.meta.orig_size, sample.note) == ("000009", (30, 40), "")
    assert sample.target is not None
    assert sample.target.boxes.tolist() == found.boxes.tolist()
    assert data[1].target is not None
    assert len(data[1].target) == 0
    assert data.notes == []


def test_training_leaves_out_what_is_difficult(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a": [CAT, DOG, voc_object("cow", 50, 5, 60, 9)]})
    data: TrainPictures = read(folder, keep_difficult=False)
    sample = data[0]
    assert sample.target is not None
    assert sample.target.labels.tolist() == [12]  # and the cow is outside of the picture
    assert data.sizes.tolist() == [[30, 40]]
    assert data.annotations == folder / "ImageSets/Main/test.txt"


def test_what_other_tools_leave_out(tmp_path: Path) -> None:
    """No flag, an empty flag, no size, numbers with fractions, another ending, pictures beside the annotations."""
    rows = [voc_object("dog", 1.5, 2, 3, 4, difficult=None), DOG.replace(">0<", "><")]
    data = read(write_voc(tmp_path, {"a": rows, "b": []}, size=""))
    assert data.objects[0].difficult.tolist() == [False, False]
    assert data.objects[0].boxes[0].tolist() == [0.5, 1, 2, 3]
    assert data.size(0) is None
    assert data.sizes.tolist() == [[0, 0], [0, 0]]
    assert data.notes == ["2 of 2 annotations have no <size>: taken from the pictures"]
    (tmp_path / "JPEGImages").rename(tmp_path / "mine")
    xml = tmp_path / "Annotations/a.xml"
    xml.write_text(xml.read_text().replace("a.jpg", "pic/a.PNG"))
    data = VocDataset(tmp_path / "mine", tmp_path, "test")
    assert [data.file(0), data.file(1)] == [tmp_path / "mine/a.PNG", tmp_path / "mine/b.jpg"]
    with pytest.raises(PictureError, match=r"a\.PNG \(image id 'a'\): missing"):
        data[0]


def test_other_classes(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a": [voc_object("wbc", 1, 1, 9, 9)]})
    assert read(folder, classes=("RBC", "WBC")).objects[0].labels.tolist() == [2]
    with pytest.raises(DataError, match="classes must be names, each of them once, got 'RBC, rbc'"):
        read(folder, classes=("RBC", "rbc"))


def test_the_digest_is_of_all_annotations(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a": [DOG], "b": [DOG]})
    first = read(folder).digest
    assert read(folder).digest == first
    write_voc(tmp_path, {"a": [DOG], "b": [CAT]})
    assert read(folder).digest != first


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<name>dog", "<name>dgo", r"object 1 \(dgo\): name is none of the 20 classes: aeroplane, "),
        ("<name>dog</name>", "", r"object 1 \(without a name\): name is none"),
        ("<xmin>1</xmin>", "<xmin>one</xmin>", r"object 1 \(dog\): bndbox: xmin is 'one', not a number"),
        ("<xmin>1</xmin>", "<xmin>nan</xmin>", "xmin is 'nan', not a number"),
        ("<ymax>20</ymax>", "", r"object 1 \(dog\): bndbox: has no ymax"),
        ("bndbox", "box", r"object 1 \(dog\): has no bndbox"),
        ("<xmax>10<", "<xmax>0<", r"bndbox \[1.0, 1.0, 0.0, 20.0\]: xmax is below xmin or ymax below ymin"),
        ("<difficult>0<", "<difficult>no<", "difficult is 'no', not 0 or 1"),
        ("<height>30</height>", "", "size: has no height"),
        ("<width>40<", "<width>0<", "size 0x30 is not that of a picture"),
        ("</annotation>", "", r"not valid XML \(.*\): download or copy it again"),
    ],
)
def test_a_broken_annotation_is_named_with_object_and_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    folder = write_voc(tmp_path, {"a": [DOG]})
    xml = folder / "Annotations/a.xml"
    assert old in xml.read_text()
    xml.write_text(xml.read_text().replace(old, new))
    with pytest.raises(DataError, match=rf"Annotations: a\.xml: .*{message}"):
        read(folder)


def test_several_problems_are_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_voc(tmp_path, {name: [voc_object("eel", 1, 1, 2, 2)] for name in "abc"})
    (folder / "Annotations/b.xml").unlink()
    with pytest.raises(DataError, match=r"a.xml: object 1 \(eel\).*\(and 2 more problems, see above\)"):
        read(folder)
    assert "b.xml: no such file: put it there, or take it out of the list" in caplog.text


def test_missing_and_odd_lists(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a": [DOG]}, split="val")
    with pytest.raises(DataError, match=r"Main/test\.txt: no such file; the splits there are val"):
        read(folder)
    lists = folder / "ImageSets/Main/val.txt"
    for text, message in (("\n", "lists no picture"), ("a\na\n", "names 'a' more than once")):
        lists.write_text(text)
        with pytest.raises(DataError, match=message):
            read(folder, "val")
    with pytest.raises(DataError, match="no such folder; VOC data have Annotations and ImageSets/Main"):
        read(folder / "Annotations")


@pytest.mark.parametrize(
    "declared",
    [
        '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]><annotation>&c;</annotation>',
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><annotation>&b;</annotation>',
        '<!DOCTYPE annotation SYSTEM "http://localhost/voc.dtd"><annotation/>',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_are_refused(tmp_path: Path, declared: str, encoding: str) -> None:
    """They could fill the memory, or read other files."""
    (tmp_path / "a.xml").write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{declared}'.encode(encoding))
    with pytest.raises(DataError, match=r"a\.xml: has a document type declaration"):
        read_xml(tmp_path / "a.xml")


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "the file is empty"), (b'<?xml version="1.0" encoding="nonsense"?><a/>', "not valid XML"), (b"\x00", "not")],
)
def test_what_is_no_xml(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.xml").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_xml(tmp_path / "a.xml")


def test_entries_of_the_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_voc(tmp_path / "DATASET/voc/VOC2007", {"a": [DOG]}, split="trainval")
    entry = resolve(load_cfg(), "voc_2007_trainval", "test")
    assert (entry.kind, entry.evaluator, entry.options["split"]) == ("voc", "voc", "trainval")
    data = VocDataset.from_entry(entry)
    assert (data.name, data.ids) == ("voc_2007_trainval", ["a"])
    with pytest.raises(DataError, match=r"Main/test\.txt: no such file; the splits there are trainval"):
        VocDataset.from_entry(resolve(load_cfg(), "voc_2007_test", "test"))
    row = {"kind": "voc", "img_dir": "DATASET/voc/VOC2007", "ann_file": "DATASET/voc/VOC2007/Annotations/a.xml"}
    task = tmp_path / "task.yaml"
    task.write_text(yaml.safe_dump({"DATASETS": {"REGISTER": {"mine": row}}}))
    with pytest.raises(DataError, match="is not a folder, as it is for kind 'voc'"):
        resolve(load_cfg(task_config=task), "mine", "test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "split is None: name a list in ImageSets/Main"),
        ({"split": "test", "year": 2007}, "nothing reads its key 'year' when it is of kind 'voc'"),
        ({"split": "test", "classes": "dog"}, "classes is 'dog': give a list of names"),
    ],
)
def test_entries_that_are_wrong(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        VocDataset.from_entry(Entry("mine", "voc", tmp_path, tmp_path, "voc", options))


def test_real_data() -> None:
    """The original annotations of BCCD, and 57 pictures in the form of VOC2007."""
    cells = shared_path("data", "DATASET", "odinw", "BCCD")
    data = VocDataset(cells / "test", cells / "voc", "test", classes=("RBC", "WBC", "Platelets"))
    assert len(data) == 72
    assert sum(len(objects.labels) for objects in data.objects) == 945
    assert all(data.file(index).is_file() for index in range(72))
    thin = VocDataset(cells / "train", cells / "voc", "train", classes=("RBC", "WBC", "Platelets"))
    assert sum(len(objects.labels) for objects in thin.objects) == 2805  # one of them of a single pixel
    folder = shared_path("data", "DATASET", "derived", "voc", "VOC2007")
    parts = [VocDataset(folder, folder, split) for split in ("trainval", "test")]
    difficult = [objects.difficult for data in parts for objects in data.objects]
    assert [len(data) for data in parts] == [32, 25]
    assert (sum(map(len, difficult)), sum(int(flags.sum()) for flags in difficult)) == (180 + 153, 51)
    assert parts[1][3].note == ""
