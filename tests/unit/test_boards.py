"""Scalars of a training on TensorBoard and on Weights & Biases, which are stand-ins here."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskrcnn_benchmark import cli
from tests.narrow import CONFIG
from tests.training_runs import SMALL, Small, make_small
from tools import finetune


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    made = make_small(tmp_path_factory.mktemp("small"))
    yield made
    made.close()


def install_fake(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package called wandb that notes what it is told."""
    folder.mkdir()
    (folder / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(folder)


def test_tensorboard(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert small.run(tmp_path, "--use-tensorboard", SOLVER__MAX_ITER=1) == 2
    assert "needs the package tensorboardX" in capsys.readouterr().err
    written: list[tuple[str, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert (folder, purge_step) == (str(tmp_path / "tensorboard"), 1)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, step))

        def close(self) -> None:
            written.append(("closed", 0))

    module = types.ModuleType("tensorboardX")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    assert small.run(tmp_path, "--use-tensorboard", SOLVER__MAX_ITER=1) == 0
    assert ("loss", 1) in written
    assert ("lr", 1) in written
    assert written[-1] == ("closed", 0)


def test_weights_and_biases(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert small.run(tmp_path, "--use-wandb", SOLVER__MAX_ITER=1) == 2
    assert "--use-wandb needs the package wandb" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []  # nothing was begun
    monkeypatch.delitem(sys.modules, "wandb")
    install_fake(tmp_path / "path", monkeypatch)
    assert small.run(tmp_path / "out", "--use-wandb", SOLVER__MAX_ITER=1) == 0
    assert small.run(tmp_path / "out", "--use-wandb", SOLVER__MAX_ITER=2) == 0
    calls = sys.modules.pop("wandb").calls
    assert [call["id"] for name, call in calls if name == "init"] == [None, "abc"]
    logged = [call for name, call in calls if name == "log"]
    assert [call["step"] for call in logged] == [1, 2]
    assert all({"loss", "lr"} <= call.keys() for call in logged)
    assert calls[-1] == ("finish", {})
    monkeypatch.setenv("FAKE_WANDB_REFUSES", "1")
    assert small.run(tmp_path / "other", "--use-wandb", SOLVER__MAX_ITER=1) == 2
    assert "no account: log in with wandb login, or set WANDB_MODE=offline" in capsys.readouterr().err
    sys.modules.pop("wandb")


def test_weights_and_biases_of_a_fine_tuning(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake(tmp_path / "path", monkeypatch)
    argv = ["--config-file", CONFIG, "--ft-tasks", str(small.task), "--shuffle_seeds", "3,30", "--skip-test"]
    keys = [str(word) for pair in {**SMALL, "SOLVER.MAX_ITER": 2}.items() for word in pair]
    keys += ["OUTPUT_DIR", str(tmp_path / "out")]
    assert cli.run(finetune.main, [*argv, "--use-wandb", *small.narrow.opts, *keys]) == 0
    calls = sys.modules.pop("wandb").calls
    assert [(name, call.get("step")) for name, call in calls if name != "finish"] == [
        *(("init", None), ("log", 1), ("log", 2)),  # a run for each training
        *(("init", None), ("log", 1), ("log", 2)),
    ]
    assert [name for name, _ in calls].count("finish") == 2
    folders = [Path(call["dir"]) for name, call in calls if name == "init"]
    assert len(set(folders)) == 2
    assert all(folder.is_relative_to(tmp_path / "out") for folder in folders)


FAKE_WANDB = """
import os
calls = []
class Error(Exception):
    pass
class Run:
    id = "abc"
    def log(self, row):
        calls.append(("log", row))
    def define_metric(self, name, step_metric):
        pass
    def finish(self):
        calls.append(("finish", {}))
def init(**options):
    if "FAKE_WANDB_REFUSES" in os.environ:
        raise Error("no account")
    calls.append(("init", options))
    return Run()
"""
