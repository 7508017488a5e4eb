"""Several tasks as one table and one number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.suite import suite

RESULTS = {
    "fish": {"AP": 0.5, "AP50": 0.75, "AR@1": 0.1},
    "pothole": {"AP": 0.25, "AP50": 0.5},
    "dice": {"AP": 0.0, "AP50": 0.25},
}
SPLITS = {"fish": "val", "pothole": "val", "dice": "minival"}


def test_mean_and_median_count_every_task_alike(tmp_path: Path) -> None:
    found = suite(RESULTS, SPLITS)
    assert found.mean() == found.median() == 0.25
    assert (found.mean("AP50"), found.median("AP50")) == (0.5, 0.5)
    lines = found.text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert ["fish", "val", "0.5000", "0.7500"] in cells
    assert ["mean", "3 tasks", "0.2500", "0.5000"] in cells
    assert lines[-1] == "note: of several splits: val 2, minival 1"
    found.write(tmp_path)
    assert (tmp_path / "summary.txt").read_text().rstrip("\n") == found.text()
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "tasks": [
            {"task": "fish", "split": "val", "AP": 0.5, "AP50": 0.75},
            {"task": "pothole", "split": "val", "AP": 0.25, "AP50": 0.5},
            {"task": "dice", "split": "minival", "AP": 0.0, "AP50": 0.25},
        ],
        "mean": {"AP": 0.25, "AP50": 0.5},
        "median": {"AP": 0.25, "AP50": 0.5},
        "counts": {"tasks": 3, "measured": 3},
        "splits": {"val": 2, "minival": 1},
        "notes": ["of several splits: val 2, minival 1"],
    }


def test_a_task_without_objects_is_told_and_not_counted_as_zero() -> None:
    found = suite({"a": {"AP": 0.5, "AP50": 0.6}, "b": {"AP": -1.0, "AP50": -1.0}}, {"a": "val", "b": "val"})
    assert found.mean() == 0.5
    assert found.as_dict()["counts"] == {"tasks": 2, "measured": 1}
    assert found.notes == ["mean and median of 1 of 2 tasks: nothing to measure on in b"]
    assert suite({"b": {"AP": -1.0, "AP50": -1.0}}, {"b": "val"}).mean() == -1


@pytest.mark.parametrize(
    ("results", "splits", "message"),
    [
        ({}, {}, "at least one task"),
        ({"fish": RESULTS["fish"]}, SPLITS, r"no result for 2 of 3 tasks \(pothole, dice\): the mean of a part is not"),
        (RESULTS, {"fish": "val", "dice": "val"}, "results of pothole, which is not in the suite"),
        ({"a": {"P@1": 0.5}}, {"a": "val"}, "task 'a' has no AP and AP50, only P@1"),
    ],
)
def test_no_number_for_part_of_a_suite(
    results: dict[str, dict[str, float]], splits: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        suite(results, splits)
