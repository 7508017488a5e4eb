"""COCO-format data sets: order, labels, targets; Roboflow exports, ids from 0, other category names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_benchmark.data.datasets.coco import CocoDataset
from maskrcnn_benchmark.data.datasets.picture_rows import PictureRows
from maskrcnn_benchmark.errors import DataError
from tests.unit.coco_files import coco, write


def dataset(folder: Path, data: dict[str, Any], **options: Any) -> CocoDataset:
    return CocoDataset(folder, write(folder, data), **options)


def test_every_picture_in_the_order_of_its_id(tmp_path: Path) -> None:
    data = coco()
    data["images"].reverse()
    data["annotations"] = data["annotations"][:2]
    found = dataset(tmp_path, data, name="mine")
    assert [found[i].meta.image_id for i in range(len(found))] == [1, 2, 3]
    assert [len(found[i].target) for i in range(3)] == [2, 0, 0], "pictures without boxes stay"
    sample = found[0]
    assert sample.meta.orig_size == (24, 32) == (sample.image.height, sample.image.width)
    assert (sample.meta.dataset, sample.meta.file) == ("mine", str(tmp_path / "1.png"))


def test_rows_of_pictures_come_back_as_they_were() -> None:
    names, ids = ["a/ü 1.png", "", "n02123045/n02123045_9.JPEG"], [7, 9, 2**40]
    rows = [{"id": i, "file_name": name, "width": 5, "height": 4} for i, name in zip(ids, names, strict=True)]
    rows[1] |= {"height": None}
    for ids_now in (ids, ["7", 9, 2**70]):
        found = PictureRows([{**row, "id": i} for row, i in zip(rows, ids_now, strict=True)])
        assert [found.image_id(i) for i in range(3)] == ids_now
        assert [found.name(i) for i in (0, 1, 2, -1)] == [*names, names[-1]]
        assert [found.size(i) for i in range(3)] == [(4, 5), None, (4, 5)]
    assert all(type(PictureRows(rows).image_id(i)) is int for i in range(3))
    assert len(PictureRows([])) == 0


def test_boxes_hold_their_last_pixel_unless_told_otherwise(tmp_path: Path) -> None:
    target = dataset(tmp_path, coco())[0].target
    torch.testing.assert_close(target.boxes, torch.tensor([[4.0, 5, 13, 12], [20, 2, 25.5, 13]]))
    plain = dataset(tmp_path, coco(), plus_one=False)[0].target
    torch.testing.assert_close(plain.boxes, torch.tensor([[4.0, 5, 14, 13], [20, 2, 26.5, 14]]))


def test_labels_count_from_1_in_the_order_of_the_list(tmp_path: Path) -> None:
    data = coco()
    data["categories"].reverse()
    found = dataset(tmp_path, data)
    assert found.categories == [(7, "jar"), (3, "cup")]
    assert found.label_to_category == {1: 7, 2: 3}
    assert found.prompt_categories == [(1, "jar"), (2, "cup")]
    assert found[0].target.labels.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"iscrowd": 1}, ""),
        ({"bbox": [4, 5, 0, 0]}, "1 box without area"),
        ({"bbox": [4, 5, 1, 8]}, "1 box of at most one pixel in width or height"),
        ({"bbox": [50, 5, 4, 8]}, "1 box beyond the border"),
    ],
)
def test_boxes_that_are_no_targets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], note: str
) -> None:
    data = coco()
    data["annotations"][0].update(change)
    with caplog.at_level(logging.WARNING):
        found = dataset(tmp_path, data)
    assert found[0].target.labels.tolist() == [2]
    assert note in caplog.text
    assert bool(found.notes) == bool(note)


def test_the_category_0_of_a_roboflow_export_is_left_out_and_labels_do_not_shift(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = coco()
    data["categories"].insert(0, {"id": 0, "name": "dishes", "supercategory": "none"})
    found = dataset(tmp_path, data)
    assert found.label_to_category == {1: 3, 2: 7}
    assert found[0].target.labels.tolist() == [1, 2]
    assert [row["id"] for row in found.evaluation_categories] == [3, 7]
    assert "category id 0 ('dishes') has no annotations" in caplog.text


def test_ids_from_0_are_classes_when_boxes_have_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = coco()
    data["categories"] = [{"id": 0, "name": "cup"}, {"id": 1, "name": "jar"}]
    for row in data["annotations"]:
        row.update(category_id={3: 0, 7: 1}[row["category_id"]], id=row["id"] - 1)
    for row in data["images"]:
        row["id"] -= 1
    for row in data["annotations"]:
        row["image_id"] -= 1
    found = dataset(tmp_path, data)
    assert found.label_to_category == {1: 0, 2: 1}
    assert found[0].meta.image_id == 0
    assert found[0].target.labels.tolist() == [1, 2]
    assert "renumbered from 1" in caplog.text


def test_only_a_background_is_nothing_to_look_for(tmp_path: Path) -> None:
    data = coco() | {"annotations": [], "categories": [{"id": 0, "name": "x"}]}
    with pytest.raises(DataError, match="no category is left besides the background"):
        dataset(tmp_path, data)


def test_picture_ids_may_be_text(tmp_path: Path) -> None:
    data = coco()
    for row in data["images"]:
        row["id"] = f"img-{row['id']}"
    for row in data["annotations"]:
        row["image_id"] = f"img-{row['image_id']}"
    found = dataset(tmp_path, data)
    assert [found[i].meta.image_id for i in range(3)] == ["img-1", "img-2", "img-3"]
    assert len(found[2].target) == 2


def test_sizes_are_read_from_the_picture_when_the_file_has_none(tmp_path: Path) -> None:
    data = coco()
    path = write(tmp_path, data)
    for row in data["images"]:
        del row["width"], row["height"]
    found = CocoDataset(tmp_path, write(tmp_path, data))
    assert path.exists()
    assert found.size(0) is None
    assert found[0].meta.orig_size == (24, 32)


def test_override_gives_names_and_order_but_not_those_of_the_evaluation(tmp_path: Path) -> None:
    other = [{"id": 7, "name": "glass jar"}, {"id": 3, "name": "tea cup"}]
    found = dataset(tmp_path, coco(), override_categories=other)
    assert found.prompt_categories == [(1, "glass jar"), (2, "tea cup")]
    assert found.label_to_category == {1: 7, 2: 3}
    assert found[0].target.labels.tolist() == [2, 1]
    assert [row["name"] for row in found.evaluation_categories] == ["cup", "jar"]


def test_override_may_name_the_background_too(tmp_path: Path) -> None:
    data = coco()
    data["categories"].insert(0, {"id": 0, "name": "dishes"})
    other = [{"id": 0, "name": "dishes"}, {"id": 3, "name": "tea cup"}, {"id": 7, "name": "jar"}]
    assert dataset(tmp_path, data, override_categories=other).prompt_categories == [(1, "tea cup"), (2, "jar")]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ([{"id": 3, "name": "cup"}], "lacks id 7: its 1 categories must have the ids of the 2 categories"),
        ([{"id": i, "name": "x"} for i in (3, 7, 8, 9)], "has in addition ids 8-9"),
        ([{"id": 1, "name": "cup"}, {"id": 2, "name": "jar"}], "lacks ids 3, 7 and has in addition ids 1-2"),
        ([{"id": 3, "name": "cup"}, {"id": 7, "name": "a"}, {"id": 7, "name": "b"}], "an id is there twice"),
        ([{"name": "cup"}, {"id": 7, "name": "jar"}], "needs a whole number as id"),
    ],
)
def test_an_override_for_other_ids_is_refused(tmp_path: Path, other: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(DataError, match=r"DATASETS\.OVERRIDE_CATEGORY") as error:
        dataset(tmp_path, coco(), override_categories=other)
    assert words in str(error.value)


def test_a_missing_picture_is_named_with_its_id(tmp_path: Path) -> None:
    found = dataset(tmp_path, coco())
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png \(image id 2\): missing"):
        found[1]
