"""Numbers that a config expects of an evaluation (``TEST.EXPECTED_RESULTS``), compared with those that it gave."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

MAIN_TASKS = ("", "bbox", "box_proposal")  # what the original calls the task whose numbers have no task before them

Row = tuple[str, str, float, float]  # task, metric, mean, standard deviation


@dataclass(frozen=True)
class Check:
    """What became of an expectation."""

    name: str  # of the number: "AP", "segm/AP", "Recall@1_all"
    mean: float
    std: float
    actual: float | None  # None: the evaluation gave no such number
    passed: bool


def check_expected(
    numbers: Mapping[str, float], rows: Sequence[Row], sigma_tol: float = 4.0, task: str = ""
) -> list[Check]:
    """Compare, and log PASS or FAIL for each expectation; raises nothing, since the results are there already.

    Args:
        numbers: Of an evaluator's ``summary()``, 0..1.
        rows: ``TEST.EXPECTED_RESULTS``: ("bbox", "AP", 0.384, 0.002), or ("segm", ...) for a number "segm/...".
        sigma_tol: How many standard deviations a number may be off (``TEST.EXPECTED_RESULTS_SIGMA_TOL``).
        task: What was evaluated, for the log.
    """
    checks = []
    for kind, metric, mean, std in rows:
        name = metric if kind in MAIN_TASKS else f"{kind}/{metric}"
        actual = numbers.get(name)
        check = Check(name, mean, std, actual, actual is not None and abs(actual - mean) < sigma_tol * std)
        checks.append(check)
        where = f"{task}: " if task else ""
        got = f"is {actual:.4f}" if actual is not None else f"was not measured (but {', '.join(numbers)})"
        text = f"{where}{name} {got}, expected {mean:.4f} within {sigma_tol:g} times {std:.4f}"
        if check.passed:
            logger.info("PASS %s", text)
        else:
            logger.warning("FAIL %s", text)
    return checks
