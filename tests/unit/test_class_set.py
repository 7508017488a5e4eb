"""Training data of a detector that knows its classes by number: from names of data sets to batches."""

from __future__ import annotations

import base64
import logging
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.box_files import write_npz
from maskrcnn_benchmark.data.training import TrainingData, build_training_data
from maskrcnn_benchmark.data.transforms import TrainTransform
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.structures import ImageMeta, Target
from tests.unit.coco_files import coco, write
from tests.unit.dap_files import NAMES, closed_config, sizes, table, write_binary, write_folder, write_split
from tests.unit.training_files import as_captions, training_config
from tests.unit.voc_files import voc_object, write_voc

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MB_CACHE", str(tmp_path / "cache"))


def labelled(root: Path) -> dict[str, Row]:
    """An entry of each kind with pictures of one class each."""
    binary, tax, folder = root / "in", root / "tax", write_folder(root / "dirs")
    write_binary(binary, 6, table(6))
    write_split(tax, 0, 6, table(6))
    write_npz(root / "dirs.npz", table(6))
    one = {"kind": "imagenet", "img_dir": str(binary), "ann_file": str(binary)}
    split = {"kind": "imagenet22k", "img_dir": str(tax), "ann_file": str(tax)}
    dirs = {"kind": "image_labels", "img_dir": str(folder), "ann_file": str(folder)}
    return {
        "one": one | {"boxes": "train.cam3nms8xyxy.npz"},
        "one_whole": one,
        "tsv": split | {"boxes": "cam1nms8xyxy", "order_seed": 3},
        "tsv_labels": split,
        "dirs": dirs | {"boxes": str(root / "dirs.npz")},
        "dirs_whole": dirs,
    }


def voc(folder: Path, name: str = "cat") -> Row:
    """Three pictures: two objects, one of them difficult; a difficult one alone; none."""
    write_voc(
        folder,
        {
            "a": [voc_object(name, 1, 1, 20, 10), voc_object(name, 5, 5, 9, 9, difficult=1)],
            "b": [voc_object(name, 1, 1, 20, 10, difficult=1)],
            "c": [],
        },
        split="train",
    )
    return {"kind": "voc", "img_dir": str(folder), "ann_file": str(folder), "split": "train"}


def items(data: TrainingData, number: int = 0) -> list[Any]:
    return [data.sets[number].dataset[index].target for index in range(len(data.sets[number]))]


@pytest.mark.parametrize("name", ["one", "one_whole", "tsv", "tsv_labels", "dirs", "dirs_whole"])
def test_each_kind_gives_batches_without_text(tmp_path: Path, name: str) -> None:
    cfg = closed_config(tmp_path, {name: labelled(tmp_path)[name]})
    data = build_training_data(cfg, None)
    assert data.classes == (("0", "1", "2") if name.startswith("one") else NAMES)
    assert (data.plan.samples, data.plan.batches) == (6, 3)
    seen = 0
    for batch in data.loader(0):
        batch = data.prepare(batch, "cpu")
        assert batch.text is None
        assert batch.images.pixels.dtype == torch.float32
        assert all(side % 32 == 0 for side in batch.images.pixels.shape[2:])
        for target in batch.targets:
            assert min(target.meta.size) in (32, 48)
            assert len(target) > 0
            assert set(target.labels.tolist()) <= {1, 2, 3}
            assert target.boxes.max() <= max(target.meta.size)
            seen += 1
    assert seen == 6


def test_the_names_of_the_released_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_binary(tmp_path / "datasets" / "imagenet2012Full", 6, table(6))
    write_split(tmp_path / "datasets" / "TaxImageNet22kSplit64", 0, 6, table(6))
    monkeypatch.setenv("DATASET", str(tmp_path))
    opts = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_BOX_HEAD.NUM_CLASSES"]
    for name, classes in (("imagenetcls_train_cam3nms8xyxy", 1001), ("TaxImageNet22kSplit64_cam1nms8xyxy", 4)):
        cfg = load_cfg(None, opts=[*opts, str(classes), "DATASETS.TRAIN", f"('{name}',)"])
        data = build_training_data(cfg, None)
        assert len(data.classes) == classes - 1
        assert data.plan.samples == 6
        made = table(6)
        for index, target in enumerate(items(data)):
            assert (target.boxes.numpy() == made.boxes[made.rows(index)]).all()


def test_voc_without_difficult_objects(tmp_path: Path) -> None:
    cfg = closed_config(tmp_path, {"a": voc(tmp_path / "a"), "b": voc(tmp_path / "b", "dog")}, classes=20)
    data = build_training_data(cfg, None)
    assert data.classes[:2] == ("aeroplane", "bicycle")
    assert [len(target) for target in items(data)] == [1, 0, 0]
    assert items(data)[0].boxes.tolist() == [[0, 0, 19, 9]]
    assert [items(data)[0].labels.tolist(), items(data, 1)[0].labels.tolist()] == [[8], [12]]
    batches = list(data.loader(0))
    assert sorted(len(target) for batch in batches for target in batch.targets) == [0, 0, 0, 0, 1, 1]


