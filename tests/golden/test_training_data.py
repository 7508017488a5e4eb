"""Training data from real files: forms of Objects365, Flickr30k and mixed grounding, COCO, LVIS, RefCOCO, ODinW."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.data.datasets.coco_grounding import CocoGrounding
from maskrcnn_benchmark.data.datasets.tsv import TsvDataset
from maskrcnn_benchmark.data.training import TrainingData, build_training_data
from maskrcnn_benchmark.text.tokenizer import Tokenizer, load_tokenizer
from tests.golden.common import shared_path, tokenizer_dir

SETS: dict[str, dict[str, str]] = {
    "objects": {"kind": "tsv", "ann_file": "derived/Objects365_tsv/train.yaml"},
    "flickr": {
        "kind": "flickr",
        "img_dir": "coco/train2017",
        "ann_file": "derived/mdetr_annotations/final_flickr_separateGT_train.json",
    },
    "mixed": {
        "kind": "mixed",
        "img_dir": "coco/val2017",
        "ann_file": "mdetr_annotations/finetune_refcocos_train.json",
    },
    "refcocog": {
        "kind": "refexp",
        "img_dir": "refcoco/train2014",
        "ann_file": "mdetr_annotations/finetune_refcocog_val.json",
    },
    "coco": {
        "kind": "coco_grounding",
        "img_dir": "coco/train2017",
        "ann_file": "coco/annotations/instances_train2017.json",
    },
    "lvis": {
        "kind": "coco_grounding",
        "img_dir": "coco/val2017",
        "ann_file": "derived/lvis/lvis_v1_minival_inserted_image_name.json",
    },
    "bccd": {
        "kind": "coco_grounding",
        "img_dir": "odinw/BCCD/train",
        "ann_file": "odinw/BCCD/train/_annotations.coco.json",
    },
}
PICTURES = {"objects": 34, "flickr": 163, "mixed": 74, "refcocog": 9, "coco": 142, "lvis": 62, "bccd": 205}
SMALL = ("INPUT.MIN_SIZE_TRAIN", "64", "INPUT.MAX_SIZE_TRAIN", "128", "AUGMENT.MULT_MIN_SIZE_TRAIN", "(64, 96)")


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DATASET", str(shared_path("data", "DATASET")))
    return shared_path("data", "DATASET")


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return load_tokenizer(tokenizer_dir("roberta-base"))


def config(folder: Path, names: list[str], *opts: str) -> Cfg:
    tree = {"DATASETS": {"REGISTER": {name: SETS[name] for name in names}, "TRAIN": names}}
    (folder / "train.yaml").write_text(yaml.safe_dump(tree))
    given = [*SMALL, "SOLVER.IMS_PER_BATCH", "4", *opts]
    return load_cfg("configs/pretrain/mixed_nococo_flickr_objects365.yaml", folder / "train.yaml", given)


def one_epoch(data: TrainingData, workers: int = 0) -> list[Any]:
    return [data.prepare(batch, "cpu") for batch in data.loader(0, workers=workers)]


def test_the_three_sets_of_pretraining_together(tmp_path: Path, words: Tokenizer) -> None:
    data = build_training_data(config(tmp_path, ["objects", "flickr", "mixed"]), words)
    assert [count for _, count, _ in data.plan.sets] == [34, 163, 74]
    batches = one_epoch(data, workers=2)
    assert len(batches) == data.plan.batches == 271 // 4
    seen = defaultdict(int)
    for batch in batches:
        assert batch.images.pixels.isfinite().all()
        for found, ids in zip(batch.targets, batch.text.input_ids, strict=True):
            seen[found.meta.dataset] += 1
            height, width = found.meta.size
            # less than a pixel outside: a last pixel is scaled as a point, and mirrored as the last pixel
            assert ((found.boxes > -1) & (found.boxes < torch.tensor([width, height] * 2))).all()
            assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
            assert (found.positive_map.sum(1) > 0).all()
            assert words.count(found.prompt.text) == int((ids != words.pad_id).sum()) <= 256
    assert set(seen) == {"objects", "flickr", "mixed"}
    assert sum(seen.values()) == 268


@pytest.mark.parametrize("name", SETS)
def test_every_form_is_read_whole(tmp_path: Path, words: Tokenizer, name: str) -> None:
    data = build_training_data(config(tmp_path, [name]), words)
    assert data.plan.samples == PICTURES[name]
    boxes = 0
    for index in range(0, len(data.sets[0]), 3):
        item = data.item(0, index)
        boxes += len(item.target)
        for own, row in zip(item.target.positive_map.bool(), item.target.labels.tolist(), strict=True):
            assert own.any(), (name, index, row)
    assert boxes > 0


def test_a_table_has_the_boxes_that_it_was_made_from(root: Path) -> None:
    table = TsvDataset(root / SETS["objects"]["ann_file"])
    source = json.loads((root / SETS["coco"]["ann_file"]).read_text())
    names = {row["id"]: row["name"] for row in source["categories"]}
    expected = defaultdict(list)
    for row in source["annotations"]:
        x, y, w, h = row["bbox"]
        expected[row["image_id"]].append((names[row["category_id"]], [float(x), float(y), float(x + w), float(y + h)]))
    for index in range(len(table)):
        sample = table[index]
        key = int(sample.meta.image_id.split("_")[-1])
        height, width = sample.meta.orig_size
        found = [
            (table.names[label], box)
            for label, box in zip(sample.target.labels.tolist(), sample.target.boxes, strict=True)
        ]
        assert [name for name, _ in found] == [name for name, _ in expected[key]]
        limit = torch.tensor([width - 1, height - 1] * 2)
        for (_, box), (_, other) in zip(found, expected[key], strict=True):
            torch.testing.assert_close(box, torch.minimum(torch.tensor(other), limit.float()), atol=0.02, rtol=0)


def test_coco_boxes_are_those_of_the_reference(root: Path) -> None:
    """x2 = x + w - 1, cut at the last pixel, no crowds; labels in the order of the list."""
    found = CocoGrounding(root / SETS["coco"]["img_dir"], root / SETS["coco"]["ann_file"])
    source = json.loads((root / SETS["coco"]["ann_file"]).read_text())
    label = {row["id"]: i for i, row in enumerate(source["categories"], 1)}
    for index in range(0, len(found), 7):
        sample = found[index]
        rows = [r for r in source["annotations"] if r["image_id"] == sample.meta.image_id and not r["iscrowd"]]
        boxes = torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4)
        corners = torch.cat((boxes[:, :2], boxes[:, :2] + (boxes[:, 2:] - 1).clamp(min=0)), 1)
        height, width = sample.meta.orig_size
        corners = torch.minimum(corners.clamp(min=0), torch.tensor([width - 1.0, height - 1.0] * 2))
        keep = (corners[:, 2:] > corners[:, :2]).all(1)
        torch.testing.assert_close(sample.target.boxes, corners[keep], rtol=0, atol=0)
        assert sample.target.labels.tolist() == [label[r["category_id"]] for r, k in zip(rows, keep, strict=True) if k]


def test_the_words_of_a_phrase(tmp_path: Path, words: Tokenizer) -> None:
    """The tokens that a box owns spell its phrase."""
    data = build_training_data(config(tmp_path, ["flickr"]), words)
    for index in range(0, len(data.sets[0]), 9):
        item = data.item(0, index)
        text = words.encode([item.target.prompt.text])
        for row, spans in zip(item.target.positive_map.bool(), item.target.prompt.spans, strict=True):
            ends = [text.offsets(0)[token] for token in row.nonzero().flatten().tolist()]
            assert {spans[0][0], spans[-1][1]} <= {end for pair in ends for end in pair}


def test_lvis_prompts_have_the_classes_present_and_as_many_others_as_fit(tmp_path: Path, words: Tokenizer) -> None:
    cfg = config(tmp_path, ["lvis"], "DATASETS.SPECIAL_SAFEGUARD_FOR_COCO_GROUNDING", "True")
    data = build_training_data(cfg, words)
    sizes = []
    for index in range(0, len(data.sets[0]), 4):
        prompt = data.item(0, index).target.prompt
        sizes.append(words.count(prompt.text))
        assert set(data.item(0, index).target.labels.tolist()) <= set(prompt.ids)
    assert max(sizes) <= 256
    assert min(sizes) > 120


@pytest.mark.parametrize(
    ("task", "shots", "classes"),
    [("configs/odinw_35/Aquarium_Aquarium_Combined.v2-raw-1024.coco.yaml", 5, 7)],
)
def test_few_shots_of_a_published_task(words: Tokenizer, task: str, shots: int, classes: int) -> None:
    opts = (
        "DATASETS.TRAIN_DATASETNAME_SUFFIX",
        "_grounding",
        "DATASETS.FEW_SHOT",
        str(shots),
        "SOLVER.IMS_PER_BATCH",
        "2",
    )
    shuffle = ("DATASETS.DISABLE_SHUFFLE", "True", "DATASETS.USE_CAPTION_PROMPT", "True", "DATASETS.GENERAL_COPY", "4")
    cfg = load_cfg(
        "configs/e2e_dyhead_SwinT_B_FPN_coco_finetuning_fusion_backbone.yaml", task, [*opts, *shuffle, *SMALL]
    )
    data = build_training_data(cfg, words)
    ((name, pictures, copies),) = data.plan.sets
    assert (name, copies) == ("train", 4)
    assert shots <= pictures <= shots * classes
    prompt = data.item(0, 0).target.prompt
    assert len(prompt) == classes
    assert "stingray which is flat and round" in prompt.text
    per_class = defaultdict(set)
    for index in range(pictures):
        for label in data.item(0, index).target.labels.tolist():
            per_class[label].add(index)
    assert min(len(pictures) for pictures in per_class.values()) >= shots
    assert len(per_class) == classes


def test_a_raw_export_trains_like_its_cleaned_file(root: Path) -> None:
    folder = root / "odinw/BCCD/train"
    raw = CocoGrounding(folder, folder / "_annotations.coco.json")
    clean = CocoGrounding(folder, folder / "annotations_without_background.json")
    assert raw.names == clean.names
    assert len(raw) == len(clean) == 205
    assert any("1 box without area" in note for note in raw.notes)
    for index in range(0, len(raw), 20):
        assert torch.equal(raw[index].target.boxes, clean[index].target.boxes)
        assert torch.equal(raw[index].target.labels, clean[index].target.labels)
