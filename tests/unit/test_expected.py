"""Numbers that a config expects of an evaluation."""

from __future__ import annotations

import logging

import pytest

from maskrcnn_benchmark.evaluation.expected import check_expected


def test_each_expectation_passes_or_fails_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    numbers = {"AP": 0.405, "AP50": 0.6, "segm/AP": 0.3}
    rows = [("bbox", "AP", 0.4, 0.002), ("", "AP50", 0.5, 0.01), ("segm", "AP", 0.3, 0.1), ("bbox", "AR@7", 0.1, 0.1)]
    with caplog.at_level(logging.INFO):
        checks = check_expected(numbers, rows, sigma_tol=4, task="val")
    assert [check.passed for check in checks] == [True, False, True, False]
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "PASS val: AP is 0.4050, expected 0.4000 within 4 times 0.0020"
    assert lines[1].startswith("FAIL val: AP50 is 0.6000, expected 0.5000")
    assert lines[3].startswith("FAIL val: AR@7 was not measured (but AP, AP50, segm/AP)")


def test_the_border_itself_fails() -> None:
    """As in the original: within means less than."""
    assert [
        c.passed for c in check_expected({"AP": 0.75}, [("bbox", "AP", 0.5, 0.25), ("bbox", "AP", 0.75, 0)], 1)
    ] == [
        False,
        False,
    ]
    assert check_expected({"AP": 0.5}, []) == []
