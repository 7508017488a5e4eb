"""Real pictures of four benchmarks with a narrow network: the same results for any number of processes, any batch size,
and after an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.benchmarks import BENCHMARKS, Benchmark, lay_out
from tests.narrow import CONFIG, Narrow, make_narrow

ROOT = Path(__file__).resolve().parents[2]
RUN_FILES = ("run.json",)  # tell how a run went, not what it found


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Narrow:
    return make_narrow(tmp_path_factory.mktemp("narrow"))


@pytest.fixture(scope="module", params=["coco", "lvis", "flickr", "refexp"])
def benchmark(request: pytest.FixtureRequest) -> Benchmark:
    return BENCHMARKS[request.param]


@pytest.fixture(scope="module")
def dataset(benchmark: Benchmark, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(benchmark, tmp_path_factory.mktemp(benchmark.name))


def command(narrow: Narrow, benchmark: Benchmark, output: Path, *extra: str) -> list[str]:
    """The tool's options."""
    opts = {
        "DATASETS.TEST": f"('{benchmark.name}',)",
        "TEST.EVAL_TASK": benchmark.task,
        "TEST.CHUNKED_EVALUATION": "400",
        "TEST.MDETR_STYLE_AGGREGATE_CLASS_NUM": "3000",
        "TEST.IMS_PER_BATCH": "3",
        "OUTPUT_DIR": str(output),
    }
    flat = [part for pair in opts.items() for part in pair]
    return ["--config-file", CONFIG, "--weight", str(narrow.weights), *narrow.opts, *flat, *extra]


def start(argv: list[str], dataset: Path, rank: int = 0, size: int = 1) -> subprocess.Popen[bytes]:
    """One process of a run; they find each other through the output folder."""
    env = {**os.environ, "DATASET": str(dataset), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    tool = [sys.executable, str(ROOT / "tools" / "test_grounding_net.py")]
    return subprocess.Popen([*tool, *argv], env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err.decode()


def results(output: Path) -> dict[str, bytes]:
    """Every result file but those that tell how the run went, and the config, which holds the output folder."""
    folder = next(output.rglob("results.json")).parent
    left_out = (*RUN_FILES, "config.yml", "predictions.pth")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in left_out}


@pytest.fixture(scope="module")
def alone(
    narrow: Narrow, benchmark: Benchmark, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("alone")
    finish(start(command(narrow, benchmark, output), dataset))
    return results(output)


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_processes_gives_the_same_files(
    narrow: Narrow, benchmark: Benchmark, dataset: Path, alone: dict[str, bytes], tmp_path: Path, size: int
) -> None:
    argv = command(narrow, benchmark, tmp_path)
    for process in [start(argv, dataset, rank, size) for rank in range(size)]:
        finish(process)
    assert results(tmp_path) == alone


def test_a_killed_run_goes_on(
    narrow: Narrow, benchmark: Benchmark, dataset: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    argv = command(narrow, benchmark, tmp_path)
    first = start(argv, dataset, rank=1, size=2)  # half of the batches
    finish(first)
    second = start(argv, dataset)
    while not list(tmp_path.rglob("*.safetensors")) and second.poll() is None:
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    finish(start(argv, dataset))
    assert results(tmp_path) == alone


@pytest.mark.parametrize("batch", ["1", "8"])
def test_any_batch_size_finds_the_same(
    narrow: Narrow, benchmark: Benchmark, dataset: Path, alone: dict[str, bytes], tmp_path: Path, batch: str
) -> None:
    finish(start(command(narrow, benchmark, tmp_path, "TEST.IMS_PER_BATCH", batch), dataset))
    name = "bbox.json" if "bbox.json" in alone else "predictions.json"
    one, other = (sorted_scores(json.loads(files[name])) for files in (alone, results(tmp_path)))
    assert one.keys() == other.keys()
    for key, scores in one.items():
        assert scores == pytest.approx(other[key], abs=1e-5), key


def sorted_scores(rows: list[dict[str, Any]]) -> dict[object, list[float]]:
    """The scores of each picture, caption or phrase and class, best first."""
    found: dict[object, list[float]] = {}
    for row in rows:
        if "category_id" in row:
            found.setdefault((row["image_id"], row["category_id"]), []).append(row["score"])
        elif "sentence_id" in row:
            for phrase, scores in enumerate(row["scores"]):
                found[row["image_id"], row["sentence_id"], phrase] = scores
        else:
            found[row["image_id"]] = row["scores"]
    return {key: sorted(scores, reverse=True) for key, scores in found.items()}
