"""An evaluation in several processes, interrupted, resumed, and with prompts put together: always the same results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file, save_file

from maskrcnn_benchmark.engine import shards
from maskrcnn_benchmark.engine.evaluate import units_of
from maskrcnn_benchmark.engine.shards import Found, PredictionStore
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.structures import Detections, ImageMeta
from tests.narrow import CONFIG, Narrow, make_narrow

SAME = ("bbox.json", "bbox.csv", "coco_results.json", "results.json")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Narrow:
    return make_narrow(tmp_path_factory.mktemp("narrow"))


@pytest.fixture(scope="module")
def task(narrow: Narrow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    return narrow.task(narrow.data(folder, count=5), folder)


def results(narrow: Narrow, output: Path) -> dict[str, bytes]:
    folder = output / "eval" / narrow.weights.stem / "inference" / "drawn"
    assert not (folder / "predictions").exists(), "what has been scored is not kept twice"
    return {name: (folder / name).read_bytes() for name in SAME}


def run(narrow: Narrow, task: Path, output: Path, *extra: str, rank: int = 0, size: int = 1) -> int:
    """One of several processes, in this one: they only meet in the output folder."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank}.items():
            patch.setenv(key, str(value))
        return narrow.run(task, output, "TEST.CHUNKED_EVALUATION", "3", *extra)


@pytest.fixture(scope="module")
def alone(narrow: Narrow, task: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("alone")
    assert run(narrow, task, output) == 0
    return results(narrow, output)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_any_number_of_processes_gives_the_same_files(
    narrow: Narrow, task: Path, tmp_path: Path, alone: dict[str, bytes], size: int
) -> None:
    """Seven processes for three batches: some only ask a part of the prompts."""
    for rank in reversed(range(size)):
        assert run(narrow, task, tmp_path, rank=rank, size=size) == 0
    assert results(narrow, tmp_path) == alone
    card = json.loads(next(tmp_path.rglob("run.json")).read_text())
    assert card["processes"] == size
    assert card["seconds_per_picture"] > 0


def test_all_but_the_first_process_leave_no_results(narrow: Narrow, task: Path, tmp_path: Path) -> None:
    assert run(narrow, task, tmp_path, rank=1, size=2) == 0
    assert not list(tmp_path.rglob("results.json"))
    assert not (tmp_path / "log.txt").exists()


@pytest.mark.parametrize("others", [1, 2])
def test_an_interrupted_evaluation_goes_on(
    narrow: Narrow,
    task: Path,
    tmp_path: Path,
    alone: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    others: int,
) -> None:
    """Also when it goes on with another number of processes."""
    add, added = PredictionStore.add, []

    def stop(store: PredictionStore, found: list[Found]) -> None:
        added.append(found)
        if len(added) == 2:
            raise KeyboardInterrupt
        add(store, found)

    with monkeypatch.context() as patch:
        patch.setattr(PredictionStore, "add", stop)
        assert run(narrow, task, tmp_path) == 130
    assert not list(tmp_path.rglob("results.json"))
    capsys.readouterr()
    for rank in reversed(range(others)):
        assert run(narrow, task, tmp_path, rank=rank, size=others) == 0
    assert "goes on from there" in capsys.readouterr().err
    assert results(narrow, tmp_path) == alone


@pytest.mark.full
def test_a_killed_evaluation_goes_on(narrow: Narrow, task: Path, tmp_path: Path, alone: dict[str, bytes]) -> None:
    program = (
        "import os, signal, sys, torch\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"  # with another number, sums are rounded otherwise
        "from maskrcnn_benchmark.engine import shards\n"
        "shards.SOONEST = shards.LATEST = 0.0\n"
        "flush, count = shards.PredictionStore.flush, []\n"
        "def kill(store):\n"
        "    flush(store)\n"
        "    count.append(1)\n"
        "    if len(count) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "shards.PredictionStore.flush = kill\n"
        "from tools.test_grounding_net import main\n"
        "main(sys.argv[1:])\n"
    )
    argv = ["--config-file", CONFIG, "--weight", str(narrow.weights), "--task_config", str(task), *narrow.opts]
    argv += ["OUTPUT_DIR", str(tmp_path), "TEST.CHUNKED_EVALUATION", "3"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program, *argv], env=env, capture_output=True, timeout=500)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    assert run(narrow, task, tmp_path) == 0
    assert results(narrow, tmp_path) == alone


