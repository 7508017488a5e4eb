"""Captions for evaluation: which words are looked for, and that a picture is there once for all of its captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_benchmark.data.catalog import Entry
from maskrcnn_benchmark.data.datasets.captions import CaptionSet, evaluation_prompt
from maskrcnn_benchmark.data.datasets.mdetr import MdetrDataset
from maskrcnn_benchmark.data.loader import eval_loader
from maskrcnn_benchmark.data.transforms import EvalTransform
from maskrcnn_benchmark.errors import DataError
from tests.unit.coco_files import SIZE, write
from tests.unit.training_files import CAPTION

DOG, STREET = [0, 5], [9, 19]


def captions() -> dict[str, Any]:
    """Captions 3 and 1 of picture a, 2 and 7 of picture b, in an order of their own."""
    height, width = SIZE

    def row(number: int, file: str, phrases: Any) -> dict[str, Any]:
        about = {"dataset_name": "flickr", "sentence_id": number % 5, "original_img_id": ord(file)}
        size = {"height": str(height), "width": str(width)}  # as in the released files
        return {
            "id": number,
            "file_name": f"{file}.png",
            "caption": CAPTION,
            "tokens_positive_eval": phrases,
            **about,
            **size,
        }

    images = [
        row(3, "a", [[DOG]]),
        row(2, "b", [[STREET], [DOG]]),
        row(7, "b", [[DOG, STREET], [DOG]]),
        row(1, "a", [[DOG]]),
    ]
    boxes = [{"image_id": i, "bbox": [4, 5, 10, 8], "tokens_positive": [DOG]} for i in (2, 3, 7)]
    boxes.append({"image_id": 1, "bbox": [4, 5, 1, 1], "tokens_positive": [STREET]})  # too small to be trained with
    return {
        "images": images,
        "annotations": [{"id": i, "category_id": 1, "area": 9, **row} for i, row in enumerate(boxes)],
    }


def store(folder: Path, data: Any) -> Path:
    """Pictures and file; the sizes in the file stay as they are."""
    sized = {"images": [{**row, "height": SIZE[0], "width": SIZE[1]} for row in data["images"]]}
    path = write(folder, sized)
    path.write_text(json.dumps(data))
    return path


def read(folder: Path, data: Any, kind: str = "flickr") -> CaptionSet:
    return CaptionSet(folder, store(folder, data), "mine", kind)


def test_a_picture_is_there_once_for_all_of_its_captions(tmp_path: Path) -> None:
    found = read(tmp_path, captions())
    assert (len(found), found.num_entries, found.name) == (2, 4, "mine")
    assert found.annotations == tmp_path / "instances.json"
    assert [found.file(i).name for i in range(2)] == ["a.png", "b.png"]
    assert [found.entries(i) for i in range(2)] == [[0, 2], [1, 3]]  # by ascending id: 1, 2, 3, 7
    assert [found.meta(entry, (2, 3)).image_id for entry in range(4)] == [1, 2, 3, 7]
    assert found.size(0) == SIZE
    meta = found.meta(1, (20, 30))
    assert (meta.size, meta.orig_size, meta.dataset) == ((20, 30), (20, 30), "mine")
    assert meta.file == str(found.file(1))
    assert meta.extra["sentence_id"] == 2
    assert meta.extra["original_img_id"] == ord("b")
    sample = found[1]
    assert (sample.meta.image_id, sample.meta.orig_size, sample.image.size) == (2, SIZE, SIZE[::-1])


def test_captions_that_there_is_nothing_to_train_on_in_are_evaluated(tmp_path: Path) -> None:
    path = store(tmp_path, captions())
    assert len(MdetrDataset(tmp_path, path)) == 3
    assert CaptionSet(tmp_path, path).num_entries == 4


def test_phrases_of_flickr_are_those_of_the_caption(tmp_path: Path) -> None:
    found = read(tmp_path, captions())
    street_and_dog, both_and_dog = found.prompts(1)
    assert street_and_dog.text == CAPTION
    assert (street_and_dog.spans, street_and_dog.ids) == ((((9, 19),), ((0, 5),)), (1, 2))
    assert both_and_dog.spans == (((0, 5), (9, 19)), ((0, 5),))
    assert [street_and_dog.name(i) for i in range(2)] == ["the street", "a dog"]


def test_an_expression_is_one_phrase(tmp_path: Path) -> None:
    data = captions()
    for row in data["images"]:
        del row["tokens_positive_eval"]
    found = read(tmp_path, data, "refexp")
    (first, third), _ = found.prompts(0), found.prompts(1)
    assert (first.spans, first.ids) == ((((9, 19),),), (1,))  # of a box that is too small to be trained with, too
    assert third.spans == (((0, 5),),)


def test_captions_without_a_phrase_are_left_out_and_counted(tmp_path: Path) -> None:
    data = captions()
    for row in data["images"][1:]:
        row["tokens_positive_eval"] = []
    found = read(tmp_path, data)
    assert (len(found), found.num_entries, found.entries(0)) == (1, 1, [0])
    assert found.meta(0, (1, 1)).image_id == found[0].meta.image_id == 3
    assert "3 of 4 captions have no phrase to look for: left out" in found.notes
    data["images"][0]["tokens_positive_eval"] = []
    with pytest.raises(DataError, match=r"instances\.json: none of the 4 captions has a phrase to look for"):
        read(tmp_path, data)


def test_pictures_reach_the_network(tmp_path: Path) -> None:
    transform = EvalTransform(min_size=24, max_size=100, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    loader = eval_loader(read(tmp_path, captions()), transform, batch_size=2)
    assert [meta.image_id for batch in loader for meta in batch.metas] == [1, 2]


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        (..., r"images \(id 3\): no tokens_positive_eval, the characters of the phrases to look for"),
        ("dog", r"images \(id 3\): tokens_positive_eval is 'dog', not a list of phrases"),
        ([[DOG], []], r"tokens_positive_eval\[1\] is \[\], not a list of \[begin, end\)"),
        ([DOG], r"tokens_positive_eval\[0\] holds 0, not two whole numbers"),
        ([[[0, 5.5]]], r"tokens_positive_eval\[0\] holds \[0, 5\.5\], not two whole numbers"),
        ([[[5, 5]]], r"tokens_positive_eval\[0\] holds \[5, 5\], but the caption 'a dog on the street' has 19"),
        ([[DOG], [[10, 20]]], r"tokens_positive_eval\[1\] holds \[10, 20\], but the caption .* has 19 characters"),
    ],
)
def test_phrases_that_do_not_fit_are_refused(tmp_path: Path, phrases: Any, message: str) -> None:
    data = captions()
    data["images"][0]["tokens_positive_eval"] = phrases
    if phrases is ...:
        del data["images"][0]["tokens_positive_eval"]
    with pytest.raises(DataError, match=message):
        read(tmp_path, data)


def test_an_expression_needs_exactly_one_box(tmp_path: Path) -> None:
    data = captions()
    data["annotations"].pop()
    with pytest.raises(DataError, match=r"images \(id 1\): 0 annotations; a referring expression has exactly one"):
        read(tmp_path, data, "refexp")
    data["annotations"].append({**data["annotations"][0], "id": 8, "image_id": 1, "tokens_positive": []})
    with pytest.raises(DataError, match=r"images \(id 1\): tokens_positive of its annotation\[0\] is \[\]"):
        read(tmp_path, data, "refexp")


def test_phrases_are_numbered_from_one_and_stay_apart() -> None:
    prompt = evaluation_prompt(CAPTION, [[DOG], [STREET, DOG], [DOG]])
    assert prompt.ids == (1, 2, 3)
    assert prompt.spans == (((0, 5),), ((9, 19), (0, 5)), ((0, 5),))
    assert evaluation_prompt(CAPTION, []).ids == ()
    with pytest.raises(DataError, match=r"phrases is 3, not a list of phrases"):
        evaluation_prompt(CAPTION, 3)


def test_keys_that_nothing_reads_are_refused(tmp_path: Path) -> None:
    path = store(tmp_path, captions())

    def entry(kind: str, **options: str) -> Entry:
        return Entry("mine", kind, tmp_path, path, kind, options)

    options = {"entities": "flickr30k", "split": "val", "copies": "FLICKR_COPY"}
    assert len(CaptionSet.from_entry(entry("flickr", **options))) == 2
    with pytest.raises(DataError, match="data set 'mine': nothing reads its key 'lists' when it is of kind 'flickr'"):
        CaptionSet.from_entry(entry("flickr", lists="flickr30k"))
    with pytest.raises(DataError, match="nothing reads its key 'entities' when it is of kind 'refexp'"):
        CaptionSet.from_entry(entry("refexp", entities="flickr30k"))
    with pytest.raises(DataError, match=r"no data_source, \"coco\" or \"vg\""):
        CaptionSet.from_entry(entry("flickr", vg_img_dir=str(path.parent.parent)))
