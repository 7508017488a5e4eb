"""What MDETR is trained with: boxes, masks and words of captions, what a crop leaves of them, and broken files."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_api

from maskrcnn_benchmark.data.check import AnnotationError
from maskrcnn_benchmark.data.collate import collate
from maskrcnn_benchmark.data.datasets.modulated import ModulatedDataset
from maskrcnn_benchmark.data.draws import rng_for
from maskrcnn_benchmark.data.mdetr_transforms import MdetrTransform, cropped, mirrored, resized
from maskrcnn_benchmark.data.modulated_set import ModulatedSet
from maskrcnn_benchmark.data.pictures import PictureError
from maskrcnn_benchmark.data.training import build_training_data
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.structures import ImageMeta, Prompt, Target
from maskrcnn_benchmark.text.tokenizer import Tokenizer, load_tokenizer
from tests.unit.coco_files import SIZE, write
from tests.unit.tiny_tokenizers import write_bpe
from tests.unit.training_files import CAPTION, mdetr, training_config

DOG, STREET = (0, 5), (9, 19)
HEIGHT, WIDTH = SIZE
CORNERS = [4, 5, 14, 5, 14, 13, 4, 13]  # of the first box of a caption
WHOLE = MdetrTransform((24,), 96, crop=0.0)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_bpe(tmp_path_factory.mktemp("bpe")))


def with_masks() -> dict[str, Any]:
    """Captions whose boxes have polygons."""
    data = mdetr()
    for row in data["annotations"]:
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return data


def read(folder: Path, data: dict[str, Any], **options: Any) -> ModulatedDataset:
    return ModulatedDataset(folder, write(folder, data), **options)


def target(sample: Any) -> Target:
    assert sample.target is not None
    return sample.target


# reading


def test_boxes_and_their_words(tmp_path: Path) -> None:
    data = mdetr()
    rows = data["annotations"]
    rows[0]["bbox"] = [-3, 5, 10, 8]  # cut at the border
    rows[2]["iscrowd"] = 1
    rows[4]["bbox"] = [4, 5, 0, 8]
    rows[5]["bbox"] = [3, 3, 0.5, 9]  # less than a pixel, but there is something of it
    found = read(tmp_path, data, name="mine")
    first, second, third = (target(found[index]) for index in range(3))
    assert first.boxes.tolist() == [[0, 5, 7, 13], [0, 12, 32, 24]]
    assert first.prompt == Prompt(CAPTION, ((DOG,), (STREET,)), (1, 2))
    assert second.prompt == Prompt(CAPTION, ((STREET,),), (1,))
    assert third.boxes.tolist() == [[3, 3, 3.5, 12]]
    assert third.prompt == Prompt(CAPTION, ((STREET,),), (1,))
    assert all(one.masks is None for one in (first, second, third))


def test_captions_without_boxes_stay_and_are_counted(tmp_path: Path) -> None:
    data = mdetr()
    data["annotations"] = data["annotations"][:2]
    data["annotations"][0]["tokens_positive"] = []
    found = read(tmp_path, data)
    assert len(found) == 3
    assert len(target(found[1])) == 0
    assert target(found[1]).prompt == Prompt(CAPTION, (), ())
    assert any("2 of 3 captions have no box: kept" in note for note in found.notes)
    assert any("1 boxes are named by no words" in note for note in found.notes)


def test_tokens_is_another_name_for_tokens_positive(tmp_path: Path) -> None:
    data = mdetr()
    for row in data["annotations"]:
        row["tokens"] = row.pop("tokens_positive")
    assert target(read(tmp_path, data)[0]).prompt == Prompt(CAPTION, ((DOG,), (STREET,)), (1, 2))


def test_masks_from_polygons_and_run_lengths(tmp_path: Path) -> None:
    data = with_masks()
    box = np.zeros(SIZE, np.uint8, order="F")
    box[5:13, 4:14] = 1
    packed = mask_api.encode(box)
    counts = {"size": list(SIZE), "counts": packed["counts"].decode()}
    flat = np.flatnonzero(np.diff(np.concatenate(([0], box.flatten(order="F"), [0])))).tolist()
    runs = np.diff([0, *flat, HEIGHT * WIDTH]).tolist()
    data["annotations"][2]["segmentation"] = counts
    data["annotations"][4]["segmentation"] = {"size": list(SIZE), "counts": runs}
    found = read(tmp_path, data, masks=True)
    for index in range(3):
        masks = target(found[index]).masks
        assert masks.shape == (2, *SIZE)
        assert torch.equal(masks[0], torch.from_numpy(box).bool())
        assert int(masks[1].sum()) == 32 * 12


def test_several_polygons_are_one_mask_and_flat_ones_are_counted(tmp_path: Path) -> None:
    data = with_masks()
    data["annotations"][0]["segmentation"] = [CORNERS, [20, 2, 26, 2, 26, 6, 20, 6], [1, 1, 9, 9]]
    data["annotations"][2]["segmentation"] = [[1, 1]]
    found = read(tmp_path, data, masks=True)
    assert int(target(found[0]).masks[0].sum()) == 10 * 8 + 6 * 4
    assert int(target(found[1]).masks[0].sum()) == 0
    assert any("2 polygons have less than three corners" in note for note in found.notes)


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no mask": (lambda row: row.pop("segmentation"), r"annotations\[0\] \(id 0\): no segmentation"),
    "another size": (
        lambda row: row.update(segmentation={"size": [9, 9], "counts": [81]}),
        r"the mask is 9 x 9 pixels \(h x w\), its picture is 24 x 32",
    ),
    "no size": (lambda row: row.update(segmentation={"counts": [81]}), r"has no size \[h, w\] and counts"),
    "odd": (lambda row: row.update(segmentation=[[1, 2, 3]]), "is neither polygons .* nor run lengths"),
    "words": (lambda row: row.update(tokens_positive=[[0, 99]]), r"\[0, 99\] but the caption has 19 characters"),
    "negative": (lambda row: row.update(tokens_positive=[[-1, 3]]), r"\[-1, 3\] but the caption has 19 characters"),
    "no words": (lambda row: row.pop("tokens_positive"), "no tokens_positive"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, name: str) -> None:
    change, words = BROKEN[name]
    data = with_masks()
    change(data["annotations"][0])
    with pytest.raises(AnnotationError, match=words):
        read(tmp_path, data, masks=True)


def test_run_lengths_that_are_damaged_or_of_another_size_than_the_picture(tmp_path: Path) -> None:
    data = with_masks()
    data["annotations"][0]["segmentation"] = {"size": list(SIZE), "counts": [HEIGHT * WIDTH]}
    found = read(tmp_path, data, masks=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "1.png")
    with pytest.raises(PictureError, match=r"1\.png \(caption 1\): a mask is 24 x 32 pixels .* its picture is 9 x 9"):
        found[0]


# transforms


def example(*boxes: list[float], size: tuple[int, int] = (100, 200)) -> tuple[Image.Image, Target]:
    """A picture with boxes, whose masks are filled with them, each named by a letter of the caption."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    spans = tuple(((index, index + 1),) for index in range(len(boxes)))
    prompt = Prompt("abcdefgh", spans, tuple(range(1, len(boxes) + 1)))
    meta = ImageMeta(1, size, size)
    corners = torch.tensor(boxes).reshape(-1, 4)
    return Image.new("RGB", size[::-1]), Target(corners, torch.arange(len(boxes)), meta, prompt=prompt, masks=masks)