def test_coco_without_crowds_and_empty_pictures(tmp_path: Path) -> None:
    tree = coco(4)
    rows = [row for row in tree["annotations"] if row["image_id"] != 2]
    for row in rows:
        if row["image_id"] == 3:
            row["bbox"][2] = 1  # one pixel wide
    rows[0]["iscrowd"] = 1
    path = write(tmp_path / "c", {**tree, "annotations": rows})
    names = [row["name"] for row in tree["categories"]]
    entry = {"kind": "coco", "img_dir": str(tmp_path / "c"), "ann_file": str(path)}
    data = build_training_data(closed_config(tmp_path, {"c": entry}, classes=len(names)), None)
    assert data.classes == tuple(names)
    kept = [[row for row in rows if row["image_id"] == i and not row.get("iscrowd")] for i in (1, 4)]
    for target, mine in zip(items(data), kept, strict=True):
        x, y, w, h = np.array([row["bbox"] for row in mine]).T
        assert target.boxes.tolist() == np.stack([x, y, x + w - 1, y + h - 1], 1).tolist()


def test_classes_that_do_not_fit(tmp_path: Path) -> None:
    rows = labelled(tmp_path)
    with pytest.raises(ConfigError, match=r"MODEL.ROI_BOX_HEAD.NUM_CLASSES 6 .*for 5 classes.* has 3 .ape, bear, cow"):
        build_training_data(closed_config(tmp_path, {"dirs": rows["dirs"]}, classes=5), None)
    with pytest.raises(DataError, match=r"train.binary.label:3: n00000002_2 has label 2 \(from 0\), but .* 2 classes"):
        build_training_data(closed_config(tmp_path, {"one": rows["one"]}, classes=2), None)
    with pytest.raises(DataError, match=r"cam1nms8xyxy.pth:3: p0_2 has label 2"):
        build_training_data(closed_config(tmp_path, {"tsv": rows["tsv"]}, classes=2), None)
    with pytest.raises(ConfigError, match=r"DATASETS.TRAIN: a class is '0' in 'one' and 'ape' in 'dirs'"):
        build_training_data(closed_config(tmp_path, {key: rows[key] for key in ("one", "dirs")}), None)


def test_names_may_be_written_as_in_lvis(tmp_path: Path) -> None:
    entries = {}
    for folder, ends in (("a", "{} one"), ("b", "{}_One")):
        tree = coco(2)
        tree["categories"] = [{**row, "name": ends.format(row["name"])} for row in tree["categories"]]
        path = write(tmp_path / folder, tree)
        entries[folder] = {"kind": "coco", "img_dir": str(path.parent), "ann_file": str(path)}
    cfg = closed_config(tmp_path, entries, classes=len(tree["categories"]))
    assert build_training_data(cfg, None).classes == tuple(
        f"{row['name'].removesuffix('_One')} one" for row in tree["categories"]
    )


def test_entries_that_are_refused(tmp_path: Path) -> None:
    rows = labelled(tmp_path)
    refused = [
        (as_captions(tmp_path / "m"), r"kind 'flickr': a detector that reads no text can be trained with coco, voc"),
        (rows["tsv"] | {"order_seed": "x"}, "order_seed is 'x', not a whole number from 0"),
        (rows["tsv_labels"] | {"class_base": 2}, "class_base is 2, not 0 or 1"),
        (rows["one"] | {"class_base": 1}, "nothing reads its key 'class_base' when it is of kind 'imagenet'"),
        (rows["dirs"] | {"boxes": "away.npz"}, r"boxes 'away.npz' not found"),
        (rows["one"] | {"ann_file": str(tmp_path / "in" / "train.binary.label")}, "is not a folder"),
    ]
    for row, told in refused:
        with pytest.raises(DataError, match=f"'?x'?.*{told}"):
            build_training_data(closed_config(tmp_path, {"x": row}), None)


