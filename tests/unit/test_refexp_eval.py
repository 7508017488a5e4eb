"""Referring expressions: what counts as found, and what is said about files that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.refexp import RefExpEvaluator
from maskrcnn_benchmark.structures import Detections, ImageMeta

RIGHT = [10.0, 10.0, 30.0, 30.0]  # the box of each expression
HALF = [10.0, 10.0, 20.0, 30.0]  # IoU and GIoU 0.5
FAR = [100.0, 100.0, 120.0, 120.0]


def truth(names: Sequence[str] = ("refcocos", "refcocos", "refcoco")) -> dict[str, Any]:
    """Expressions 1, 2, ... about the same box."""
    size = {"width": 200, "height": 200}
    images = [
        {"id": i, "file_name": "1.jpg", "caption": "the cup", "dataset_name": name, **size}
        for i, name in enumerate(names, 1)
    ]
    boxes = [{"id": row["id"], "image_id": row["id"], "bbox": [10, 10, 20, 20]} for row in images]
    return {"images": images, "annotations": boxes}


def write(folder: Path, data: Any) -> Path:
    path = folder / "finetune.json"
    path.write_text(json.dumps(data))
    return path


def found(entry: int | str, *rows: tuple[Sequence[float], float]) -> Detections:
    """(box, score) rows of an expression."""
    boxes = torch.tensor([box for box, _ in rows], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([score for _, score in rows], dtype=torch.float32)
    meta = ImageMeta(entry, (200, 200), (200, 200), "1.jpg")
    return Detections(boxes, scores, torch.ones(len(rows), dtype=torch.int64), meta)


def test_hits_among_the_best_boxes(tmp_path: Path) -> None:
    evaluator = RefExpEvaluator(write(tmp_path, truth()))
    wrong = [(FAR, 0.9 - rank / 100) for rank in range(4)]
    evaluator.update([found(3, *wrong, (RIGHT, 0.1)), found(1, (RIGHT, 0.5), (FAR, 0.4))])
    evaluator.update([found(2, *wrong, (FAR, 0.5), (HALF, 0.1))])
    got = evaluator.summary()
    assert [got[f"P@{k}"] for k in (1, 5, 10)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [got[f"refcocos/P@{k}"] for k in (1, 5, 10)] == [0.5, 0.5, 1]
    assert [got[f"refcoco/P@{k}"] for k in (1, 5, 10)] == [0, 1, 1]
    assert evaluator.main in got
    assert evaluator.counts == {"refcoco": 1, "refcocos": 2}


def test_generalised_iou_is_stricter(tmp_path: Path) -> None:
    evaluator = RefExpEvaluator(write(tmp_path, truth(["any name"])))
    evaluator.update([found(1, ([10, 10, 40, 29], 0.9))])  # IoU 380 / 590, hull 600
    assert (evaluator.summary()["P@1"], evaluator.summary()["P@1_IoU"]) == (1, 1)
    evaluator = RefExpEvaluator(write(tmp_path, truth(["any name"])))
    evaluator.update([found(1, ([10, 4, 36, 27], 0.9))])  # IoU 340 / 658 = 0.52, hull 676: GIoU 0.49
    assert (evaluator.summary()["P@1"], evaluator.summary()["P@1_IoU"]) == (0, 1)
    assert evaluator.summary()["any name/P@1_IoU"] == 1


def test_the_larger_box_of_equal_scores_comes_first(tmp_path: Path) -> None:
    for other, hit in ((FAR, 0), ([10.0, 10.0, 12.0, 12.0], 1), ([10.0, 11.0, 12.0, 12.0], 0)):
        for order in ((RIGHT, other), (other, RIGHT)):
            evaluator = RefExpEvaluator(write(tmp_path, truth(["refcoco"])))
            evaluator.update([found(1, *((box, 0.5) for box in order))])
            assert evaluator.summary()["P@1"] == hit
            assert evaluator.summary()["P@5"] == 1


def test_no_boxes_are_a_miss_and_no_prediction_is_an_error(tmp_path: Path) -> None:
    evaluator = RefExpEvaluator(write(tmp_path, truth()))
    evaluator.update([found(1), found(2, (RIGHT, 0.5))])
    message = r"missing predictions for 1 of the 3 expressions of .*finetune\.json: 3"
    with pytest.raises(DataError, match=message):
        evaluator.summary()
    with pytest.raises(DataError, match=message):
        evaluator.write(tmp_path / "results")
    evaluator.update([found(3)])
    assert evaluator.summary()["P@10"] == pytest.approx(1 / 3)
    assert evaluator.card()["counts"]["expressions_without_boxes"] == 2


def test_strangers_and_doubles_are_refused(tmp_path: Path) -> None:
    evaluator = RefExpEvaluator(write(tmp_path, truth()))
    with pytest.raises(DataError, match=r"expression 9 \(1\.jpg\) was scored but is not in"):
        evaluator.update([found(9)])
    with pytest.raises(DataError, match=r"expression 1 \(1\.jpg\) was scored twice"):
        evaluator.update([found(1), found(1)])


def without_a_box(data: dict[str, Any]) -> None:
    data["annotations"].pop()


def with_two_boxes(data: dict[str, Any]) -> None:
    data["annotations"].append({"id": 9, "image_id": 1, "bbox": [0, 0, 1, 1]})


def without_a_name(data: dict[str, Any]) -> None:
    del data["images"][0]["dataset_name"]


def with_a_broken_box(data: dict[str, Any]) -> None:
    data["annotations"][0]["bbox"] = [1, 2, 3]


def without_images(data: dict[str, Any]) -> None:
    del data["images"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_a_box, r"images\[2\] \(id 3\): 0 annotations; a referring expression has exactly one"),
        (with_two_boxes, r"images\[0\] \(id 1\): 2 annotations; a referring expression has exactly one"),
        (without_a_name, r'images\[0\] \(id 1\): no dataset_name, such as "refcoco"'),
        (with_a_broken_box, r"annotations\[0\] \(id 1\): bbox \[1, 2, 3\] is not four numbers"),
        (without_images, r'no "images" list'),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None], message: str
) -> None:
    data = truth()
    spoil(data)
    with pytest.raises(DataError, match=message):
        RefExpEvaluator(write(tmp_path, data))
    with pytest.raises(DataError, match="no such annotation file"):
        RefExpEvaluator(tmp_path / "nowhere.json")


def test_result_files(tmp_path: Path) -> None:
    evaluator = RefExpEvaluator(write(tmp_path, truth(["refcocos", "refcocog"])))
    evaluator.update([found(2, (FAR, 0.5)), found(1, (FAR, 0.25), (RIGHT, 0.5))])
    folder = tmp_path / "results"
    evaluator.write(folder, {"dataset": "mine"})
    assert sorted(path.name for path in folder.iterdir()) == ["Recall_results.csv", "predictions.json", "results.json"]
    lines = (folder / "Recall_results.csv").read_text().splitlines()
    assert lines[0] == "metric, avg "
    assert lines[1] == "refcoco: Recall@1 = 0.0 "  # always in the file of FIBER
    assert lines[-3:] == [f"refcocos: Recall@{k} = 1.0 " for k in (1, 5, 10)]
    assert len(lines) == 1 + 4 * 3
    assert json.loads((folder / "predictions.json").read_text()) == [
        {"image_id": 1, "scores": [0.5, 0.25], "boxes": [RIGHT, FAR]},
        {"image_id": 2, "scores": [0.5], "boxes": [FAR]},
    ]
    results = json.loads((folder / "results.json").read_text())
    assert results["dataset"] == "mine"
    assert results["metrics"]["refcocos/P@1"] == 1
    assert "refcoco/P@1" not in results["metrics"]  # nothing was measured
    assert results["protocol"]["measured"] == {"P@k": "GIoU >= 0.5", "P@k_IoU": "IoU >= 0.5"}
    assert results["counts"]["expressions_by_name"] == {"refcocog": 1, "refcocos": 1}
    assert len(results["annotations"]["sha256"]) == 64
    assert "100.00" in evaluator.table()
