"""How often classes are drawn for the losses of a step."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from maskrcnn_benchmark import mrb
from maskrcnn_benchmark.data.class_counts import class_chances
from maskrcnn_benchmark.data.datasets.labelled import LabelledPictures, LabelOptions
from maskrcnn_benchmark.data.drawn import CLASSES
from maskrcnn_benchmark.data.label_set import LabelSet
from maskrcnn_benchmark.data.label_transforms import ResizeShortestEdge
from maskrcnn_benchmark.errors import ConfigError, DataError
from tests.narrow_decola import narrow_cfg


def labelled(folder: Path, told: int | None = None, names_only: bool = False) -> LabelSet:
    """Three pictures: class 1 twice in the first one, and in the second one with class 3."""
    categories: list[dict[str, object]] = [{"id": k, "name": name} for k, name in enumerate(CLASSES, 1)]
    if told is not None:
        categories = [{**row, "image_count": told + k} for k, row in enumerate(categories)]
    rows = [(1, 1), (1, 1), (2, 1), (2, 3)]
    box = {"bbox": [1, 2, 10, 12], "area": 120, "iscrowd": 0}
    data = {
        "images": [
            {"id": k, "file_name": f"{k}.png", "height": 64, "width": 64, "pos_category_ids": [8]} for k in (1, 2, 3)
        ],
        "categories": categories,
        "annotations": [{"id": k, "image_id": i, "category_id": c, **box} for k, (i, c) in enumerate(rows, 1)],
    }
    file = folder / f"{told}_{names_only}.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    dataset = LabelledPictures(folder, file, "drawn", LabelOptions(image_labels=names_only))
    return LabelSet(dataset, ResizeShortestEdge((64,), 64), tuple(CLASSES))


def test_pictures_are_counted_once_for_each_class(tmp_path: Path) -> None:
    cfg = narrow_cfg("phase 2", tmp_path, MODEL__FED_LOSS__ENABLED=True)
    chances = class_chances(cfg, [labelled(tmp_path, names_only=True), labelled(tmp_path)])
    assert chances is not None
    torch.testing.assert_close(chances, torch.tensor([2.0, 0, 1, 0, 0, 0, 0, 0], dtype=torch.float64).sqrt())


def test_what_the_categories_say_goes_before(tmp_path: Path) -> None:
    cfg = narrow_cfg("phase 2", tmp_path, MODEL__FED_LOSS__ENABLED=True, MODEL__FED_LOSS__FREQ_POWER=1.0)
    chances = class_chances(cfg, [labelled(tmp_path, told=5)])
    assert chances is not None
    assert chances.tolist() == [5, 6, 7, 8, 9, 10, 11, 12]


def test_without_rare_boxes_classes_are_drawn_as_in_all_of_lvis(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rare classes have no boxes on LVIS-base, and are drawn all the same: the file keeps their pictures."""
    labelled(tmp_path, told=5)
    whole = tmp_path / "lvis_v1_train.json"
    data = json.loads((tmp_path / "5_False.json").read_text())
    frequency = dict.fromkeys((1, 3), "r")
    data["categories"] = [{**row, "frequency": frequency.get(row["id"], "f")} for row in data["categories"]]
    whole.write_text(json.dumps(data))
    assert mrb.main(["data", "lvis", str(whole)]) == 0
    base = tmp_path / "lvis_v1_train_norare.json"
    assert json.loads(base.read_text())["annotations"] == []
    cfg = narrow_cfg("phase 2", tmp_path, MODEL__FED_LOSS__ENABLED=True, MODEL__FED_LOSS__FREQ_POWER=1.0)
    part = LabelSet(LabelledPictures(tmp_path, base, "base"), ResizeShortestEdge((64,), 64), tuple(CLASSES))
    with caplog.at_level(logging.INFO):
        chances = class_chances(cfg, [part])
    assert chances is not None
    assert chances.tolist() == [5, 6, 7, 8, 9, 10, 11, 12]
    assert f"drawn of 8, by image_count in the categories of {base}" in caplog.text


def test_the_log_says_when_the_training_pictures_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = narrow_cfg("phase 2", tmp_path, MODEL__FED_LOSS__ENABLED=True)
    with caplog.at_level(logging.INFO):
        class_chances(cfg, [labelled(tmp_path)])
    assert "drawn of 8, by the pictures of drawn; 6 of them have none and are never drawn" in caplog.text


def test_no_classes_are_drawn_where_all_count(tmp_path: Path) -> None:
    assert class_chances(narrow_cfg("phase 2", tmp_path), [labelled(tmp_path)]) is None


def test_a_file_of_counts_must_be_of_the_classes(tmp_path: Path) -> None:
    file = tmp_path / "counts.json"
    cfg = narrow_cfg("phase 2", tmp_path, MODEL__FED_LOSS__ENABLED=True, MODEL__FED_LOSS__CAT_FREQ_PATH=file)
    rows = [{"id": k, "image_count": k * k} for k in range(8, 0, -1)]
    file.write_text(json.dumps(rows))
    chances = class_chances(cfg, [])
    assert chances is not None
    assert chances.tolist() == pytest.approx(range(1, 9))
    file.write_text(json.dumps(rows[1:]))
    with pytest.raises(ConfigError, match=r"CAT_FREQ_PATH .* has 7 classes, the network 8"):
        class_chances(cfg, [])
    file.write_text(json.dumps({"a": 1}))
    with pytest.raises(DataError, match="is not a list of categories"):
        class_chances(cfg, [])