def test_a_detector_that_reads_text_refuses_pictures_without_words(tmp_path: Path) -> None:
    cfg = training_config(tmp_path, {"x": labelled(tmp_path)["one"]})
    with pytest.raises(DataError, match=r"'x' is of kind 'imagenet': a detector that reads text can be trained with"):
        build_training_data(cfg, object())  # type: ignore[arg-type]  # a tokenizer, which is not used


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_that_were_replaced_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    rows = labelled(tmp_path)
    path = tmp_path / "tax" / "trainval_0_64.tsv"
    lines = path.read_text().splitlines(keepends=True)
    key = lines[2].split("\t")[0]
    lines[2] = f"{key}\t[]\t{base64.b64encode(b'no picture').decode()}\n"
    path.write_text("".join(lines))
    path.with_suffix(".lineidx").unlink()
    data = build_training_data(closed_config(tmp_path, {"tsv": rows["tsv"]}), None)
    with caplog.at_level(logging.WARNING):
        found = [target.meta.image_id for batch in data.loader(0, workers=workers) for target in batch.targets]
    assert sorted(found) == ["p0_0", "p0_1", "p0_3", "p0_3", "p0_4", "p0_5"]
    told = [record.getMessage() for record in caplog.records if "odd pictures" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("tsv: odd pictures: 1 in this epoch, such as ")
    assert f"{path}:3 (key 'p0_2'): not a picture, or of a format that cannot be read: {path}:4 is used" in told[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_line_stops_with_one_line(tmp_path: Path, workers: int) -> None:
    rows = labelled(tmp_path)
    path = tmp_path / "tax" / "trainval_0_64.tsv"
    lines = path.read_text().splitlines(keepends=True)
    lines[2] = lines[2][:50] + "\n"
    path.write_text("".join(lines))
    path.with_suffix(".lineidx").unlink()
    data = build_training_data(closed_config(tmp_path, {"tsv": rows["tsv"]}), None)
    with pytest.raises(DataError, match=rf"^{path}:3 \(key 'p0_2'\): .*: mend or replace the file[^\n]*$"):
        list(data.loader(0, workers=workers))


def test_a_picture_and_its_boxes_are_turned_alike() -> None:
    picture = np.zeros((60, 90, 3), np.uint8)
    picture[12:18, 30:51] = 255
    target = Target(torch.tensor([[30.0, 12, 50, 17]]), torch.tensor([1]), ImageMeta(1, (60, 90), (60, 90)))
    places = set()
    for seed in range(12):
        transform = TrainTransform((60,), 1000, flip=0.5, flip_down=0.5)
        pixels, turned = transform(Image.fromarray(picture), target, Random(seed))
        rows, columns = np.nonzero(pixels[0].numpy())
        assert turned.boxes.tolist() == [[columns.min(), rows.min(), columns.max(), rows.max()]]
        places.add((int(columns.min()), int(rows.min())))
    assert places == {(30, 12), (39, 12), (30, 42), (39, 42)}


def test_sizes_and_flips_of_the_config(tmp_path: Path) -> None:
    row = {"one": labelled(tmp_path)["one"]}
    cfg = closed_config(tmp_path, row, "INPUT.MIN_SIZE_TRAIN", 24, "INPUT.VERTICAL_FLIP_PROB_TRAIN", 1.0)
    transform = build_training_data(cfg, None).sets[0].transform
    assert transform == TrainTransform((24,), 96, 0.5, 1.0)
    cfg = closed_config(tmp_path, row, "INPUT.MIN_SIZE_TRAIN", "(96, 160)", "INPUT.MAX_SIZE_TRAIN", 200)
    assert build_training_data(cfg, None).sets[0].transform == TrainTransform((96, 160), 200, 0.5)


def original_batches(groups: np.ndarray, share: int, world: int, rank: int, iterations: int) -> list[list[int]]:
    """maskrcnn-benchmark's batches of a process, by what its samplers are documented to do."""
    found: list[list[int]] = []
    while len(found) < iterations:
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(len(found))).tolist()
        each = -(-len(groups) // world)
        order += order[: each * world - len(order)]
        chunk = order[each * rank : each * (rank + 1)]
        batches: list[list[int]] = []
        for group in (False, True):
            members = [index for index in chunk if groups[index] == group]
            batches += [members[first : first + share] for first in range(0, len(members), share)]
        found += sorted(batches, key=lambda batch: chunk.index(batch[0]))
    return found[:iterations]


@pytest.mark.parametrize(("count", "world", "batch"), [(23, 2, 4), (24, 3, 6), (10, 1, 3), (7, 2, 8)])
def test_chunks_are_the_originals(tmp_path: Path, count: int, world: int, batch: int) -> None:
    write_binary(tmp_path / "in", count)
    row = {"kind": "imagenet", "img_dir": str(tmp_path / "in"), "ann_file": str(tmp_path / "in")}
    opts = ["DATALOADER.SAMPLER", "chunks", "SOLVER.IMS_PER_BATCH", batch]
    data = build_training_data(closed_config(tmp_path, {"x": row}, *opts), None)
    groups = np.array([height >= width for height, width in sizes(count)])
    for rank in range(world):
        sampler = replace(data._sampler, world=world, rank=rank)
        length = len(sampler)
        wanted = original_batches(groups, batch // world, world, rank, 3 * length)
        assert [step for epoch in range(3) for step in sampler.batches(epoch)] == wanted
        assert sampler.batches(1, 2) == wanted[length + 2 : 2 * length]
    with pytest.raises(ConfigError, match=r"SOLVER.IMS_PER_BATCH .* cannot be shared by 5 processes"):
        data.loader(0, world=5)


def test_an_unknown_sampler(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"DATALOADER.SAMPLER.*shared.*chunks"):
        closed_config(tmp_path, {}, "DATALOADER.SAMPLER", "random")
