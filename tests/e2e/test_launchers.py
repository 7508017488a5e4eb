"""The tools under launchers as they are installed, on drawn scenes."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maskrcnn_benchmark.checkpoint.resume import load_latest
from tests.narrow import CONFIG
from tests.training_runs import ROOT, Small, environment, make_small, rows


def _open_mpi() -> bool:
    if shutil.which("mpirun") is None:
        return False
    told = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, timeout=300, check=False)
    return "Open MPI" in told.stdout


needs_mpirun = pytest.mark.skipif(not _open_mpi(), reason="Open MPI's mpirun is not installed")
pytestmark = [pytest.mark.full, needs_mpirun]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return make_small(tmp_path_factory.mktemp("small"))


def mpirun(*words: object) -> subprocess.CompletedProcess[str]:
    launcher = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2"]
    command = [*launcher, sys.executable, *map(str, words)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_mpirun_trains(small: Small, tmp_path: Path) -> None:
    done = mpirun("tools/train_net.py", *small.argv(tmp_path, SOLVER__MAX_ITER=2, SOLVER__IMS_PER_BATCH=4))
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [1, 2]
    assert all(math.isfinite(row["loss"]) for row in found)
    state = load_latest(tmp_path)
    assert state is not None
    assert (state["iteration"], len(state["rng"])) == (2, 2), "the state of each process is in the checkpoint"
    assert len(done.stdout.splitlines()) == 1, "one of the processes talks"


def test_mpirun_evaluates(small: Small, tmp_path: Path) -> None:
    task = small.narrow.task(small.annotations, tmp_path)
    words = ["--config-file", CONFIG, "--weight", small.narrow.weights, "--task_config", task, *small.narrow.opts]
    assert small.narrow.run(task, tmp_path / "one") == 0
    done = mpirun("tools/test_grounding_net.py", *words, "OUTPUT_DIR", tmp_path / "two")
    assert done.stdout.count("| drawn ") == 1, "one of the processes talks"
    one, two = (json.loads(next((tmp_path / name).rglob("results.json")).read_text()) for name in ("one", "two"))
    assert two["metrics"] == one["metrics"]
