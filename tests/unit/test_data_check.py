"""Broken annotation files: what is refused, and with which words; what is mended, and with which note."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskrcnn_benchmark.data.check import AnnotationError, read_annotations
from maskrcnn_benchmark.errors import DataError
from tests.unit.coco_files import coco

Change = Callable[[dict[str, Any]], object]


def saved(folder: Path, data: Any) -> Path:
    path = folder / "instances.json"
    path.write_text(json.dumps(data))
    return path


FILES = {
    "empty": (b"", "the file is empty"),
    "only a line end": (b"\n", "the file is empty"),
    "cut off": (json.dumps(coco()).encode()[:-30], "not valid JSON at line 1 column"),
    "a web page": (b"<!doctype html><title>404</title>", "web page"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "not text": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "not valid JSON"),
    "nested": (b"[" * 100_000, "not valid JSON"),
    "results": (b'[{"image_id": 1, "score": 0.5}]', "looks like a results file (list of detections)"),
    "a number": (b"7", "not COCO annotations"),
    "no lists": (
        b'{"info": {}}',
        'no "images" list; COCO annotations have images, annotations, categories, this file has info',
    ),
    "rows that are none": (
        b'{"images": [1], "annotations": [], "categories": []}',
        "images[0] is 1, not a JSON object",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_hold_no_annotations(tmp_path: Path, name: str) -> None:
    content, words = FILES[name]
    path = tmp_path / "instances.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_annotations(path)
    assert words in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: no such annotation file"):
        read_annotations(tmp_path / "none.json")


def annotation(**change: object) -> Change:
    return lambda data: data["annotations"][1].update(change)


def without(kind: str, key: str) -> Change:
    return lambda data: data[kind][1].pop(key)


PROBLEMS: dict[str, tuple[Change, str]] = {
    "no categories": (lambda d: d.pop("categories"), 'no "categories" list'),
    "no pictures": (lambda d: d.update(images=[], annotations=[]), 'the "images" list is empty'),
    "no classes": (lambda d: d.update(categories=[], annotations=[]), 'the "categories" list is empty'),
    "unknown picture": (annotation(image_id=9), "annotations[1] (id 2): image_id 9 is not in images (ids 1-3)"),
    "picture id as text": (annotation(image_id="1"), "image_id '1' is not in images (ids 1-3)"),
    "unknown category": (
        annotation(category_id=12),
        "annotations[1] (id 2): category_id 12 is not in categories (ids 3, 7)",
    ),
    "no category": (without("annotations", "category_id"), "annotations[1] (id 2): category_id None"),
    "odd category": (annotation(category_id=[3]), "category_id [3]"),
    "duplicate pictures": (
        lambda d: d["images"].append(d["images"][0]),
        "duplicate image ids: 1; each image needs its own",
    ),
    "duplicate annotations": (annotation(id=1), "duplicate annotation ids: 1"),
    "duplicate categories": (lambda d: d["categories"].append({"id": 7, "name": "pot"}), "duplicate category ids: 7"),
    "mixed ids": (
        lambda d: (d["images"][1].update(id="b"), d.update(annotations=[])),
        "1 picture ids are text and 2 are numbers",
    ),
    "fractional id": (lambda d: d["images"][1].update(id=2.5), "images[1]: id 2.5 is neither a whole number nor text"),
    "no file name": (without("images", "file_name"), "images[1] (id 2): no file_name"),
    "odd size": (
        lambda d: d["images"][1].update(width=0),
        "images[1] (id 2): width x height is 0 x 24, which is no size",
    ),
    "no name": (without("categories", "name"), "categories[1] (id 7): no name"),
    "category id as text": (lambda d: d["categories"][1].update(id="7"), "categories[1]: id '7' is not a whole number"),
    "three numbers": (annotation(bbox=[1, 2, 3]), "annotations[1] (id 2): bbox [1, 2, 3] is not four numbers"),
    "no box": (without("annotations", "bbox"), "bbox None is not four numbers"),
    "text in a box": (annotation(bbox=["1", "2", "3", "4"]), "is not four numbers"),
    "NaN": (annotation(bbox=[1, 2, float("nan"), 4]), "bbox [1, 2, nan, 4] is not four numbers"),
    "negative width": (annotation(bbox=[9, 2, -3, 4]), "bbox [9, 2, -3, 4] has a negative width or height"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_contents_that_are_refused(tmp_path: Path, name: str) -> None:
    change, words = PROBLEMS[name]
    data = coco()
    change(data)
    with pytest.raises(DataError) as error:
        read_annotations(saved(tmp_path, data))
    assert words in str(error.value)
    assert "instances.json" in str(error.value)


def test_the_first_of_many_problems_is_told_and_the_rest_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = coco()
    for row in data["annotations"][:3]:
        row["category_id"] = 99
    with pytest.raises(AnnotationError, match=r"annotations\[0\] .* \(and 2 more problems, see above\)") as error:
        read_annotations(saved(tmp_path, data))
    assert len(error.value.problems) == 3
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3
    assert "annotations[2]" in caplog.text


def test_no_more_than_twenty_problems_are_collected(tmp_path: Path) -> None:
    data = coco(images=30)
    for row in data["annotations"]:
        row["category_id"] = 99
    with pytest.raises(AnnotationError, match="and at least 19 more problems") as error:
        read_annotations(saved(tmp_path, data))
    assert len(error.value.problems) == 20


def each(**change: object) -> Change:
    return lambda data: [row.update(change) for row in data["annotations"]]


NOTES: dict[str, tuple[Change, str]] = {
    "zero area": (
        annotation(bbox=[4, 5, 0, 8]),
        "1 box without area (first: annotations[1], id 2): left out of the targets",
    ),
    "outside": (annotation(bbox=[40, 5, 3, 8]), "1 box beyond the border of the picture (first: annotations[1], id 2)"),
    "partly outside": (
        annotation(bbox=[-4, 5, 10, 30]),
        "1 box partly outside the picture (first: annotations[1], id 2)",
    ),
    "corners": (each(bbox=[20, 14, 30, 22]), "100% of the boxes leave their picture: they look like [x1, y1, x2, y2]"),
    "id 0": (annotation(id=0), "there is an annotation with id 0: annotations renumbered from 1"),
    "no ids": (each(id=None), "there is an annotation without an id"),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_can_be_mended_is_mended_with_a_note(tmp_path: Path, name: str) -> None:
    change, words = NOTES[name]
    data = coco()
    change(data)
    found = read_annotations(saved(tmp_path, data))
    assert any(words in note for note in found.notes), found.notes
    assert len(np.unique(found.ids)) == len(found.ids)
    assert found.ids.min() >= 1
    assert (found.boxes[:, 2:] > 0).all()


def test_boxes_are_cut_at_the_border_and_rounding_is_no_matter(tmp_path: Path) -> None:
    data = coco(images=1)
    data["annotations"][0]["bbox"] = [-4, 5, 10, 30]
    data["annotations"][1]["bbox"] = [20, 2, 12.2, 12]
    found = read_annotations(saved(tmp_path, data))
    np.testing.assert_allclose(found.boxes, [[0, 5, 6, 19], [20, 2, 12, 12]])
    assert len(found.notes) == 1


def test_a_good_file_gives_its_columns_and_no_note(tmp_path: Path) -> None:
    data = coco()
    data["images"].reverse()
    data["annotations"][0]["iscrowd"] = 1
    del data["annotations"][1]["iscrowd"]
    found = read_annotations(saved(tmp_path, data))
    assert found.notes == ()
    assert [image["id"] for image in found.images] == [1, 2, 3]
    assert found.picture.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.category.tolist() == [0, 1] * 3
    assert found.crowd.tolist() == [True] + [False] * 5
