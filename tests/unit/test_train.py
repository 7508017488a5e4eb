"""Training runs on drawn scenes: they learn, go on where they were interrupted, and answer mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.engine.distributed import World
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.interface import Losses
from maskrcnn_benchmark.solver.build import Solver
from maskrcnn_benchmark.training import build_training
from tests.training_runs import ROOT, Small, environment, final_state, make_small, rows, same


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    made = make_small(tmp_path_factory.mktemp("small"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes have that are compared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def equal(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    first, second = final_state(one), final_state(other)
    for key in first:
        assert same(first[key], second[key]), key


# --- learning, and what a run leaves behind ---


def test_loss_falls(small: Small, tmp_path: Path) -> None:
    keys = {"SOLVER__MAX_ITER": 24, "SOLVER__BASE_LR": 0.005, "SOLVER__STEPS": "(100,)", "SOLVER__LOG_PERIOD": 6}
    assert small.run(tmp_path, "--resume", SOLVER__CHECKPOINT_PERIOD=24, **keys) == 0
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [6, 12, 18, 24]
    assert found[-1]["loss"] < 0.9 * found[0]["loss"]
    assert {"loss_reg", "loss_centerness", "lr", "gradient_norm", "bad_steps"} <= found[0].keys()
    assert Image.open(tmp_path / "curves.png").size[0] > 100
    assert "left" in (tmp_path / "log.txt").read_text()


def test_run_scores_while_it_trains_and_at_the_end(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = small.argv(tmp_path, SOLVER__MAX_ITER=2, TEST__DURING_TRAINING=True, SOLVER__PICTURES_PERIOD=2)
    argv.remove("--skip-test")
    from maskrcnn_benchmark import cli
    from tools import train_net

    assert cli.run(train_net.main, argv) == 0
    out = capsys.readouterr()
    assert "2 steps" in out.out
    assert "at the end" in out.out
    assert "with the averaged weights" in out.err
    assert (tmp_path / "model_best.pth").is_file()
    assert (tmp_path / "seen" / "step_0000002.png").is_file()


# --- interruptions ---


@pytest.mark.parametrize(
    ("kills", "keys"),
    [
        pytest.param([1, 3, 6], {"SOLVER__CHECKPOINT_PERIOD": 1}, id="every step"),
        pytest.param(
            [2, 5],
            {"DATALOADER__NUM_WORKERS": 2, "SOLVER__ACCUMULATION": 2, "SOLVER__LOG_PERIOD": 4},
            id="workers, accumulation, over the end of an epoch",
            marks=pytest.mark.full,
        ),
    ],
)
def test_killed_run_ends_as_if_it_had_not_been(
    small: Small, tmp_path: Path, kills: list[int], keys: dict[str, Any]
) -> None:
    for step in kills:
        assert small.fork(tmp_path / "killed", at=step, **keys) == -signal.SIGKILL
    assert small.fork(tmp_path / "killed", **keys) == 0
    equal(small.whole(**keys), tmp_path / "killed")


@pytest.mark.full
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_forty_steps_killed_five_times(small: Small, tmp_path: Path, workers: int, accumulation: int) -> None:
    keys = {
        "DATALOADER__NUM_WORKERS": workers,
        "SOLVER__ACCUMULATION": accumulation,
        "SOLVER__MAX_ITER": 40,
        "SOLVER__CHECKPOINT_PERIOD": 3,
        "SOLVER__WARMUP_ITERS": 20,
    }
    for step in (2, 9, 17, 30, 40):
        assert small.fork(tmp_path / "killed", at=step, **keys) == -signal.SIGKILL
    assert small.fork(tmp_path / "killed", **keys) == 0
    equal(small.whole(**keys), tmp_path / "killed")


@pytest.mark.full
def test_tool_killed_from_outside(small: Small, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    command = [sys.executable, "tools/train_net.py", *small.argv(killed, SOLVER__CHECKPOINT_PERIOD=1)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    while not (killed / "model_0000002.pth").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert small.fork(killed, SOLVER__CHECKPOINT_PERIOD=1) == 0
    equal(small.whole(), killed)


@pytest.mark.parametrize(("sent", "step"), [("SIGTERM", 3), ("SIGUSR1", 2)])
def test_signal_saves_and_asks_slurm_once(small: Small, tmp_path: Path, sent: str, step: int) -> None:
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    fake.chmod(0o755)
    env = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    keys = {"SOLVER__CHECKPOINT_PERIOD": 4, "SOLVER__MAX_ITER": 4}
    out = tmp_path / "out"
    assert small.fork(out, at=step, sent=sent, env=env, **keys) == 143
    assert f"{sent}: saved after {step} of 4 steps, run again to go on" in (out / "told").read_text()
    assert (out / "last_checkpoint").read_text() == f"model_{step:07d}.pth"
    asked = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
    assert asked == (["requeue 77"] if sent == "SIGUSR1" else [])
    assert small.fork(out, **keys) == 0
    equal(small.whole(**keys), out)


@pytest.mark.full
def test_evaluation_that_a_signal_prevented_is_made_up_for(small: Small, tmp_path: Path) -> None:
    keys = {"TEST__DURING_TRAINING": True, "SOLVER__MAX_ITER": 4}
    assert small.fork(tmp_path / "out", at=2, sent="SIGTERM", **keys) == 143
    assert small.fork(tmp_path / "out", **keys) == 0
    equal(small.whole(**keys), tmp_path / "out")


def test_finished_run_has_nothing_left_to_do(small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert small.run(tmp_path, SOLVER__MAX_ITER=1) == 0
    assert small.run(tmp_path, SOLVER__MAX_ITER=1) == 0
    assert "nothing is left to do: 1 steps are done, of 1" in capsys.readouterr().err
    assert len(rows(tmp_path)) == 1


def test_one_run_at_a_time(small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hold = (
        "from pathlib import Path\nfrom maskrcnn_benchmark.engine.lock import lock\n"
        f"with lock(Path({str(tmp_path)!r})): print('held', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hold], env=environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert small.run(tmp_path) == 2
    message = capsys.readouterr().err
    assert f"is in use by another run (process {process.pid} on " in message
    process.kill()
    process.wait()
    assert (tmp_path / "run.lock").exists()
    assert small.run(tmp_path, SOLVER__MAX_ITER=1) == 0  # the lock of a dead process holds nobody back


# --- several processes ---

PAIR = """
import sys
from maskrcnn_benchmark import cli, training
build = training.build_detector
def without_chance(cfg):
    model = build(cfg)
    for module in model.modules():
        for name in ("p", "dropout", "drop_path", "drop_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model
training.build_detector = without_chance
from tools import train_net
sys.exit(cli.run(train_net.main, sys.argv[1:]))
"""


@pytest.mark.full
def test_two_processes_are_one(small: Small, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PAIR)
    keys = {"SOLVER__OPTIMIZER": "SGD", "SOLVER__BASE_LR": 0.01, "SOLVER__MAX_ITER": 3, "SOLVER__IMS_PER_BATCH": 4}
    keys["TEST__DURING_TRAINING"] = True
    for name, launcher in (("one", []), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"])):
        command = [sys.executable, *launcher, str(program), *small.argv(tmp_path / name, **keys)]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        (card,) = (tmp_path / name / "inference").rglob("run.json")
        assert json.loads(card.read_text())["processes"] == (2 if launcher else 1), "all of them evaluate"
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert {k: v for k, v in two.items() if k.startswith("loss")} == pytest.approx(
            {k: v for k, v in one.items() if k.startswith("loss")}, rel=1e-4
        )
    for key in ("model", "model_ema"):
        one, two = final_state(tmp_path / "one")[key], final_state(tmp_path / "two")[key]
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=2e-5, msg=name)


SPOILT = """
import os, sys
from pathlib import Path
import torch
from maskrcnn_benchmark import cli, training
from maskrcnn_benchmark.modeling.interface import Losses
rank, total, calls = os.environ["RANK"], Losses.total, iter(range(1, 1000))
def spoilt(self):
    if next(calls) == 2 and rank == "1":
        self.terms["loss_reg"] = self.terms["loss_reg"] * float("nan")
    return total(self)
Losses.total = spoilt
train = training.train
def kept(run):
    found = train(run)
    torch.save([run.model.state_dict(), run.solver.state_dict()], Path(run.folder, "of_" + rank))
    return found
training.train = kept
from tools import train_net
sys.exit(cli.run(train_net.main, sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "policy", [pytest.param("stop", marks=pytest.mark.full), "skip", pytest.param("rollback", marks=pytest.mark.full)]
)
def test_processes_agree_on_a_bad_loss_of_one(small: Small, tmp_path: Path, policy: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(SPOILT)
    out = tmp_path / "out"
    keys = {"SOLVER__ON_BAD_LOSS": policy, "SOLVER__MAX_ITER": 3, "SOLVER__IMS_PER_BATCH": 4}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launcher, str(program), *small.argv(out, SOLVER__CHECKPOINT_PERIOD=10, **keys)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    told = "step 2: not a finite number: loss_reg nan for "
    assert told in done.stderr
    assert done.stderr.split(told)[1].split(": ")[0].count(".png") == 2  # those of the second process
    if policy == "stop":
        assert done.returncode == 1
        assert not (out / "model_final.pth").exists()
        return
    assert done.returncode == 0, done.stderr
    assert [row["bad_steps"] for row in rows(out)] == [0, 1, 1]
    assert ("the weights go back to" in done.stderr) == (policy == "rollback")
    first, second = (torch.load(out / f"of_{rank}", weights_only=True) for rank in range(2))
    assert same(first, second)
    steps = {int(row["step"]) for row in first[1]["optimizer"]["state"].values()}
    assert steps == {1 if policy == "rollback" else 2}


def test_batch_must_be_shared_evenly(small: Small, tmp_path: Path) -> None:
    argv = small.argv(tmp_path)
    cfg = load_cfg(argv[1], argv[3], argv[7:])
    with pytest.raises(ConfigError, match=r"SOLVER\.IMS_PER_BATCH 2 cannot be shared by 3 processes"):
        build_training(cfg, tmp_path, World(0, 3), torch.device("cpu"), with_model=False)


# --- what goes wrong in a step ---


def spoil(monkeypatch: pytest.MonkeyPatch, *calls: int) -> None:
    """The loss of these batches, from 1, is no number."""
    total, count = Losses.total, iter(range(1, 1000))

    def spoilt(self: Losses) -> torch.Tensor:
        if next(count) in calls:
            self.terms["loss_reg"] = self.terms["loss_reg"] * float("nan")
        return total(self)

    monkeypatch.setattr(Losses, "total", spoilt)


def test_bad_loss_stops_and_names_the_pictures(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, 2)
    assert small.run(tmp_path) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: step 2: not a finite number: loss_reg nan for ")
    assert message.count(".png") == 2
    assert "SOLVER.ON_BAD_LOSS skip or rollback" in message


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_bad_loss_is_left_out(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], policy: str
) -> None:
    spoil(monkeypatch, 2, 3)
    keys = {"SOLVER__ON_BAD_LOSS": policy, "SOLVER__MAX_ITER": 4, "SOLVER__CHECKPOINT_PERIOD": 10}
    assert small.run(tmp_path, **keys) == 0
    found = rows(tmp_path)
    assert [row["bad_steps"] for row in found] == [0, 1, 2, 2]
    assert "loss" not in found[1]
    assert "loss" in found[3]
    told = capsys.readouterr().err
    assert "(2 so far)" in told
    if policy == "rollback":
        assert "the weights go back to" in told
        assert "model_0000000.pth" in told
        state = final_state(tmp_path)
        steps = {int(row["step"]) for row in state["optimizer"]["state"].values()}
        assert steps == {1}  # of four: one was undone, two were left out


def test_rollback_takes_the_weights_of_the_checkpoint(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"SOLVER__ON_BAD_LOSS": "rollback", "SOLVER__MAX_ITER": 2, "SOLVER__CHECKPOINT_PERIOD": 10}
    spoil(monkeypatch, 2)
    assert small.run(tmp_path, **keys) == 0
    begun = torch.load(tmp_path / "model_0000000.pth", weights_only=True)
    assert same(final_state(tmp_path)["model"], begun["model"])
    assert final_state(tmp_path)["iteration"] == 2


def test_bad_gradient_is_told_too(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backward = Solver.backward
    monkeypatch.setattr(Solver, "backward", lambda self, loss, parts=1: backward(self, loss * float("inf"), parts))
    assert small.run(tmp_path) == 2
    assert "step 1: not a finite number: a gradient for " in capsys.readouterr().err


def test_full_memory_tells_shapes_and_advice(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    monkeypatch.setattr(Solver, "backward", full)
    assert small.run(tmp_path) == 3
    message = capsys.readouterr().err.splitlines()[-1]
    assert "step 1: out of memory with 2 pictures in 64 x 96 pixels" in message
    assert "halve SOLVER.IMS_PER_BATCH" in message


def test_run_goes_on_from_the_last_step_before_memory_was_full(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backward = Solver.backward

    def full(self: Solver, loss: torch.Tensor, parts: int = 1) -> None:
        if self.done == 3:
            torch.rand(3)
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")
        backward(self, loss, parts)

    with monkeypatch.context() as patch:
        patch.setattr(Solver, "backward", full)
        assert small.run(tmp_path, SOLVER__CHECKPOINT_PERIOD=10) == 3
    told = capsys.readouterr().err
    assert "saved after 3 of 6 steps" in told
    assert "step 4: out of memory" in told.splitlines()[-1]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    assert small.run(tmp_path, SOLVER__CHECKPOINT_PERIOD=10) == 0
    equal(small.whole(SOLVER__CHECKPOINT_PERIOD=10), tmp_path)


def test_weights_that_changed_in_part_are_not_saved(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Solver.step

    def full(self: Solver) -> Any:
        if self.done == 1:
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")
        return step(self)

    monkeypatch.setattr(Solver, "step", full)
    assert small.run(tmp_path, SOLVER__CHECKPOINT_PERIOD=10) == 3
    assert not list(tmp_path.glob("*.pth"))


# --- mistakes ---


def test_empty_training_set(small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert small.run(tmp_path, DATASETS__TRAIN="()") == 2
    assert "DATASETS.TRAIN names no data set" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--dry-run", "--resume"])
def test_weights_that_are_not_there(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert small.run(tmp_path, flag, MODEL__WEIGHT="nowhere.pth") == 2
    assert "no weights called 'nowhere.pth'" in capsys.readouterr().err


def test_weights_of_another_network(small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert small.run(tmp_path, MODEL__WEIGHT=small.narrow.weights) == 2
    assert str(small.narrow.weights) in capsys.readouterr().err


def test_no_weights_are_told_of(small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert small.run(tmp_path / "out", "--dry-run") == 0
    assert "MODEL.WEIGHT is empty" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_dry_run_finds_weights_of_another_network(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small.run(tmp_path, "--dry-run", MODEL__WEIGHT=small.narrow.weights) == 2
    assert str(small.narrow.weights) in capsys.readouterr().err


def test_strict_allows_keys_of_an_evaluation_that_is_left_out(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"SOLVER__MAX_ITER": 1, "TEST__IMS_PER_BATCH": 3}
    assert small.run(tmp_path, "--skip-test", "--strict-config", **keys) == 0, capsys.readouterr().err
    assert "were set and have no effect in this run" in capsys.readouterr().err


def test_rows_of_steps_to_come_and_torn_lines_are_taken_out(tmp_path: Path) -> None:
    from maskrcnn_benchmark.engine.journal import trim

    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3, 4)) + '{"step": 2')
    trim(file, 2)
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n'
    trim(tmp_path / "none.jsonl", 2)