def test_a_crop_takes_boxes_masks_and_words_together() -> None:
    picture, before = example([0, 0, 20, 20], [50, 50, 90, 90], [150, 10, 190, 30])
    picture, after = cropped(picture, before, (40, 60, 50, 100))
    assert picture.size == (100, 50)
    assert after.boxes.tolist() == [[0, 10, 30, 50]]
    assert after.prompt == Prompt("abcdefgh", (((1, 2),),), (1,))
    assert after.labels.tolist() == [1]
    assert after.masks.shape == (1, 50, 100)
    assert int(after.masks.sum()) == 30 * 40
    assert after.meta.size == (50, 100)
    assert after.meta.orig_size == (100, 200)


def test_a_crop_that_leaves_nothing() -> None:
    _, after = cropped(*example([0, 0, 20, 20]), (40, 60, 50, 100))
    assert len(after) == 0
    assert after.prompt == Prompt("abcdefgh", (), ())
    assert after.masks.shape == (0, 50, 100)
    _, smaller = resized(Image.new("RGB", (100, 50)), after, (25, 50))
    assert smaller.masks.shape == (0, 25, 50)


def test_a_cautious_crop_loses_no_box_that_it_can_keep() -> None:
    transform = MdetrTransform((64,), 999, crop=1.0, crop_from=(100,), crop_sizes=(60, 150))
    for number in range(20):
        picture, before = example([90, 30, 110, 60], [70, 40, 80, 70])
        pixels, after = transform(picture, before, rng_for(number))
        assert len(after) == 2
        assert pixels.shape[1:] == after.meta.size == after.masks.shape[1:]
        assert min(after.meta.size) == 64


