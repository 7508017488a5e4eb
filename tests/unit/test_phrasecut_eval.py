"""PhraseCut: what counts as an answer, how much of it fits, which subsets a phrase is in; and broken files."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn_benchmark.data.catalog import Entry
from maskrcnn_benchmark.data.datasets.modulated_captions import ModulatedCaptions
from maskrcnn_benchmark.data.drawn import Split, World
from maskrcnn_benchmark.data.drawn.forms import write_phrasecut
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.build import Protocols, make_evaluator
from maskrcnn_benchmark.evaluation.phrasecut import PhraseCutEvaluator, painted_iou
from maskrcnn_benchmark.evaluation.phrasecut_subsets import SUBSETS, PhraseStructure, Ranks, subsets_of
from maskrcnn_benchmark.evaluation.phrasecut_tasks import read_tasks
from maskrcnn_benchmark.structures import Detections, ImageMeta
from maskrcnn_benchmark.structures.boxes import xywh_to_xyxy

SIZE = (20, 30)  # h, w
SQUARE = [[2, 3], [11, 3], [11, 12], [2, 12]]  # painted with its outline: 10 x 10 pixels
FILE = "refer_test.json"


def files() -> dict[str, Any]:
    """Two phrases of one picture, each about a square."""
    structure = {"name": "cup", "attributes": ["red"], "relation_descriptions": [], "type": "attribute"}
    task = {"image_id": 7, "phrase": "red cup", "instance_boxes": [[2, 3, 10, 10]], "Polygons": [[SQUARE]]}
    return {
        FILE: [{"task_id": f"7__{i}", **task, "phrase_structure": structure} for i in (1, 2)],
        "image_data_split.json": [
            {"image_id": 7, "height": SIZE[0], "width": SIZE[1], "split": "test", "coco_id": None}
        ],
        "name_att_rel_count.json": {"cat": [["cup", 5]], "att": [["red", 3]], "rel": []},
    }


def store(folder: Path, data: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in data.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture
def evaluator(tmp_path: Path) -> PhraseCutEvaluator:
    return PhraseCutEvaluator(store(tmp_path, files()), "test")


def found(task: str, *rows: tuple[float, list[float]], masks: bool = True, size: tuple[int, int] = SIZE) -> Detections:
    """(score, xyxy box) rows; each mask is its box, filled."""
    boxes = torch.tensor([box for _, box in rows]).reshape(-1, 4)
    filled = torch.zeros(len(rows), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(filled, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    labels = torch.ones(len(rows), dtype=torch.int64)
    scores = torch.tensor([score for score, _ in rows])
    meta = ImageMeta(1, size, size, "7.png", extra={"task_id": task})
    return Detections(boxes, scores, labels, meta, masks=filled if masks else None)


# what counts


def test_answers_above_the_score_count_together(evaluator: PhraseCutEvaluator) -> None:
    halves = (0.9, [2.0, 3, 12, 8]), (0.8, [2.0, 8, 12, 13]), (0.7, [0.0, 0, 30, 20])
    evaluator.update([found("7__1", *halves), found("7__2", (0.5, [2.0, 3, 12, 13]))])
    rows = list(evaluator.predictions())
    assert [row["mask_iou"] for row in rows] == [1.0, 0.0]
    assert [(row["intersection"], row["union"]) for row in rows] == [(100, 100), (0, 100)]
    assert rows[0]["boxes"] == [[2, 3, 10, 5], [2, 8, 10, 5]]
    assert rows[0]["box_iou"] == pytest.approx(72 / 81)  # a row is lost between the two, and one at each end
    numbers = evaluator.summary()
    assert (numbers["mask_mean_iou"], numbers["mask_cum_iou"], numbers["mask_Pr@0.9"]) == (0.5, 0.5, 0.5)
    assert evaluator.main == "mask_mean_iou"


def test_an_iou_at_the_limit_is_not_above_it(evaluator: PhraseCutEvaluator) -> None:
    evaluator.update([found("7__1", (0.9, [2.0, 3, 12, 8])), found("7__2", (0.9, [2.0, 3, 12, 13]))])
    numbers = evaluator.summary()
    assert numbers["mask_mean_iou"] == 0.75
    assert numbers["mask_Pr@0.5"] == 0.5


def test_boxes_without_masks(evaluator: PhraseCutEvaluator) -> None:
    right = (0.9, [2.0, 3, 12, 13])
    evaluator.update([found(task, right, masks=False) for task in ("7__1", "7__2")])
    numbers = evaluator.summary()
    assert evaluator.main == "box_mean_iou"
    assert numbers["box_mean_iou"] == 1
    assert not any("mask" in name for name in numbers)
    assert "mask_rle" not in next(evaluator.predictions())


def test_nothing_found_is_a_miss(evaluator: PhraseCutEvaluator) -> None:
    nothing = Detections.empty(ImageMeta(1, SIZE, SIZE, extra={"task_id": "7__1"}))
    evaluator.update([nothing, found("7__2", (0.9, [2.0, 3, 12, 13]))])
    assert evaluator.summary()["mask_mean_iou"] == 0.5
    assert evaluator.card()["counts"]["phrases_without_boxes"] == 1


def test_boxes_are_painted_without_their_last_pixel() -> None:
    one = np.array([[2.0, 3, 10, 10]])
    assert painted_iou(one, one) == 1
    assert painted_iou(np.zeros((0, 4)), one) == 0
    assert painted_iou(np.array([[2.0, 3, 10, 19]]), one) == pytest.approx(81 / (9 * 18))
    assert painted_iou(np.array([[-2.0, 3, 14, 10]]), one) < 0.2  # begins outside the picture


def test_phrases_that_do_not_belong(evaluator: PhraseCutEvaluator) -> None:
    right = (0.9, [2.0, 3, 12, 13])
    with pytest.raises(DataError, match=r"phrase '8__1' was scored but is not in .*refer_test\.json"):
        evaluator.update([found("8__1", right)])
    with pytest.raises(DataError, match=r"phrase '7__1': the mask is 9 x 30 pixels .* picture 7 is 20 x 30"):
        evaluator.update([found("7__1", right, size=(9, 30))])
    evaluator.update([found("7__1", right)])
    with pytest.raises(DataError, match="phrase '7__1' was scored twice"):
        evaluator.update([found("7__1", right)])
    with pytest.raises(DataError, match=r"missing predictions for 1 of the 2 phrases of .*: '7__2'"):
        evaluator.summary()
    with pytest.raises(DataError, match="no task_id of PhraseCut"):
        evaluator.update([Detections.empty(ImageMeta(1, SIZE, SIZE))])
    evaluator.update([found("7__2", right, masks=False)])
    with pytest.raises(DataError, match="phrase '7__2': detections without masks, while others have them"):
        evaluator.summary()


def test_files_and_table(evaluator: PhraseCutEvaluator, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evaluator.update([found(task, (0.9, [2.0, 3, 12, 13])) for task in ("7__1", "7__2")])
    with caplog.at_level(logging.INFO):
        evaluator.write(tmp_path / "out", {"dataset": "mine"})
    assert "| mask (test) | 100.0 |          100.0 |          100.0 |          100.0 |" in caplog.text
    assert "| PhraseCut   | M-IoU | Precision @0.5 | Precision @0.7 | Precision @0.9 |" in caplog.text
    card = json.loads((tmp_path / "out" / "results.json").read_text())
    assert card["metrics"] == evaluator.summary()
    assert card["counts"] == {"pictures": 1, "phrases": 2, "phrases_without_boxes": 0, "detections": 2}
    subsets = json.loads((tmp_path / "out" / "subsets.json").read_text())
    assert set(subsets) == {"all", "c_coco", "c20", "c100", "c500", "i_single", "p_att", "p_att+", "t_obj", "s_mid"} | {
        *("a20", "a100", "a200", "a_color", "d_notcocotv")
    }
    assert subsets["all"]["phrases"] == 2
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [row["task_id"] for row in rows] == ["7__1", "7__2"]
    assert rows[0]["mask_rle"]["size"] == list(SIZE)


# subsets


def names(name: str = "cup", *attributes: str, instances: int = 1, share: float = 0.1, relations: int = 0) -> set[str]:
    ranks = Ranks([f"n{i}" for i in range(600)], [f"a{i}" for i in range(300)])
    phrase = PhraseStructure(name, attributes, relations, "verbose")
    return subsets_of(phrase, ranks, instances, share, from_coco=True)


def test_every_subset_has_its_rule() -> None:
    assert len(SUBSETS) == len(set(SUBSETS)) == 43
    assert names() <= set(SUBSETS)
    for rank, expected in {
        0: {"c20", "c100", "c500"},
        20: {"c21-100", "c100", "c500"},
        100: {"c101-500", "c500"},
        500: {"c500+"},
    }.items():
        assert {name for name in names(f"n{rank}") if name[:2] in ("c1", "c2", "c5")} == expected
    assert {"a20", "a100", "a200"} <= names("cup", "a250", "a5")
    assert {"a101-200", "a200"} <= names("cup", "a100")
    assert "a200+" in names()
    assert "t_stuff" in names("windowsill")
    assert {"c_coco", "t_obj"} <= names("dog")
    assert "p_att_rel" in names("dog", "red", relations=1)
    assert {"p_attm", "p_relm", "p_verbose"} <= names("dog", "red", "wooden", relations=2)
    assert {"a_color", "a_material"} <= names("dog", "red", "wooden")
    for count, expected in {1: "i_single", 2: "i_multi", 4: "i_multi", 5: "i_many"}.items():
        assert expected in names(instances=count)
    for part, expected in {0.019: "s_small", 0.02: "s_mid", 0.2: "s_mid", 0.21: "s_large"}.items():
        assert expected in names(share=part)


# reading


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "doubled": (lambda data: data[FILE][1].update(task_id="7__1"), r"\[1\] \(task_id '7__1'\): task_id is there twice"),
    "picture": (lambda data: data[FILE][0].update(image_id=9), "image_id 9 is not in image_data_split.json"),
    "size": (lambda data: data["image_data_split.json"][0].pop("width"), "gives no width and height of picture 7"),
    "boxes": (lambda data: data[FILE][0].update(instance_boxes=[]), "not boxes .* at least one"),
    "polygons": (lambda data: data[FILE][0].update(Polygons=[[[1, 2]]]), "Polygons is .* not for each instance"),
    "structure": (lambda data: data[FILE][0].pop("phrase_structure"), "no phrase_structure with a name"),
    "words": (lambda data: data.update({"name_att_rel_count.json": {}}), 'no lists "cat" and "att"'),
    "no list": (lambda data: data.update({FILE: {}}), "not a list of JSON objects"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_ground_truth(tmp_path: Path, name: str) -> None:
    change, words = BROKEN[name]
    data = files()
    change(data)
    with pytest.raises(DataError, match=words):
        read_tasks(store(tmp_path, data), "test")


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"refer_val\.json: no such file of phrases \(there: refer_test\.json\)"):
        read_tasks(store(tmp_path, files()), "val")
    entry = Entry("cut", "phrasecut", tmp_path, tmp_path / "a.json", "phrasecut", {"split": "test"})
    with pytest.raises(DataError, match="data set 'cut': no original: the evaluator 'phrasecut' needs the folder"):
        PhraseCutEvaluator.from_entry(entry)


# the drawn world


def test_a_perfect_answer_to_drawn_phrases(tmp_path: Path) -> None:
    done = write_phrasecut(tmp_path / "cut", World(3, Split.SEEN, (96, 128)), 6)
    options = {key: done.entry[key] for key in ("original", "split")}
    entry = Entry("cut", "phrasecut", tmp_path / "cut" / "pictures", done.annotations, "phrasecut", options)
    dataset = ModulatedCaptions.from_entry(entry)
    assert dataset.num_entries == done.counts["phrases"]
    evaluator = make_evaluator(entry, dataset, Protocols(boxes=True))
    tasks = {task.task_id: task for task in read_tasks(done.entry["original"], done.entry["split"]).tasks}
    for picture in range(len(dataset)):
        size = dataset.size(picture)
        assert size is not None
        for number in dataset.entries(picture):
            meta = dataset.meta(number, size)
            task = tasks[str(meta.extra["task_id"])]
            boxes = xywh_to_xyxy(torch.from_numpy(task.boxes).float())
            masks = torch.from_numpy(task.mask()).expand(len(boxes), *size)
            labels = torch.ones(len(boxes), dtype=torch.int64)
            evaluator.update([Detections(boxes, torch.full((len(boxes),), 0.9), labels, meta, masks=masks)])
    numbers = evaluator.summary()
    assert evaluator.main == "mask_mean_iou"
    for name in ("mask_mean_iou", "mask_cum_iou", "mask_Pr@0.9", "box_mean_iou", "box_Pr@0.9", "boxes/AP50"):
        assert numbers[name] == pytest.approx(1), name
    evaluator.write(tmp_path / "out")
    card = json.loads((tmp_path / "out" / "results.json").read_text())
    assert card["metrics"] == numbers
    assert (
        card["metrics"]["boxes/AP50"]
        == json.loads((tmp_path / "out/boxes/results.json").read_text())["metrics"]["AP50"]
    )
