"""Phrase grounding on Flickr30k Entities: what counts as found, and what is said about data that do not fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_benchmark.data.catalog import Entry
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.evaluation.entities import Phrase, read_entities
from maskrcnn_benchmark.evaluation.flickr import FlickrEvaluator
from maskrcnn_benchmark.structures import Detections, ImageMeta

SENTENCES = """[/EN#1/people A man] and [/EN#2/animals/other two dogs] under [/EN#3/scene the sky] .

[/EN#0/notvisual It] rains .
The [/EN#2/animals dogs] watch [/EN#4/clothing a hat] that is gone .
"""


def item(names: str, *corners: float) -> str:
    """An object; without corners it has no box."""
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False)
    box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    inside = f"<bndbox>{box}</bndbox>" if corners else "<scene>0</scene><nobndbox>1</nobndbox>"
    return f"<object>{''.join(f'<name>{name}</name>' for name in names.split())}{inside}</object>"


MAN, DOG, OTHER_DOG = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)
OBJECTS = [item("1", *MAN), item("2", *DOG), item("2", *OTHER_DOG), item("3").replace("nobndbox", "x"), item("4")]
BOTH_DOGS = [20.0, 0.0, 50.0, 10.0]


def entities(folder: Path, objects: Sequence[str] = OBJECTS, sentences: str = SENTENCES) -> Path:
    """Picture 5 with three sentences, of which the first (two phrases) and the third (one) have boxes."""
    for name in ("Annotations", "Sentences"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "Annotations" / "5.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")
    (folder / "Sentences" / "5.txt").write_text(sentences)
    (folder / "val.txt").write_text("5")
    return folder


def found(sentence: object, *rows: tuple[Sequence[float], float, int], picture: object = 5, **extra: Any) -> Detections:
    """(box, score, phrase) rows of a sentence."""
    about = {"original_img_id": picture, "sentence_id": sentence} | extra
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
    scores, labels = torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows], dtype=torch.int64)
    return Detections(boxes, scores.float(), labels, ImageMeta(12, (50, 60), (50, 60), "5.jpg", extra=about))


def all_missed(sentence: int) -> Detections:
    return found(sentence)


# reading


def test_phrases_with_boxes_in_the_order_of_their_sentences(tmp_path: Path) -> None:
    data = read_entities(entities(tmp_path), "val")
    dogs = (tuple(map(float, DOG)), tuple(map(float, OTHER_DOG)))
    assert data.sentences == {
        ("5", 0): (
            Phrase("A man", ("people",), (tuple(map(float, MAN)),)),
            Phrase("two dogs", ("animals", "other"), dogs),
        ),
        ("5", 2): (Phrase("dogs", ("animals",), dogs),),  # the empty line does not count, the one without boxes does
    }
    assert data.pictures == 1


def test_a_box_may_belong_to_several_phrases(tmp_path: Path) -> None:
    data = read_entities(entities(tmp_path, [item("1 4", *MAN)]), "val")
    assert [[phrase.text for phrase in row] for row in data.sentences.values()] == [["A man"], ["a hat"]]


def test_lines_may_end_as_in_windows(tmp_path: Path) -> None:
    root = entities(tmp_path)
    before = read_entities(root, "val").sentences
    (root / "Sentences" / "5.txt").write_bytes(SENTENCES.replace("\n", "\r\n").encode())
    assert read_entities(root, "val").sentences == before


def remove(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).unlink()


def put(name: str, text: str | bytes) -> Callable[[Path], object]:
    data = text.encode() if isinstance(text, str) else text
    return lambda root: (root / name).write_bytes(data)


XML, TEXT = "Annotations/5.xml", "Sentences/5.txt"
BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa">]><annotation>&a;</annotation>'
BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (remove(XML), r"5\.xml: no such file: put it there, or take it out of the list"),
    (remove(TEXT), r"5\.txt: no such file: put it there"),
    (remove("val.txt"), r"val\.txt: no such list of pictures \(there: none\)"),
    (put("val.txt", "\n"), r"val\.txt: the list of pictures is empty"),
    (put("val.txt", "5\n6\n5\n"), r"val\.txt: lists pictures twice: 5"),
    (put(XML, "<annotation>"), r"5\.xml: not valid XML"),
    (put(XML, ""), r"5\.xml: the file is empty"),
    (put(XML, BOMB), r"5\.xml: has a document type declaration"),
    (put(XML, "<a><object><bndbox/></object></a>"), r"5\.xml: object 0: no name"),
    (put(XML, "<a><object><name>1</name></object></a>"), r"object 0 \(1\): neither bndbox nor nobndbox nor scene"),
    (put(XML, f"<a>{item('1', 1, 2, 3)}</a>"), r"object 0 \(1\): bndbox is \['1', '2', '3', ''\], not four numbers"),
    (put(XML, f"<a>{item('1', 9, 2, 3, 4)}</a>"), r"object 0 \(1\): bndbox .* ends before it begins"),
    (put(XML, "<a/>"), r"\(val\.txt\): none of the 1 pictures has a sentence with a phrase that has a box"),
    (put(TEXT, b"\xff\xfe"), r"5\.txt: not UTF-8 text"),
    (put(TEXT, "A .\n[/XY#1/people man] ."), r"5\.txt: line 2: '\[/XY#1/people' does not open a phrase"),
    (put(TEXT, "[/EN#1/people a man ."), r"5\.txt: line 1: the phrase \[/EN#1 is not closed"),
]


@pytest.mark.parametrize(("spoil", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_broken_files_are_named(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(entities(tmp_path))
    with pytest.raises(DataError, match=message):
        read_entities(tmp_path, "val")


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder Annotations: give the folder of Flickr30k Entities"):
        FlickrEvaluator(tmp_path, "val")
    with pytest.raises(DataError, match=r"test\.txt: no such list of pictures \(there: val\.txt\)"):
        FlickrEvaluator(entities(tmp_path), "test")
    with pytest.raises(ConfigError, match="no Flickr30k protocol is called 'joined': use separate or merged"):
        FlickrEvaluator(tmp_path, "val", ("joined",))


def test_the_entry_says_where_the_ground_truth_is(tmp_path: Path) -> None:
    root = entities(tmp_path / "e")

    def entry(**options: str) -> Entry:
        return Entry("mine", "flickr", tmp_path, tmp_path / "captions.json", "flickr", options)

    evaluator = FlickrEvaluator.from_entry(entry(entities=str(root), split="val"), "merged")
    evaluator.update([all_missed(0), all_missed(2)])
    assert evaluator.card()["protocol"] == {"name": "merged", "measured": {"merged": "one box around all"}}
    with pytest.raises(DataError, match=r"data set 'mine': no split: the evaluator 'flickr' needs its list, such as"):
        FlickrEvaluator.from_entry(entry(entities=str(root)))
    with pytest.raises(DataError, match="data set 'mine': no entities: the evaluator 'flickr' needs the folder"):
        FlickrEvaluator.from_entry(entry(split="val"))
    with pytest.raises(DataError, match=r"data set 'mine': entities 'nowhere' not found"):
        FlickrEvaluator.from_entry(entry(entities="nowhere", split="val"))


# measuring


def test_any_box_or_the_one_around_all(tmp_path: Path) -> None:
    evaluator = FlickrEvaluator(entities(tmp_path), "val", ("separate", "merged"))
    first = found(0, (MAN, 0.5, 1), ([0, 0, 1, 1], 0.9, 1), (OTHER_DOG, 0.8, 2))
    evaluator.update([first, found(2, (BOTH_DOGS, 0.1, 1))])
    got = evaluator.summary()
    third, half = pytest.approx(1 / 3), pytest.approx(0.5)
    assert got["Recall@1_all"] == third  # of man, dogs and dogs again only the second has a hit at the top
    assert got["Recall@5_all"] == got["Upper_bound_all"] == pytest.approx(2 / 3)
    assert (got["Recall@1_people"], got["Recall@5_people"]) == (0, 1)
    assert got["Recall@1_animals"] == half
    assert got["Recall@1_other"] == 1  # "two dogs" is of two types
    assert got["merged/Recall@1_all"] == third
    assert (got["merged/Recall@1_animals"], got["merged/Recall@1_other"]) == (half, 0)
    assert list(got)[:4] == ["Recall@1_all", "Recall@1_animals", "Recall@1_other", "Recall@1_people"]
    assert evaluator.main in got


def test_ranks_count_within_a_phrase(tmp_path: Path) -> None:
    evaluator = FlickrEvaluator(entities(tmp_path), "val")
    wrong = [([0, 0, 1, 1], 0.9 - rank / 100, 2) for rank in range(20)]
    evaluator.update([found(0, *wrong, (MAN, 0.1, 1)), found(2, *[(b, s, 1) for b, s, _ in wrong[:10]], (DOG, 0.1, 1))])
    got = evaluator.summary()
    assert got["Recall@1_people"] == 1  # twenty boxes of another phrase are before it
    assert (got["Recall@10_animals"], got["Upper_bound_animals"]) == (0, 0.5)  # the eleventh


def test_half_of_the_area_is_enough(tmp_path: Path) -> None:
    evaluator = FlickrEvaluator(entities(tmp_path), "val")
    evaluator.update([found(0, ([0, 0, 5, 10], 0.9, 1)), found(2, ([20, 0, 24.9, 10], 0.9, 1))])
    assert evaluator.summary()["Upper_bound_people"] == 1
    assert evaluator.summary()["Upper_bound_animals"] == 0


def test_no_boxes_are_misses(tmp_path: Path) -> None:
    evaluator = FlickrEvaluator(entities(tmp_path), "val")
    evaluator.update([all_missed(0), all_missed(2)])
    assert set(evaluator.summary().values()) == {0.0}


def test_ranked_predictions_give_the_same(tmp_path: Path) -> None:
    scored, ranked = (FlickrEvaluator(entities(tmp_path), "val", ("separate", "merged")) for _ in range(2))
    near = [1.0, 0.0, 11.0, 10.0]
    scored.update([found(0, (near, 0.9, 1), (MAN, 0.8, 1), (BOTH_DOGS, 0.7, 2)), found(2)])
    ranked.update_ranked(
        [
            {"image_id": "5", "sentence_id": 0, "boxes": [torch.tensor([near, MAN]), [BOTH_DOGS]]},
            {"image_id": 5, "sentence_id": 2, "boxes": [[]]},
        ]
    )
    assert scored.summary() == ranked.summary()
    rows = list(ranked.predictions())
    assert rows[0]["boxes"] == [[near, [0.0, 0.0, 10.0, 10.0]], [BOTH_DOGS]]


# what does not fit


def test_every_sentence_needs_a_prediction(tmp_path: Path) -> None:
    evaluator = FlickrEvaluator(entities(tmp_path), "val")
    evaluator.update([all_missed(0)])
    message = r"missing predictions for 1 of the 2 sentences of .*\(val\.txt\): sentence 2 of picture 5"
    with pytest.raises(DataError, match=message):
        evaluator.summary()
    with pytest.raises(DataError, match=message):
        evaluator.write(tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_other_phrases_are_refused(tmp_path: Path) -> None:
    evaluator = FlickrEvaluator(entities(tmp_path), "val")
    with pytest.raises(DataError, match=r"sentence 0 of picture 5: boxes for 1 phrases, but 2 have boxes in"):
        evaluator.update([found(0, tokens_positive_eval=[[[0, 5]]])])
    with pytest.raises(DataError, match=r"sentence 0 of picture 5: boxes for 3 phrases, but 2 have boxes in"):
        evaluator.update_ranked([{"image_id": 5, "sentence_id": 0, "boxes": [[], [], []]}])
    with pytest.raises(DataError, match=r"sentence 2 of picture 5: boxes for phrase 2, but 1 phrases have boxes in"):
        evaluator.update([found(2, (DOG, 0.5, 2))])
    with pytest.raises(DataError, match=r"caption 12 \(5\.jpg\): no original_img_id and sentence_id"):
        evaluator.update([Detections.empty(ImageMeta(12, (1, 1), (1, 1), "5.jpg"))])
    with pytest.raises(DataError, match=r"picture 5: sentence_id 'first' is not a whole number"):
        evaluator.update([found("first")])


def test_the_first_prediction_counts_and_strangers_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evaluator = FlickrEvaluator(entities(tmp_path), "val")
    evaluator.update([found(0, (MAN, 0.5, 1)), found(2), found(0), found(1, (DOG, 0.5, 1)), found(0, picture=6)])
    evaluator.update([found(7, tokens_positive_eval=[])])  # nothing was asked
    assert evaluator.summary()["Recall@1_people"] == 1
    with caplog.at_level(logging.WARNING):
        evaluator.write(tmp_path / "results")
    assert "the first one counts: sentence 0 of picture 5" in caplog.text
    assert "2 sentences were predicted that have no phrase with a box, or are not in the split" in caplog.text
    notes = json.loads((tmp_path / "results" / "results.json").read_text())["notes"]
    assert len(notes) == 2
    assert "sentence 1 of picture 5, sentence 0 of picture 6" in notes[1]


# files


def test_result_files(tmp_path: Path) -> None:
    evaluator = FlickrEvaluator(entities(tmp_path), "val", ("separate", "merged"))
    evaluator.update([found(2, (BOTH_DOGS, 0.25, 1)), found(0, (MAN, 0.75, 1), (MAN, 0.5, 2))])
    evaluator.write(tmp_path / "results", {"dataset": "mine"})
    folder = tmp_path / "results"
    assert sorted(path.name for path in folder.iterdir()) == [
        "bbox.csv",
        "bbox_merged.csv",
        "predictions.json",
        "results.json",
    ]
    lines = (folder / "bbox.csv").read_text().splitlines()
    assert lines[:2] == ["metric, avg ", "Recall@1_all, 0.3333333333333333 "]
    assert "Recall@1_animals, 0.5 " in (folder / "bbox_merged.csv").read_text().splitlines()
    man, none = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 0.0, 0.0]
    assert json.loads((folder / "predictions.json").read_text()) == [
        {"image_id": 5, "sentence_id": 0, "boxes": [[man, none], [man, none]], "scores": [[0.75], [0.5]]},
        {"image_id": 5, "sentence_id": 2, "boxes": [[BOTH_DOGS, none]], "scores": [[0.25]]},
    ]
    results = json.loads((folder / "results.json").read_text())
    assert results["dataset"] == "mine"
    assert results["metrics"]["Recall@1_people"] == 1
    assert results["counts"] == {
        "pictures": 1,
        "sentences": 2,
        "phrases": {"all": 3, "animals": 2, "other": 1, "people": 1},
        "detections": 3,
    }
    assert len(results["annotations"]["sha256"]) == 64
    assert "separate (any box)" in evaluator.table()
    assert "merged (one box around all)" in evaluator.table()


def test_the_digest_is_that_of_what_was_read(tmp_path: Path) -> None:
    one = read_entities(entities(tmp_path / "a"), "val").sha256
    assert read_entities(entities(tmp_path / "b"), "val").sha256 == one
    moved = [item("1", 0, 0, 10, 11), *OBJECTS[1:]]
    assert read_entities(entities(tmp_path / "b", moved), "val").sha256 != one
