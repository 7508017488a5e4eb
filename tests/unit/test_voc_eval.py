"""PASCAL VOC average precision: small cases worked out by hand, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn_benchmark.data.datasets.voc import VocDataset, VocObjects
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.evaluation.interface import Evaluator
from maskrcnn_benchmark.evaluation.voc import PROTOCOLS, VocEvaluator, average_precision
from maskrcnn_benchmark.structures import Detections, ImageMeta
from tests.golden.common import shared_path
from tests.unit.voc_files import voc_object, write_voc

A, B, FAR = (0, 0, 9, 9), (20, 0, 29, 9), (50, 50, 69, 69)
Box = tuple[float, ...]


def objects(*rows: tuple[Box, int, bool]) -> VocObjects:
    return VocObjects(
        np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4),
        np.array([label for _, label, _ in rows], np.int64),
        np.array([difficult for _, _, difficult in rows], bool),
    )


def found(image_id: str, *rows: tuple[Box, float, int]) -> Detections:
    return Detections(
        torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([score for _, score, _ in rows], dtype=torch.float32),
        torch.tensor([label for _, _, label in rows], dtype=torch.int64),
        ImageMeta(image_id, (99, 99), (99, 99)),
    )


def evaluate(
    truth: dict[int | str, VocObjects], *detections: Detections, protocol: str = "lineage", names: str = "cat dog"
) -> VocEvaluator:
    evaluator = VocEvaluator(truth, names.split(), protocol)
    evaluator.update(detections)
    return evaluator


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_everything_found_is_1_and_nothing_found_is_0(protocol: str) -> None:
    truth: dict[int | str, VocObjects] = {"x": objects((A, 1, False), (B, 2, False))}
    evaluator = VocEvaluator(truth, ["cat", "dog"], protocol)
    edge = 1 if protocol in ("07", "12") else 0  # detectron2's right and bottom edges are outside
    evaluator.update(
        [found("x", *(((x1, y1, x2 + edge, y2 + edge), 0.9, n) for (x1, y1, x2, y2), n in ((A, 1), (B, 2))))]
    )
    assert evaluator.summary() == pytest.approx(dict.fromkeys(evaluator.summary(), 1.0))
    nothing = evaluate(truth, found("x", (FAR, 0.9, 1)), protocol=protocol)
    assert nothing.summary() == dict.fromkeys(evaluator.summary(), 0.0)


def test_an_object_counts_once_and_for_the_best_score() -> None:
    truth: dict[int | str, VocObjects] = {"x": objects((A, 1, False), (B, 1, False))}
    evaluator = evaluate(truth, found("x", (A, 0.9, 1), (A, 0.8, 1), (B, 0.7, 1)))
    assert evaluator.summary()["AP50"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    area = evaluate(truth, found("x", (A, 0.9, 1), (A, 0.8, 1), (B, 0.7, 1)), protocol="lineage_area")
    assert area.summary()["AP50"] == pytest.approx((1 + 2 / 3) / 2)


def test_difficult_objects_neither_help_nor_harm() -> None:
    truth: dict[int | str, VocObjects] = {"x": objects((A, 1, False), (B, 1, True), (FAR, 2, True))}
    evaluator = evaluate(truth, found("x", (B, 0.9, 1), (B, 0.8, 1), (A, 0.7, 1), (FAR, 0.9, 2)))
    assert evaluator.summary() == {"AP50": pytest.approx(1)}
    rows = evaluator.per_category()
    assert rows[0] == {"id": 1, "name": "cat", "objects": 1, "difficult": 1, "AP50": pytest.approx(1)}
    assert rows[1] == {"id": 2, "name": "dog", "objects": 0, "difficult": 1, "AP50": -1}
    assert evaluator.result_txt() == "mAP: 1.0000\ncat             : 1.0000\ndog             : nan\n"


def test_pictures_without_detections_count_unless_the_protocol_says_otherwise() -> None:
    truth: dict[int | str, VocObjects] = {"x": objects((A, 1, False)), "y": objects((A, 1, False))}
    detections = (found("x", (A, 0.9, 1)), found("y"))
    assert evaluate(truth, *detections, protocol="lineage_area").summary()["AP50"] == 0.5
    assert evaluate(truth, *detections, protocol="lineage_area_skip_empty").summary()["AP50"] == 1


def test_of_equal_scores_the_later_one_leads_as_in_the_original() -> None:
    """Within a picture the later one takes the object; along the curve a later picture comes first."""
    truth: dict[int | str, VocObjects] = {"x": objects((A, 1, False)), "y": objects()}
    right, wrong = (A, 0.5, 1), (FAR, 0.5, 1)
    assert evaluate(truth, found("x", right), found("y", wrong), protocol="lineage_area").summary()["AP50"] == 0.5
    assert evaluate(truth, found("x", right), found("y"), protocol="lineage_area").summary()["AP50"] == 1
    other: dict[int | str, VocObjects] = {"y": objects(), "x": objects((A, 1, False))}
    assert evaluate(other, found("y", wrong), found("x", right), protocol="lineage_area").summary()["AP50"] == 1


def test_a_pixel_more_counts_in_the_lineage() -> None:
    """Boxes of 10 x 10 and 10 x 5 pixels: 50 of 100, but by the lineage's rule 66 of 121."""
    truth: dict[int | str, VocObjects] = {"x": objects((A, 1, False))}
    half = found("x", ((0, 0, 9, 4), 0.9, 1))
    assert evaluate(truth, half).summary()["AP50"] == pytest.approx(1)
    assert evaluate(truth, found("x", ((0, 0, 10, 5), 0.9, 1)), protocol="07").summary()["AP50"] == 0  # not above half


