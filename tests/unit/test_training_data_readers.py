"""What is read for training: boxes, captions, class names; and what is said about data that are broken."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from maskrcnn_benchmark.data.check import AnnotationError
from maskrcnn_benchmark.data.datasets.coco_grounding import CocoGrounding
from maskrcnn_benchmark.data.datasets.mdetr import MdetrDataset
from maskrcnn_benchmark.data.datasets.tsv import TsvDataset
from maskrcnn_benchmark.data.fewshot import pick
from maskrcnn_benchmark.data.missing import refuse_missing
from maskrcnn_benchmark.errors import DataError
from tests.unit.coco_files import coco, write
from tests.unit.training_files import CAPTION, OBJECTS, mdetr, picture, save, write_tsv


def grounding(folder: Path, data: dict[str, Any], **options: Any) -> CocoGrounding:
    return CocoGrounding(folder, write(folder, data), **options)


def captions(folder: Path, data: dict[str, Any], **options: Any) -> MdetrDataset:
    return MdetrDataset(folder, write(folder, data), **options)


# detection data


def test_boxes_of_named_classes(tmp_path: Path) -> None:
    found = grounding(tmp_path, coco(), name="mine")
    assert found.names == {1: "cup", 2: "jar"}
    sample = found[1]
    torch.testing.assert_close(sample.target.boxes, torch.tensor([[4.0, 5, 13, 12], [20, 2, 25.5, 13]]))
    assert sample.target.labels.tolist() == [1, 2]
    assert (sample.meta.image_id, sample.meta.dataset, sample.meta.orig_size) == (2, "mine", (24, 32))
    assert found.size(1) == (24, 32)
    assert found.sizes.tolist() == [[24, 32]] * 3


def test_pictures_without_a_box_to_train_on_are_left_out_and_counted(tmp_path: Path) -> None:
    data = coco(4)
    for row in data["annotations"][:2]:
        row["bbox"][2:] = [1, 8]
    data["annotations"] = [row for row in data["annotations"] if row["image_id"] != 3]
    found = grounding(tmp_path, data)
    assert [found.image_id(index) for index in range(len(found))] == [2, 4]
    assert "2 of 4 pictures have no box of more than one pixel: left out of training" in found.notes
    data["annotations"] = []
    with pytest.raises(DataError, match=r"instances\.json: none of the 4 pictures has a box to train on"):
        grounding(tmp_path, data)


def test_crowds_are_no_targets(tmp_path: Path) -> None:
    data = coco()
    data["annotations"][0]["iscrowd"] = data["annotations"][1]["iscrowd"] = 1
    assert [len(grounding(tmp_path, data)[index].target) for index in range(3)] == [0, 2, 2]


def test_boxes_are_cut_at_the_border_unless_told_otherwise(tmp_path: Path) -> None:
    data = coco()
    data["annotations"][0]["bbox"] = [-2, 5, 50, 8]
    assert grounding(tmp_path, data)[0].target.boxes[0].tolist() == [0, 5, 31, 12]
    assert grounding(tmp_path, data, clipped=False)[0].target.boxes[0].tolist() == [-2, 5, 47, 12]


def test_lvis_needs_no_file_names(tmp_path: Path) -> None:
    data = coco()
    path = write(tmp_path, data)
    for row in data["images"]:
        row["coco_url"] = f"http://images.cocodataset.org/{tmp_path.name}/{row.pop('file_name')}"
    for row in data["annotations"]:
        del row["iscrowd"]
    path.write_text(json.dumps(data))
    found = CocoGrounding(tmp_path.parent, path)
    assert found.file(0) == tmp_path / "1.png"
    assert len(found[0].target) == 2


def test_other_names_for_the_same_ids(tmp_path: Path) -> None:
    override = [{"id": 7, "name": "glass jar"}, {"id": 3, "name": "tea cup"}]
    found = grounding(tmp_path, coco(), override_categories=override)
    assert found.names == {1: "glass jar", 2: "tea cup"}
    assert found[0].target.labels.tolist() == [2, 1]
    with pytest.raises(DataError, match=r"OVERRIDE_CATEGORY lacks id 7: .*2 categories of .*instances\.json"):
        grounding(tmp_path, coco(), override_categories=override[1:])


SCENES = ([1], [1, 2], [2], [1], [3, 1], [2, 3])


@pytest.mark.parametrize(("shots", "kept"), [(0, [0, 1, 2, 3, 4, 5]), (1, [0, 1, 4]), (2, [0, 1, 2, 4, 5])])
def test_shots_are_pictures_of_a_class(shots: int, kept: list[int]) -> None:
    assert pick(SCENES, shots) == kept


def test_seeds_choose_other_shots() -> None:
    chosen = {seed: pick(SCENES, 1, seed) for seed in range(20)}
    assert all({name for index in kept for name in SCENES[index]} == {1, 2, 3} for kept in chosen.values())
    assert len({tuple(sorted(kept)) for kept in chosen.values()}) > 2
    assert pick(SCENES, 1, 5) == chosen[5]


def test_shots_of_any_category_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = coco(5)
    data["categories"] = [{"id": 900, "name": "cup"}, {"id": 0, "name": "jar"}]
    for row in data["annotations"]:
        row["category_id"] = 900 if row["category_id"] == 3 else 0
    caplog.set_level(logging.INFO)
    assert len(grounding(tmp_path, data, shots=2)) == 2
    assert "2 shots: 2 of 5 pictures, 2 to 2 of each class" in caplog.text
    grounding(tmp_path, data, shots=9)
    assert "5 to 5 of each class; there are no more of cup 5, jar 5" in caplog.text


# captions


def test_captions_and_the_words_of_each_box(tmp_path: Path) -> None:
    found = captions(tmp_path, mdetr())
    sample = found[2]
    assert sample.target.prompt.text == CAPTION
    assert sample.target.prompt.spans == (((0, 5),), ((9, 19),))
    assert sample.target.boxes.tolist() == [[4, 5, 13, 12], [0, 12, 31, 23]]
    assert sample.meta.extra == {"dataset_name": "mine"}


def test_words_go_with_their_boxes(tmp_path: Path) -> None:
    data = mdetr()
    data["annotations"][0]["bbox"] = [4, 5, 0, 8]
    sample = captions(tmp_path, data)[0]
    assert sample.target.prompt.spans == (((9, 19),),)
    assert len(sample.target) == 1


def test_several_spans_none_and_a_category_of_its_own(tmp_path: Path) -> None:
    data = mdetr()
    data["annotations"][0].update(tokens_positive=[[0, 1], [2, 5]], category_id=25)
    data["annotations"][1]["tokens_positive"] = []
    target = captions(tmp_path, data)[0].target
    assert target.prompt.spans == (((0, 1), (2, 5)), ())
    assert target.labels.tolist() == [25, 1]


def test_pictures_of_two_sources(tmp_path: Path) -> None:
    data = mdetr()
    for row, source in zip(data["images"], ("coco", "vg", "coco"), strict=True):
        row["data_source"] = source
    found = captions(tmp_path, data, vg_images=tmp_path / "gqa")
    assert [found.file(index).parent for index in range(3)] == [tmp_path, tmp_path / "gqa", tmp_path]
    with pytest.raises(DataError, match=r"missing picture .*gqa/2\.png"):
        refuse_missing(found)
    del data["images"][1]["data_source"]
    with pytest.raises(DataError, match=r'images \(id 2\): no data_source, "coco" or "vg"'):
        captions(tmp_path, data, vg_images=tmp_path / "gqa")
    assert len(captions(tmp_path, data, vg_images=tmp_path)) == 3, "one folder needs no source"


Change = Callable[[dict[str, Any]], object]
BROKEN: dict[str, tuple[Change, str]] = {
    "no caption": (lambda d: d["images"][1].pop("caption"), "images[1] (id 2): no caption"),
    "empty caption": (lambda d: d["images"][1].update(caption=" "), "images[1] (id 2): no caption"),
    "span beyond": (
        lambda d: d["annotations"][3].update(tokens_positive=[[0, 5], [9, 22]]),
        "annotations[3].tokens_positive[1] = [9, 22] but the caption has 19 characters",
    ),
    "span backwards": (
        lambda d: d["annotations"][3].update(tokens_positive=[[5, 3]]),
        "annotations[3].tokens_positive[0] = [5, 3] but the caption has",
    ),
    "span of one number": (
        lambda d: d["annotations"][3].update(tokens_positive=[[5]]),
        "annotations[3].tokens_positive[0] = [5] is not two whole numbers",
    ),
    "no spans": (lambda d: d["annotations"][3].pop("tokens_positive"), "annotations[3] (id 3): no tokens_positive"),
    "unknown picture": (lambda d: d["annotations"][3].update(image_id=9), "image_id 9 is not in images (ids 1-3)"),
    "bad box": (lambda d: d["annotations"][3].update(bbox=[1, 2]), "annotations[3] (id 3): bbox [1, 2] is not four"),
    "no boxes at all": (lambda d: d.pop("annotations"), 'no "annotations" list'),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_captions(tmp_path: Path, name: str) -> None:
    change, words = BROKEN[name]
    data = mdetr()
    change(data)
    with pytest.raises(DataError) as error:
        captions(tmp_path, data)
    assert str(error.value).startswith(f"{tmp_path / 'instances.json'}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


# tab-separated files


def test_rows_as_pictures(tmp_path: Path) -> None:
    found = TsvDataset(write_tsv(tmp_path), "mine")
    assert list(found.names.items()) == [
        (1, "dog"),
        (2, "cat"),
        (3, "car"),
        (4, "shark"),
        (5, "bow"),
        (0, "__background__"),
    ]
    sample = found[2]
    assert (sample.image.size, sample.image.getpixel((0, 0))) == ((32, 24), (102, 102, 102))
    assert sample.target.boxes.tolist() == [[4, 5, 13, 12], [20, 2, 26, 13.5]]
    assert sample.target.labels.tolist() == [1, 2]
    assert (sample.meta.image_id, sample.meta.file) == (13, f"{tmp_path / 'images.tsv'}:3")
    assert found.size(2) == (24, 32)


def test_a_list_of_lines_chooses_and_repeats(tmp_path: Path) -> None:
    found = TsvDataset(write_tsv(tmp_path, lines=[2, 2, 0]))
    assert [found[index].meta.image_id for index in range(len(found))] == [13, 13, 11]
    assert found.sizes.tolist() == [[24, 32]] * 3


def test_rows_without_boxes_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flat = [{"class": "dog", "rect": [4, 5, 4, 12]}, {"class": "dog", "rect": [40, 5, 50, 12]}]
    found = TsvDataset(write_tsv(tmp_path, objects=[*flat, {"class": "cat", "rect": [20, 2, 36, 13]}]))
    assert found[0].target.boxes.tolist() == [[20, 2, 31, 13]]
    assert "6 boxes of at most one pixel in width or height: left out of the targets" in found.notes
    assert "3 boxes partly outside the picture: cut at the border" in found.notes
    empty = TsvDataset(write_tsv(tmp_path, objects=[]))
    assert [len(empty[index].target) for index in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("text", ['{"height": 24, "width": 32}', "24 32", '[{"height": 24, "width": 32}]'])
def test_spellings_of_a_size(tmp_path: Path, text: str) -> None:
    path = write_tsv(tmp_path)
    save(tmp_path / "hw.tsv", [(str(key), text) for key in (11, 12, 13)])
    assert TsvDataset(path).size(0) == (24, 32)


def test_label_maps(tmp_path: Path) -> None:
    path = write_tsv(tmp_path)
    (tmp_path / "names.json").write_text(json.dumps({"label_to_idx": {"cat": 1, "dog": 2}}))
    assert TsvDataset(path).names == {1: "cat", 2: "dog", 0: "__background__"}
    (tmp_path / "names.tsv").write_text("cat\ndog\n")
    parts = yaml.safe_load(path.read_text())
    parts["jsondict"], parts["labelmap"] = "names.tsv", None
    path.write_text(yaml.safe_dump(parts))
    assert TsvDataset(path)[0].target.labels.tolist() == [2, 1]


def test_pictures_by_their_id(tmp_path: Path) -> None:
    """The size is h, w: the original gives w twice."""
    path = write_tsv(tmp_path)
    rows = [(f"k{i}", json.dumps({"objects": OBJECTS, "img_id": i, "img_h": 24, "img_w": 32})) for i in range(2)]
    save(tmp_path / "label.tsv", rows)
    (tmp_path / "ids.json").write_text(json.dumps({"0": 2, "1": 0}))
    parts = yaml.safe_load(path.read_text()) | {"imageid2idx": "ids.json"}
    del parts["hw"]
    path.write_text(yaml.safe_dump(parts))
    found = TsvDataset(path)
    assert [found[index].image.getpixel((0, 0))[0] for index in range(2)] == [102, 100]
    assert (found.size(0), found[0].meta.image_id) == ((24, 32), "k0")


@pytest.mark.parametrize("part", ["images", "label", "hw"])
@pytest.mark.parametrize(
    "content",
    [None, "0\n", "0\n5\n9\n", "0\nx\n", "", "0\n1\n2\n"],
    ids=["none", "short", "other", "bad", "empty", "3"],
)
def test_the_offsets_of_lines_are_made_when_they_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, part: str, content: str | None
) -> None:
    monkeypatch.setenv("MB_CACHE", "off")
    path = write_tsv(tmp_path)
    TsvDataset(path)
    beside = tmp_path / f"{part}.lineidx"
    right = beside.read_text()
    assert right.startswith("0\n")
    assert len(right.split()) == 3
    beside.unlink()
    if content is not None:
        beside.write_text(content)
    caplog.clear()
    assert TsvDataset(path)[1].meta.image_id == 12
    assert beside.read_text() == right
    assert f"{beside}: " in caplog.text
    assert not list(tmp_path.glob(".*"))


def test_offsets_older_than_their_file_are_compared_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MB_CACHE", "off")
    path = write_tsv(tmp_path, rows=300)
    TsvDataset(path)
    beside = tmp_path / "label.lineidx"
    offsets = beside.read_text().split()
    offsets[151] = str(int(offsets[151]) + 1)
    beside.write_text("\n".join(offsets))
    os.utime(beside, (1, 1))
    assert TsvDataset(path)[151].meta.image_id == 162
    assert beside.read_text().split() != offsets


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write_tsv(tmp_path)
    monkeypatch.setenv("MB_CACHE", "off")
    monkeypatch.setattr(os, "replace", refuse)
    assert TsvDataset(path)[1].meta.image_id == 12
    assert "cannot be written (Permission denied), the offsets are kept in memory" in caplog.text
    assert not list(tmp_path.glob("*lineidx"))


def test_workers_open_the_files_for_themselves(tmp_path: Path) -> None:
    found = TsvDataset(write_tsv(tmp_path))
    assert found[0].meta.image_id == 11
    again = pickle.loads(pickle.dumps(found))  # as a spawned worker gets it
    assert again[2].target.boxes.tolist() == found[2].target.boxes.tolist()
    reader, writer = os.pipe()
    if os.fork() == 0:  # the child must not move the parent's place in the file
        os.write(writer, bytes([found[2].image.getpixel((0, 0))[0]]))
        os._exit(0)
    os.wait()
    assert os.read(reader, 1) == bytes([102])
    assert found[1].image.getpixel((0, 0))[0] == 101


def objects(**change: Any) -> str:
    return json.dumps([{**OBJECTS[0], **change}])


def label_row(text: str) -> Change:
    return lambda folder: save(folder / "label.tsv", [("11", "[]"), ("12", text), ("13", "[]")])


def rows_of(name: str, *keys: str) -> Change:
    text = {"hw": "24 32", "images": picture(), "label": "[]"}[name]
    return lambda folder: save(folder / f"{name}.tsv", [(key, text) for key in keys])


BROKEN_TSV: dict[str, tuple[Any, str]] = {
    "unknown class": (
        label_row(objects(**{"class": "sharkk"})),
        "label.tsv: line 2 (key '12'): object 0: class 'sharkk' is not in names.json (closest: 'shark')",
    ),
    "not JSON": (label_row("[{]"), "label.tsv: line 2 (key '12'): its second column is not valid JSON"),
    "no objects": (label_row('{"a": 1}'), "line 2 (key '12'): its second column is no list of objects"),
    "xywh": (label_row(objects(rect=[20, 20, 5, 5])), "object 0: rect [20, 20, 5, 5] ends before it begins"),
    "three numbers": (label_row(objects(rect=[20, 20, 5])), "object 0: rect [20, 20, 5] is not four numbers"),
    "nan": (label_row(objects(rect=[0, 0, float("nan"), 5])), "is not four numbers"),
    "one column": (lambda f: save(f / "label.tsv", [("11",), ("12",), ("13",)]), "line 1 (key '11'): has one column"),
    "fewer sizes": (rows_of("hw", "11", "12"), "label.tsv has 3 rows,"),
    "other sizes": (rows_of("hw", "11", "13", "12"), "hw.tsv: line 2 has the key '13', label.tsv has '12' there"),
    "no size": (lambda f: save(f / "hw.tsv", [(k, "{}") for k in ("11", "12", "13")]), "hw.tsv: line 1 (key '11')"),
    "fewer pictures": (rows_of("images", "11", "12"), "only 2: they must be of one set"),
    "other pictures": (rows_of("images", "11", "13", "12"), "images.tsv: line 2 has the key '13', label.tsv has '12'"),
    "empty file": (lambda f: (f / "label.tsv").write_text(""), "label.tsv: the file is empty"),
    "no label map": (lambda f: (f / "names.json").write_text("[]"), "names.json: no label map"),
    "a label as text": (lambda f: (f / "names.json").write_text('{"dog": "1"}'), "the label of 'dog' is '1'"),
    "a part is missing": (lambda f: (f / "label.tsv").unlink(), "set.yaml: label: "),
    "no part": (lambda f: (f / "set.yaml").write_text("img: images.tsv"), "set.yaml: no label; it has img"),
    "not a YAML": (lambda f: (f / "set.yaml").write_text("a: [b"), "set.yaml: not a YAML file"),
}


@pytest.mark.parametrize("name", BROKEN_TSV)
def test_broken_tables(tmp_path: Path, name: str) -> None:
    change, words = BROKEN_TSV[name]
    path = write_tsv(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError) as error:
        TsvDataset(path)
    assert words in str(error.value)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


def test_lines_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lines\.tsv: line 2: '3' is no row of label\.tsv \(0 to 2\)"):
        TsvDataset(write_tsv(tmp_path, lines=[0, 3]))
    with pytest.raises(DataError, match="lists no row"):
        TsvDataset(write_tsv(tmp_path, lines=[]))


def test_many_mistakes_are_told_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(AnnotationError) as error:
        TsvDataset(write_tsv(tmp_path, rows=50, objects=[{"class": "dogg", "rect": [1, 2, 3, 4]}]))
    assert len(error.value.problems) == 20
    assert "(and at least 19 more problems, see above)" in str(error.value)
    assert "line 20 (key '30')" in caplog.text


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("%%%", "not base64"),
        (picture()[:40], "damaged|not a picture"),
        ("", "the file is empty"),
        ("AAAA", "not a pic"),
    ],
)
def test_pictures_that_cannot_be_read_are_named(tmp_path: Path, column: str, words: str) -> None:
    path = write_tsv(tmp_path)
    save(tmp_path / "images.tsv", [("11", picture()), ("12", column), ("13", picture())])
    with pytest.raises(DataError, match=rf"images\.tsv:2 \(key '12'\): ({words})"):
        TsvDataset(path)[1]


def test_keys_that_stray_later_are_seen_when_the_picture_is_read(tmp_path: Path) -> None:
    path = write_tsv(tmp_path, rows=300)
    keys = [str(11 + row) for row in range(300)]
    keys[149], keys[150] = keys[150], keys[149]
    save(tmp_path / "images.tsv", [(key, picture()) for key in keys])
    with pytest.raises(DataError, match=r"images\.tsv:150 \(key '160'\): is a picture with the key '161'"):
        TsvDataset(path)[149]
