"""FIBER-B on real pictures, from files to numbers, against stored runs of the reference."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from maskrcnn_benchmark.zero_shot import zero_shot
from tests.e2e.reference import data_folder, environment, filled_checkpoint, task_file
from tests.golden.common import golden_cases, load_case, shared_path

STRICT = ("--score", "1e-4", "--box", "0.05")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.mark.parametrize("case_path", golden_cases("e2e", "odinw_*", "bccd_*", "coco_*"))
def test_run_equals_the_reference(
    case_path: Path, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, _ = load_case(case_path)
    for key, value in environment(data_folder(case_path, case, tmp_path)).items():
        monkeypatch.setenv(key, value)
    weight = filled_checkpoint(case, checkpoints)
    task = task_file(case, tmp_path)
    opts = [*map(str, case["opts"]), "OUTPUT_DIR", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", "0"]
    mixed = ["TEST.MIXED_BATCHES", "True"] if case["batch_size"] > 1 else []
    results = zero_shot(f"configs/{case['config_file']}", str(weight), [task] if task else [], opts + mixed)
    (name, numbers), *_ = results.items()
    found = tmp_path / "out" / "eval" / weight.stem / "inference" / name / "bbox.json"
    compare = shared_path("golden", "e2e", "compare.py")
    run = subprocess.run(
        [sys.executable, compare, case_path, found, *STRICT], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for mine, (metric, value) in zip(numbers.values(), case["metrics"].items(), strict=True):
        assert mine == pytest.approx(value, abs=1e-3), metric
    card = json.loads((found.parent / "results.json").read_text())
    assert card["prompts"] == [prompt["caption"] for prompt in case["prompts"]]