def test_ap_over_thresholds() -> None:
    """8 of 10 rows: found at 0.5 ... 0.75, and not at 0.8, which it does not exceed."""
    truth: dict[int | str, VocObjects] = {"x": objects((A, 1, False))}
    numbers = evaluate(truth, found("x", ((0, 0, 10, 8), 0.9, 1)), protocol="12").summary()
    assert numbers == {"AP": pytest.approx(0.6), "AP50": pytest.approx(1), "AP75": pytest.approx(1)}


def test_recall_that_is_never_reached_counts_as_0() -> None:
    assert average_precision(np.array([1, 0, -1]), 4, eleven_points=True) == pytest.approx(3 / 11)
    assert average_precision(np.array([1, 0, -1]), 4, eleven_points=False) == pytest.approx(1 / 4)
    assert average_precision(np.array([-1, -1, 1]), 1, eleven_points=True) == pytest.approx(1)
    assert average_precision(np.zeros(0, np.int8), 4, eleven_points=True) == 0


def test_the_order_of_the_pictures_does_not_matter() -> None:
    truth: dict[int | str, VocObjects] = {"x": objects((A, 1, False)), "y": objects((B, 1, False))}
    detections = [found("x", (A, 0.5, 1), (FAR, 0.5, 1)), found("y", (B, 0.5, 1))]
    assert evaluate(truth, *detections).summary() == evaluate(truth, *detections[::-1]).summary()


def test_what_cannot_be_scored() -> None:
    truth: dict[int | str, VocObjects] = {"x": objects((A, 1, False)), "y": objects()}
    evaluator = evaluate(truth, found("x"))
    with pytest.raises(DataError, match=r"picture 'x' .* scored twice"):
        evaluator.update([found("x")])
    with pytest.raises(DataError, match=r"picture 'z' .* is not in annotations"):
        evaluator.update([found("z")])
    with pytest.raises(DataError, match="1 pictures scored, but annotations has 2"):
        evaluator.summary()
    with pytest.raises(ConfigError, match=r"no VOC protocol '2007'. Choices: lineage, "):
        VocEvaluator(truth, ["cat"], "2007")
    with pytest.raises(DataError, match="no picture to evaluate on"):
        VocEvaluator({}, ["cat"])


def test_files_of_a_data_set(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "VOC2007", {"a": [voc_object("dog", 1, 1, 10, 10)], "b": []})
    data = VocDataset(folder, folder, "test")
    evaluator: Evaluator = VocEvaluator.of(data)
    evaluator.update([found("a", (A, 0.75, 12), (A, 0.5, 99)), found("b", (FAR, 0.5, 12))])
    evaluator.write(tmp_path / "out", {"weights": "w"})
    lines = (tmp_path / "out/result.txt").read_text().splitlines()
    assert (len(lines), lines[0], lines[12]) == (21, "mAP: 1.0000", "dog             : 1.0000")
    card = json.loads((tmp_path / "out/results.json").read_text())
    assert card["metrics"] == {"AP50": 1.0} == evaluator.summary()
    assert (card["main"], card["protocol"], card["weights"]) == ("AP50", {"name": "voc_lineage"}, "w")
    assert card["annotations"] == {"file": str(data.annotations), "sha256": data.digest}
    assert card["counts"] == {
        "pictures": 2,
        "objects": 1,
        "difficult": 0,
        "categories": 20,
        "detections": 2,
        "detections_with_unknown_labels": 1,
    }
    assert [row["AP50"] for row in card["per_category"]["bbox"] if row["objects"]] == [1.0]
    predictions = torch.load(tmp_path / "out/predictions.pth", weights_only=True)
    assert [row["image_id"] for row in predictions] == ["a", "b"]
    assert predictions[0]["boxes"].tolist() == [list(A)]
    assert "| dog" in evaluator.table()


def test_real_ground_truth_finds_itself() -> None:
    folder = shared_path("data", "DATASET", "derived", "voc", "VOC2007")
    data = VocDataset(folder, folder, "test")
    for protocol in PROTOCOLS:
        evaluator = VocEvaluator.of(data, protocol)
        edge = np.array([0, 0, 1, 1] if protocol in ("07", "12") else [0, 0, 0, 0], np.float32)
        for name, truth in zip(data.ids, data.objects, strict=True):
            rows = zip((truth.boxes + edge).tolist(), truth.labels.tolist(), strict=True)
            evaluator.update([found(name, *((tuple(box), 0.9, label) for box, label in rows))])
        assert evaluator.summary() == pytest.approx(dict.fromkeys(evaluator.summary(), 1.0))
