"""COCO's scores by other rules: pooled classes, seen and unseen classes, proposals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.coco_variants import CocoAgnosticEvaluator, CocoZeroShotEvaluator, zero_shot_split
from maskrcnn_benchmark.evaluation.interface import Evaluator
from maskrcnn_benchmark.evaluation.proposals import ProposalEvaluator
from maskrcnn_benchmark.structures import Detections, ImageMeta

LABELS = {1: 4, 2: 9, 3: 12}
CAT, DOG, PERSON = (10, 10, 60, 60), (70, 10, 99, 90), (5, 60, 50, 99)


def truth(*names: str) -> dict[str, Any]:
    """Two pictures; category ids as in LABELS. The second class is in both."""
    boxes = [(1, 4, CAT), (1, 9, DOG), (2, 9, DOG), (2, 12, PERSON)]
    return {
        "images": [{"id": number, "width": 100, "height": 100} for number in (1, 2)],
        "categories": [{"id": id_, "name": name} for id_, name in zip((4, 9, 12), names, strict=True)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            for number, (image, category, (x1, y1, x2, y2)) in enumerate(boxes, 1)
        ],
    }


def found(image_id: int, *rows: tuple[tuple[int, int, int, int], float, int]) -> Detections:
    return Detections(
        torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([score for _, score, _ in rows]),
        torch.tensor([label for _, _, label in rows], dtype=torch.int64),
        ImageMeta(image_id, (100, 100), (100, 100)),
    )


MIXED_UP = [found(1, (CAT, 0.9, 2), (DOG, 0.8, 1)), found(2, (DOG, 0.9, 2), (PERSON, 0.8, 3))]


def test_class_agnostic_scores_do_not_look_at_the_class() -> None:
    evaluator: Evaluator = CocoAgnosticEvaluator(truth("cat", "dog", "person"), LABELS)
    evaluator.update(MIXED_UP)
    numbers = evaluator.summary()
    assert numbers["AP"] == numbers[evaluator.main] == pytest.approx(1)


def test_class_agnostic_works_where_no_category_is_called_1(tmp_path: Path) -> None:
    evaluator = CocoAgnosticEvaluator(truth("cat", "dog", "person"), {1: 4})
    evaluator.update([found(1, (CAT, 0.9, 1), (DOG, 0.8, 1)), found(2, (DOG, 0.9, 1), (PERSON, 0.8, 1))])
    evaluator.write(tmp_path, {"weights": "w"})
    card = json.loads((tmp_path / "results.json").read_text())
    assert card["metrics"]["AP"] == pytest.approx(1)
    assert (card["main"], card["protocol"], card["weights"]) == ("AP50", {"name": "coco_agnostic"}, "w")


def test_seen_and_unseen_classes_apart(tmp_path: Path) -> None:
    """Cats and dogs are unseen. No cat is found; of the dogs one, after what is wrongly called so in picture 1."""
    evaluator: Evaluator = CocoZeroShotEvaluator(truth("cat", "dog", "person"), LABELS)
    evaluator.update(MIXED_UP)
    numbers = evaluator.summary()
    dogs = 0.5 * 51 / 101  # precision 0.5 up to recall 0.5
    assert numbers["AP50-seen"] == pytest.approx(1)
    assert numbers["AP50-unseen"] == numbers[evaluator.main] == pytest.approx(dogs / 2)
    assert numbers["AP50"] == pytest.approx((1 + 2 * numbers["AP50-unseen"]) / 3)
    evaluator.write(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["metrics"] == numbers
    assert evaluator.table().splitlines()[1].split("|")[2].strip() == "AP50-seen"


def test_the_split_has_48_and_17_classes() -> None:
    seen, unseen = zero_shot_split()["seen"], zero_shot_split()["unseen"]
    assert (len(set(seen)), len(set(unseen)), set(seen) & set(unseen)) == (48, 17, set())
    assert {"person", "toothbrush"} <= set(seen)
    assert {"airplane", "scissors", "tie"} <= set(unseen)


def test_zero_shot_needs_classes_of_coco() -> None:
    with pytest.raises(DataError, match=r"annotations: has none of the 17 unseen classes of COCO \(airplane, ...\)"):
        CocoZeroShotEvaluator(truth("person", "bicycle", "wolf"), LABELS)
    evaluator = CocoZeroShotEvaluator({**truth("cat", "dog", "person"), "annotations": []}, LABELS)
    evaluator.update([found(1), found(2)])
    assert evaluator.summary()["AP50-unseen"] == -1


def test_proposals(tmp_path: Path) -> None:
    """Of two boxes that cover an object one is used; those beyond the limit do not count."""
    evaluator: Evaluator = ProposalEvaluator(truth("cat", "dog", "person"), limits=(1, 100))
    evaluator.update([found(2, (DOG, 0.9, 7), (DOG, 0.8, 7), (PERSON, 0.7, 1))])
    with pytest.raises(DataError, match=r"1 pictures scored, but annotations has 2.*\(without boxes: picture 1\)"):
        evaluator.summary()
    evaluator.update([found(1, (CAT, 0.9, 1))])
    numbers = evaluator.summary()
    assert numbers["AR@1"] == pytest.approx(0.5)
    assert numbers["AR@100"] == numbers[evaluator.main] == pytest.approx(0.75)
    assert numbers["ARs@100"] == -1
    evaluator.write(tmp_path)
    assert json.loads((tmp_path / "box_proposals.json").read_text()) == {"box_proposal": numbers}
    card = json.loads((tmp_path / "results.json").read_text())
    assert (card["metrics"], card["counts"]) == (numbers, {"pictures": 2, "objects": 4, "detections": 4})
    assert "AR@" not in evaluator.table()
    for wrong, message in ((found(1), "picture 1 .* scored twice"), (found(5), "picture 5 .* is not in annotations")):
        with pytest.raises(DataError, match=message):
            evaluator.update([wrong])