def test_a_bold_crop_loses_boxes() -> None:
    transform = MdetrTransform((64,), 999, crop=1.0, crop_from=(100,), crop_sizes=(60, 60), cautious=False)
    left = [len(transform(*example([0, 0, 9, 9], [190, 90, 199, 99]), rng_for(number))[1]) for number in range(20)]
    assert min(left) < 2


def test_words_of_sides_change_with_a_mirrored_picture() -> None:
    text = "left dog, rightmost cat, leftover"
    spans = (((0, 8),), ((10, 19), (20, 23)), ((25, 33),), ((11, 14),))
    picture, before = example([0, 0, 20, 20], [50, 50, 90, 90], [1, 1, 2, 2], [3, 3, 4, 4])
    _, after = mirrored(picture, replace(before, prompt=Prompt(text, spans, (1, 2, 3, 4))))
    assert after.prompt.text == "right dog, leftmost cat, rightover"
    assert after.prompt.name(0) == "right dog"
    assert after.prompt.name(1) == "leftmost cat"
    assert after.prompt.name(2) == "rightover"
    assert set(after.prompt.name(3)) <= set("leftmost")
    assert after.boxes[0].tolist() == [180, 0, 200, 20]
    assert after.masks[0, :20, 180:].all()


def test_a_crop_larger_than_its_picture_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"AUGMENT.CROP_SIZES \(384, 1333\) and AUGMENT.CROP_FROM \(300, 400\)"):
        MdetrTransform((480,), 1333, crop_from=(300, 400))


# samples and batches


def test_a_batch_is_as_long_as_its_longest_caption(tmp_path: Path, words: Tokenizer) -> None:
    data = with_masks()
    data["images"][1]["caption"] = f"{CAPTION} which is black and white"
    data["annotations"] = data["annotations"][:4]
    part = ModulatedSet(read(tmp_path, data, masks=True), WHOLE, words)
    items = [part.item(index, rng_for(index)) for index in range(3)]
    batch = collate(items, 0)
    counts = [words.count(row["caption"]) for row in data["images"]]
    assert batch.text.input_ids.shape == (3, counts[1])
    assert counts[0] < counts[1]
    assert batch.text.attention_mask.sum(dim=1).tolist() == counts
    assert (batch.text.input_ids[0, counts[0] :] == words.pad_id).all()
    for own, text in zip(batch.targets, batch.text.entity_tokens, strict=True):
        assert own.positive_map.shape == (len(own), 256)
        assert set(own.positive_map.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(own.positive_map[:, : counts[1]].bool(), text)
        assert own.masks.shape == (len(own), *own.meta.size)
    assert [len(own) for own in batch.targets] == [2, 2, 0]
    named = words.encode([CAPTION]).offsets(0)
    chars = [named[token] for token in batch.targets[0].positive_map[0].nonzero().flatten().tolist()]
    assert (chars[0][0], chars[-1][1]) == DOG


def test_long_captions_are_cut_and_their_boxes_counted(tmp_path: Path, words: Tokenizer) -> None:
    data = mdetr(1)
    data["images"][0]["caption"] = "dog " * 300 + CAPTION
    for row in data["annotations"]:
        row["tokens_positive"] = [[1200 + begin, 1200 + end] for begin, end in row["tokens_positive"]]
    item = ModulatedSet(read(tmp_path, data), WHOLE, words).item(0, rng_for(0))
    assert len(item.text.input_ids) == 256
    assert item.target.positive_map.sum() == 0
    told = [note.what for note in item.notes]
    assert told == [
        "instances: captions cut at 256 tokens",
        "instances: captions with boxes that none of the first 256 tokens names",
    ]


def test_boxes_that_a_crop_leaves_out_are_counted(tmp_path: Path, words: Tokenizer) -> None:
    bold = MdetrTransform((24,), 96, crop=1.0, crop_from=(24,), crop_sizes=(8, 8), cautious=False)
    part = ModulatedSet(read(tmp_path, mdetr()), bold, words)
    notes = [note for number in range(10) for note in part.item(number % 3, rng_for(number)).notes]
    assert {note.what for note in notes} == {"instances: pictures whose crop left out boxes"}
    assert notes[0].example.endswith(("1 of 2", "2 of 2"))


def test_the_same_draws_give_the_same_sample(tmp_path: Path, words: Tokenizer) -> None:
    part = ModulatedSet(
        read(tmp_path, mdetr()), MdetrTransform((24, 32), 96, crop_from=(24, 30), crop_sizes=(12, 40)), words
    )
    for number in range(6):
        one, other = (part.item(0, rng_for(1, number)) for _ in range(2))
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.target.boxes, other.target.boxes)


