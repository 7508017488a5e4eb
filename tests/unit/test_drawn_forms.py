"""The drawn world as data sets: read back by the readers, scored with the truth, written by a command."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as mask_api

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.catalog import Entry, resolve
from maskrcnn_benchmark.data.datasets.captions import CaptionSet
from maskrcnn_benchmark.data.datasets.coco import CocoDataset
from maskrcnn_benchmark.data.datasets.coco_grounding import CocoGrounding
from maskrcnn_benchmark.data.datasets.lvis import LvisDataset
from maskrcnn_benchmark.data.datasets.mdetr import MdetrDataset
from maskrcnn_benchmark.data.datasets.tsv import TsvDataset
from maskrcnn_benchmark.data.datasets.voc import VocDataset
from maskrcnn_benchmark.data.drawn import (
    CLASSES,
    FORMS,
    NEVER_SEEN,
    Mix,
    Split,
    World,
    Written,
    write_coco,
)
from maskrcnn_benchmark.data.drawn.__main__ import main
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.evaluation.build import Protocols, make_evaluator
from maskrcnn_benchmark.evaluation.coco import CocoEvaluator
from maskrcnn_benchmark.evaluation.flickr import FlickrEvaluator
from maskrcnn_benchmark.evaluation.lvis import LvisEvaluator
from maskrcnn_benchmark.evaluation.refexp import RefExpEvaluator
from maskrcnn_benchmark.evaluation.voc import VocEvaluator
from maskrcnn_benchmark.structures import Detections, ImageMeta
from tests.unit.drawn_reading import draw_part, referents

SMALL = (96, 128)
DIGESTS = {
    "coco": "d15b161584622caa",
    "lvis": "cdeb1024d59fe3bc",
    "flickr": "d5b7f05cb03812d8",
    "mixed": "ef4ae4d665f7c6cb",
    "refcoco": "32150953644f5b71",
    "phrasecut": "40664ea351068222",
    "voc": "f73513af50dee78f",
    "tsv": "63aad9168c1cd401",
    "labels": "5aa04f231fafad04",
}


def test_the_same_bytes_on_every_machine(tmp_path: Path) -> None:
    """The digests were taken once; another one here means that everybody's drawn data have changed."""
    digests = {}
    for form, write in FORMS.items():
        write(tmp_path / form, World(7, Split.SEEN, SMALL), 3)
        digest = hashlib.sha256()
        for path in sorted((tmp_path / form).rglob("*")):
            if path.is_file():
                digest.update(path.relative_to(tmp_path).as_posix().encode() + path.read_bytes())
        digests[form] = digest.hexdigest()[:16]
    assert digests == DIGESTS


def written(tmp_path: Path, form: str, count: int = 12, **options: object) -> Written:
    world = World(2, options.pop("split", Split.SEEN), SMALL, **options)
    return FORMS[form](tmp_path / form, world, count)


def found(boxes: torch.Tensor, labels: torch.Tensor, meta: ImageMeta, masks: torch.Tensor | None = None) -> Detections:
    return Detections(boxes.float(), torch.ones(len(boxes)), labels, meta, masks)


def truth_of(dataset: CocoDataset | VocDataset) -> list[Detections]:
    samples = [dataset[index] for index in range(len(dataset))]
    return [found(sample.target.boxes, sample.target.labels, sample.meta) for sample in samples]


def test_coco(tmp_path: Path) -> None:
    done = written(tmp_path, "coco", classes=CLASSES)
    dataset = CocoDataset(tmp_path / "coco", done.annotations)
    assert not dataset.notes
    assert [name for _, name in dataset.categories] == list(CLASSES)
    evaluator = CocoEvaluator(done.annotations, dataset.label_to_category)
    evaluator.update(truth_of(dataset))
    assert evaluator.summary()["AP"] == pytest.approx(1)
    assert {label for sample in truth_of(dataset) for label in sample.labels.tolist()} == set(range(1, 9))
    assert len(CocoGrounding(tmp_path / "coco", done.annotations)) == 12


def test_coco_masks(tmp_path: Path) -> None:
    done = write_coco(tmp_path, World(2, Split.UNSEEN, SMALL, ("circle", "star")), 6)
    data = json.loads(done.annotations.read_text())
    evaluator = CocoEvaluator(data, {1: 1, 2: 2}, iou_types=("segm",), plus_one=False)
    world = World(2, Split.UNSEEN, SMALL, ("circle", "star"))
    for picture in world.pictures(6):
        items = [item for item in picture.items if world.class_of(item) is not None]
        masks = torch.from_numpy(np.stack([item.mask for item in items]))
        labels = torch.tensor([1 + world.class_of(item) for item in items])
        meta = ImageMeta(picture.number, SMALL, SMALL)
        evaluator.update([found(torch.tensor([item.box for item in items]), labels, meta, masks)])
    assert evaluator.summary()["AP"] == pytest.approx(1)
    assert all(row["area"] == mask_area(row["segmentation"]) for row in data["annotations"])


def mask_area(parts: list[list[float]]) -> int:
    return int(mask_api.area(mask_api.merge(mask_api.frPyObjects(parts, *SMALL))))