def test_what_other_weights_found_does_not_count(
    narrow: Narrow, task: Path, tmp_path: Path, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(PredictionStore, "wait", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(narrow, task, tmp_path, "MODEL.ATSS.NMS_TH", "0.1") == 130
    left = list(tmp_path.rglob("*.safetensors"))
    assert left
    assert run(narrow, task, tmp_path) == 0
    assert results(narrow, tmp_path)["bbox.json"] == alone["bbox.json"]
    assert not any(path.exists() for path in left)


def test_a_damaged_file_is_found_again(
    narrow: Narrow, task: Path, tmp_path: Path, alone: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(narrow, task, tmp_path, rank=1, size=2) == 0
    path = next(tmp_path.rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    assert run(narrow, task, tmp_path) == 0
    assert "is damaged and does not count" in capsys.readouterr().err
    assert results(narrow, tmp_path) == alone


@pytest.mark.parametrize("batch", ["1", "4"])
def test_prompts_put_together_find_the_same(
    narrow: Narrow, task: Path, tmp_path: Path, alone: dict[str, bytes], batch: str
) -> None:
    assert run(narrow, task, tmp_path, "TEST.PROMPTS_TOGETHER", "2", "TEST.IMS_PER_BATCH", batch) == 0
    one, two = (json.loads(rows) for rows in (alone["bbox.json"], results(narrow, tmp_path)["bbox.json"]))
    assert len(one) == len(two) > 0
    for first, second in zip(one, two, strict=True):
        assert first["score"] == pytest.approx(second["score"], abs=1e-5)


def test_work_is_shared() -> None:
    units = units_of(batches=2, parts=5, processes=6)
    asked = sorted((unit.place, part) for unit in units for part in unit.parts)
    assert asked == [(place, part) for place in (0, 1) for part in range(5)]
    assert len(units) >= 6
    assert [unit.parts for unit in units_of(batches=9, parts=5, processes=4)] == [range(5)] * 9
    assert units_of(batches=0, parts=5, processes=4) == []


# --- the files themselves ---


def found(entry: int, part: int, scores: list[float], masks: torch.Tensor | None = None) -> Found:
    meta = ImageMeta(entry, (8, 9), (8, 9))
    boxes = torch.tensor(scores)[:, None] + torch.arange(4.0)
    labels = torch.full((len(scores),), part + 1)
    return Found(entry, part, Detections(boxes, torch.tensor(scores), labels, meta, masks))


def meta_of(entry: int) -> object:
    return lambda size: ImageMeta(f"id {entry}", size, size)


def test_detections_come_back_as_they_were(tmp_path: Path) -> None:
    masks = torch.rand(2, 8, 9) > 0.5
    store = PredictionStore(tmp_path, "key")
    store.add([found(0, 0, [0.5, 0.25], masks), found(0, 1, []), found(1, 0, []), Found(1, 1, None)])
    store.flush()
    other = PredictionStore(tmp_path, "key", rank=1)
    other.refresh()
    assert len(other) == 4
    assert (0, 1) in other
    back = other.read(0, 2, meta_of(0))
    assert back is not None
    assert (back.meta.image_id, back.meta.orig_size) == ("id 0", (8, 9))
    assert torch.equal(back.masks, masks)
    assert back.scores.tolist() == [0.5, 0.25]
    assert back.boxes[1].tolist() == [0.25, 1.25, 2.25, 3.25]
    assert other.read(1, 2, meta_of(1)) is None


def test_equal_scores_stay_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path, "key")
    for part in (2, 0, 1):
        store.add([found(0, part, [0.5, 0.5])])
        store.flush()
    store.refresh()
    back = store.read(0, 3, meta_of(0))
    assert back is not None
    assert back.labels.tolist() == [1, 1, 2, 2, 3, 3]


def test_waiting_ends_with_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PATIENCE", 0.2)
    monkeypatch.setattr(shards, "TELL", 0.0)
    monkeypatch.setattr(shards, "LOOK", 0.05)
    store, told = PredictionStore(tmp_path, "key"), []
    store.add([found(0, 0, [0.5])])
    store.flush()
    store.wait(1, told.append)
    assert told == []
    with pytest.raises(DataError, match=r"1 of 2 results after .* without a new one: see whether the other processes"):
        store.wait(2, told.append)
    assert told[0] == 1


def test_files_are_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    store = PredictionStore(tmp_path, "key")
    written = []
    for second in range(0, 4000):
        clock[0] = float(second)
        store.add([found(second, 0, [])])
        if len(list(tmp_path.iterdir())) > len(written):
            written.append(second)
    assert written[0] == shards.SOONEST
    assert max(b - a for a, b in pairwise(written)) <= shards.LATEST
    assert len(written) < 250


def test_a_file_of_another_run_is_told_from_its_own(tmp_path: Path) -> None:
    mine, other = PredictionStore(tmp_path, "mine"), PredictionStore(tmp_path, "other")
    for store in (mine, other):
        store.add([found(0, 0, [0.5])])
        store.flush()
    mine.drop_others()
    assert len(mine) == 1
    assert len(list(tmp_path.iterdir())) == 1
    save_file(load_file(next(tmp_path.iterdir())), tmp_path / "without key.safetensors")
    fresh = PredictionStore(tmp_path, "other")
    fresh.refresh()
    assert len(fresh) == 0