# from a config


def config(folder: Path, sets: dict[str, dict[str, Any]], *opts: str, architecture: str = "MDETR") -> Any:
    given = ["MODEL.META_ARCHITECTURE", architecture, "AUGMENT.CROP_FROM", "(24,)", "AUGMENT.CROP_SIZES", "(12, 40)"]
    return training_config(folder, sets, *given, *opts)


def entry(folder: Path, data: dict[str, Any], kind: str, **options: Any) -> dict[str, Any]:
    return {"kind": kind, "img_dir": str(folder), "ann_file": str(write(folder, data)), **options}


def test_several_sets_as_one(tmp_path: Path, words: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    flickr = mdetr(2)
    flickr["annotations"] = flickr["annotations"][:2]
    sets = {"flickr": entry(tmp_path / "f", flickr, "flickr"), "mixed": entry(tmp_path / "m", mdetr(3), "mixed")}
    with caplog.at_level(logging.WARNING):
        data = build_training_data(config(tmp_path, sets), words)
    assert [row[:2] for row in data.plan.sets] == [("flickr", 2), ("mixed", 3)]
    assert "1 of 2 captions have no box" in caplog.text
    batches = [data.prepare(batch, "cpu") for batch in data.loader(0)]
    assert len(batches) == 2
    for batch in batches:
        assert batch.images.pixels.isfinite().all()
        for own in batch.targets:
            height, width = own.meta.size
            assert ((own.boxes >= 0) & (own.boxes <= torch.tensor([width, height] * 2))).all()
            assert own.masks is None


def test_masks_where_the_network_has_a_head_for_them(tmp_path: Path, words: Tokenizer) -> None:
    sets = {"cut": entry(tmp_path / "p", with_masks(), "phrasecut", original="VGPhraseCut_v0", split="train")}
    data = build_training_data(config(tmp_path, sets, architecture="MDETR_SEGM"), words)
    for batch in data.loader(0):
        for own in batch.targets:
            assert own.masks.shape == (len(own), *own.meta.size)
    plain = {"cut": entry(tmp_path / "q", mdetr(), "phrasecut")}
    with pytest.raises(AnnotationError, match="no segmentation"):
        build_training_data(config(tmp_path, plain, architecture="MDETR_SEGM"), words)


def test_entries_that_mdetr_cannot_be_trained_with(tmp_path: Path, words: Tokenizer) -> None:
    with pytest.raises(DataError, match="'boxes' is of kind 'coco_grounding': MDETR is trained with captions, mixed, "):
        build_training_data(config(tmp_path, {"boxes": entry(tmp_path / "a", mdetr(), "coco_grounding")}), words)
    with pytest.raises(DataError, match="nothing reads its key 'colour' when it is of kind 'gqa'"):
        build_training_data(config(tmp_path, {"a": entry(tmp_path / "b", mdetr(), "gqa", colour="red")}), words)
    sets = {"a": entry(tmp_path / "c", mdetr(), "gqa")}
    with pytest.raises(ConfigError, match=r"AUGMENT.CROP_SIZES \(12, 40\) and AUGMENT.CROP_FROM \(8,\)"):
        build_training_data(config(tmp_path, sets, "AUGMENT.CROP_FROM", "(8,)"), words)


def test_the_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MB_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path, with_masks())
    first = ModulatedDataset(tmp_path, path, masks=True)
    monkeypatch.setattr(json, "loads", _once(json.loads, path.stat().st_size))
    again = ModulatedDataset(tmp_path, path, masks=True)
    assert torch.equal(target(first[0]).masks, target(again[0]).masks)


def _once(loads: Any, size: int) -> Any:
    def small(data: Any, *args: Any, **kwargs: Any) -> Any:
        assert len(data) < size, "the annotations were parsed again"
        return loads(data, *args, **kwargs)

    return small