def test_lvis(tmp_path: Path) -> None:
    done = written(tmp_path, "lvis", count=60, mix=Mix.LONG_TAIL)
    data = json.loads(done.annotations.read_text())
    there = {(row["image_id"], row["category_id"]) for row in data["annotations"]}
    assert {row["frequency"] for row in data["categories"]} == set("rcf")
    assert any(row["not_exhaustive_category_ids"] for row in data["images"])
    assert all(row["neg_category_ids"] for row in data["images"])
    assert not any((row["id"], absent) in there for row in data["images"] for absent in row["neg_category_ids"])
    for row in data["categories"]:
        assert row["image_count"] == sum(category == row["id"] for _, category in there)
    dataset = LvisDataset(tmp_path / "lvis", done.annotations, plus_one=False)
    evaluator = LvisEvaluator(done.annotations)
    evaluator.update(truth_of(dataset))
    numbers = evaluator.summary()
    assert [numbers[name] for name in ("AP", "APr", "APc", "APf")] == [pytest.approx(1)] * 4


def test_flickr(tmp_path: Path) -> None:
    done = written(tmp_path, "flickr")
    dataset = CaptionSet(tmp_path / "flickr" / "pictures", done.annotations)
    assert not dataset.notes
    assert len(dataset) == 12
    assert dataset[0].image.size == (128, 96)
    data = json.loads(done.annotations.read_text())
    evaluator = FlickrEvaluator(tmp_path / "flickr" / "entities", "seen", ("separate",))
    for entry, row in enumerate(data["images"]):
        spans = [spans[0] for spans in row["tokens_positive_eval"]]
        mine = [other for other in data["annotations"] if other["image_id"] == row["id"]]
        boxes = torch.tensor([other["bbox"] for other in mine])
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([1 + spans.index(other["tokens_positive"][0]) for other in mine])
        evaluator.update([found(boxes, labels, dataset.meta(entry, SMALL))])
    assert not evaluator.notes
    numbers = evaluator.summary()
    assert set(numbers.values()) == {1.0}
    assert len(MdetrDataset(tmp_path / "flickr" / "pictures", done.annotations)) == len(data["images"])


def test_refcoco(tmp_path: Path) -> None:
    done = written(tmp_path, "refcoco")
    dataset = CaptionSet(tmp_path / "refcoco" / "pictures", done.annotations, kind="refexp")
    assert not dataset.notes
    data = json.loads(done.annotations.read_text())
    assert {row["dataset_name"] for row in data["images"]} == {"refcoco", "refcoco+", "refcocog"}
    evaluator = RefExpEvaluator(done.annotations)
    for entry, row in enumerate(data["annotations"]):
        x, y, width, height = row["bbox"]
        box = torch.tensor([[x, y, x + width, y + height]])
        evaluator.update([found(box, torch.tensor([1]), dataset.meta(entry, SMALL))])
    assert evaluator.summary()["P@1"] == 1
    world = World(2, Split.SEEN, SMALL)
    for image, row in zip(data["images"], data["annotations"], strict=True):
        items = world[image["original_id"]].items
        assert [items[index].xywh for index in referents(image["caption"], items)] == [row["bbox"]]


def test_mixed(tmp_path: Path) -> None:
    """Each thing of a sentence has one box, with the words of all expressions that are about it."""
    done = written(tmp_path, "mixed")
    data = json.loads(done.annotations.read_text())
    world, told = World(2, Split.SEEN, SMALL), 0
    for image in data["images"]:
        items, mine = world[image["original_id"]].items, {}
        for row in (row for row in data["annotations"] if row["image_id"] == image["id"]):
            mine |= {tuple(span): row["bbox"] for span in row["tokens_positive"]}
        boxes = [row["bbox"] for row in data["annotations"] if row["image_id"] == image["id"]]
        assert len({tuple(box) for box in boxes}) == len(boxes)
        begin = 0
        for said in image["caption"].removesuffix(" .").split(" , "):
            (box,) = [box for (first, last), box in mine.items() if begin == first < last <= begin + len(said)]
            assert [items[index].xywh for index in referents(said[0].lower() + said[1:], items)] == [box]
            begin += len(said) + 3
            told += 1
        assert len(mine) == image["caption"].count(" , ") + 1 <= 5
    assert told > len(data["images"]) > 0
    assert len(MdetrDataset(tmp_path / "mixed" / "pictures", done.annotations)) == len(data["images"])


