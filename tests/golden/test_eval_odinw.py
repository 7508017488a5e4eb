"""The mean and median of ODinW against stored numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.config.task_files import find_task_files
from maskrcnn_benchmark.evaluation.suite import suite
from tests.golden.common import golden_cases, load_case


@pytest.mark.parametrize("path", golden_cases("eval", "odinw_aggregate*"))
def test_eval_odinw(path: Path) -> None:
    """With the tasks and splits of the suites as one would evaluate them."""
    case, _ = load_case(path)
    for folder, name in (("configs/odinw_13", "13"), ("configs/odinw_35", "35")):
        splits = {file.stem: load_cfg(task_config=file).DATASETS.TEST[0] for file in find_task_files(folder)}
        results = {task: {"AP": case["ap_per_dataset"][task], "AP50": 1.0} for task in splits}
        found = suite(results, splits)
        assert len(found.measured) == int(name)
        assert found.mean() == pytest.approx(case["expected"][f"mean_{name}"], abs=case["tolerance"])
        assert found.median() == pytest.approx(case["expected"][f"median_{name}"], abs=case["tolerance"])