def test_phrasecut(tmp_path: Path) -> None:
    """Both files are of the same masks: the one is painted as PhraseCut's evaluation does it, the other as COCO's."""
    done = written(tmp_path, "phrasecut")
    assert len(MdetrDataset(tmp_path / "phrasecut" / "pictures", done.annotations))
    data = json.loads(done.annotations.read_text())
    original = tmp_path / "phrasecut" / "VGPhraseCut_v0"
    tasks = {row["task_id"]: row for row in json.loads((original / "refer_seen.json").read_text())}
    sizes = {row["image_id"]: row for row in json.loads((original / "image_data_split.json").read_text())}
    world = World(2, Split.SEEN, SMALL)
    for entry in data["images"]:
        task = tasks.pop(entry["task_id"])
        assert (task["phrase"], task["image_id"]) == (entry["caption"], entry["original_id"])
        rows = [row for row in data["annotations"] if row["image_id"] == entry["id"]]
        assert [row["bbox"] for row in rows] == task["instance_boxes"]
        canvas = Image.new("1", (sizes[task["image_id"]]["width"], sizes[task["image_id"]]["height"]))
        for part in [part for parts in task["Polygons"] for part in parts]:
            draw_part(canvas, part)
        items = world[task["image_id"]].items
        wanted = np.any([items[index].mask for index in referents(task["phrase"], items)], axis=0)
        assert (np.asarray(canvas) == wanted).all()
        assert sum(mask_area(row["segmentation"]) for row in rows) == wanted.sum()
    assert not tasks
    words = json.loads((original / "name_att_rel_count.json").read_text())
    assert all(pairs == sorted(pairs, key=lambda pair: -pair[1]) for pairs in words.values())


def test_voc(tmp_path: Path) -> None:
    done = written(tmp_path, "voc", split=Split.UNSEEN)
    entry = dict(done.entry)
    rest = {key: entry[key] for key in ("split", "classes")}
    dataset = VocDataset.from_entry(Entry("drawn", "voc", tmp_path / "voc", tmp_path / "voc", "voc", rest))
    assert not dataset.notes
    assert dataset.classes == NEVER_SEEN
    evaluator = VocEvaluator.of(dataset)
    evaluator.update(truth_of(dataset))
    assert evaluator.summary()["AP50"] == pytest.approx(1)
    assert any(objects.difficult.any() for objects in dataset.objects)


def test_tsv(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    done = written(tmp_path, "tsv", classes=CLASSES)
    dataset = TsvDataset(done.annotations)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], "the offsets are there"
    assert not dataset.notes
    assert [dataset.names[label] for label in range(1, 9)] == list(CLASSES)
    world = World(2, Split.SEEN, SMALL, CLASSES)
    for index, picture in enumerate(world.pictures(12)):
        sample = dataset[index]
        assert (np.asarray(sample.image) == picture.pixels).all()
        items = [item for item in picture.items if item.name in CLASSES]
        assert [dataset.names[label] for label in sample.target.labels.tolist()] == [item.name for item in items]
        wanted = torch.tensor([item.box for item in items]) - torch.tensor([0, 0, 1, 1])
        assert (sample.target.boxes == wanted).all()


def test_labels(tmp_path: Path) -> None:
    classes = ("red circle", "moon")
    written(tmp_path, "labels", count=5, classes=classes)
    folder = tmp_path / "labels"
    data = json.loads((folder / "image_info.json").read_text())
    assert [row["pos_category_ids"] for row in data["images"]] == [[1], [2], [1], [2], [1]]
    assert {row["name"]: row["image_count"] for row in data["categories"]} == {"red circle": 3, "moon": 2}
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["moon", "red_circle"]
    assert all(Image.open(folder / row["file_name"]).size == (128, 96) for row in data["images"])
    world = World(2, Split.SEEN, SMALL, classes)
    assert {item.shape for turn in (1, 2) for item in world.of_class("moon", turn).items} == {"moon"}


@pytest.mark.parametrize("form", ["coco", "lvis", "flickr", "mixed", "refcoco", "phrasecut", "voc", "tsv"])
def test_a_config_can_register_it(tmp_path: Path, form: str) -> None:
    done = written(tmp_path, form, count=4, classes=CLASSES)
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({"DATASETS": {"REGISTER": {"drawn": done.entry}}}))
    cfg = load_cfg(None, tmp_path / "task.yaml")
    if form in ("mixed", "tsv"):
        assert resolve(cfg, "drawn", "train").annotations == done.annotations
        return
    entry = resolve(cfg, "drawn", "test")
    readers = {"coco": CocoDataset, "lvis": LvisDataset, "voc": VocDataset}
    dataset = readers.get(entry.kind, CaptionSet).from_entry(entry)
    assert len(dataset) == 4
    make_evaluator(entry, dataset, Protocols())


# --- the command


@pytest.mark.parametrize("form", FORMS)
def test_the_command_writes_a_set_and_says_how_to_register_it(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--out", str(tmp_path / "new"), "--form", form, "--count", "2", "--split", "new", "--size", "64", "80"]
    main([*argv, "--sheet"])
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("2 pictures")
    assert Image.open(tmp_path / "new" / "sheet.png").width > 80
    if rest:
        entry = yaml.safe_load("\n".join(rest))["drawn_new"]
        assert Path(entry["ann_file"]).exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--out", "."], ("--out '.'", "not an empty folder")),
        (["--out", "new", "--count", "0"], ("--count 0",)),
        (["--out", "new", "--classes", "red dog"], ("red dog", "circle")),
    ],
)
def test_mistakes_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError) as caught:
        main(argv)
    assert all(word in str(caught.value) for word in words)
    assert not (tmp_path / "new").exists()
