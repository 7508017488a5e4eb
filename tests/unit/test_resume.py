"""Checkpoints of a training: what is written is read again, and no crash or damage costs more than the last file."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn_benchmark.checkpoint import resume
from maskrcnn_benchmark.checkpoint.io import find_weights, read_state_dict
from maskrcnn_benchmark.checkpoint.resume import load_latest, save
from maskrcnn_benchmark.engine.rng import rng_state, seed_all, set_rng_state
from maskrcnn_benchmark.errors import WeightsError


def state(step: int, size: int = 100) -> dict[str, Any]:
    return {
        "model": {"weight": torch.full((size,), float(step)), "count": torch.tensor(step)},
        "optimizer": {"state": {0: {"step": torch.tensor(float(step))}}, "param_groups": [{"betas": (0.9, 0.999)}]},
        "iteration": step,
        "note": None,
    }


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".json"}


def loaded(folder: Path) -> int:
    found = load_latest(folder)
    assert found is not None
    step = found["iteration"]
    assert torch.equal(found["model"]["weight"], state(step)["model"]["weight"])
    return step


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = data.find(torch.full((4,), 2.0).numpy().tobytes())  # in the middle of the weights after 2 steps
    assert at > 0
    data[at + 2] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped byte": flip_a_byte,
    "cut short": cut_short,
    "empty": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "manifest deleted": lambda path: path.with_name(path.name + ".json").unlink(),
    "manifest torn": lambda path: path.with_name(path.name + ".json").write_text('{"step": 2, "by'),
}


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    path = save(state(3), tmp_path, 3)
    assert path == tmp_path / "model_0000003.pth"
    found = load_latest(tmp_path)
    assert found["optimizer"]["param_groups"] == [{"betas": (0.9, 0.999)}]
    assert found["optimizer"]["state"][0]["step"] == 3
    assert found["note"] is None


def test_file_is_one_of_released_form(tmp_path: Path) -> None:
    save(state(3), tmp_path, 3)
    assert set(read_state_dict(find_weights(tmp_path / "last_checkpoint"))) == {"weight", "count"}


@pytest.mark.parametrize("kind", list(DAMAGES))
def test_damage_is_noticed_and_the_one_before_used(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("maskrcnn_benchmark"), "propagate", True)
    save(state(1), tmp_path, 1)
    path = save(state(2), tmp_path, 2)
    DAMAGES[kind](path)
    assert loaded(tmp_path) == 1
    assert path.name in caplog.text
    assert "going on from" in caplog.text
    save(state(2), tmp_path, 2)
    assert loaded(tmp_path) == 2


def test_nothing_whole_is_an_error_not_a_new_start(tmp_path: Path) -> None:
    cut_short(save(state(1), tmp_path, 1))
    with pytest.raises(WeightsError, match=r"no whole checkpoint to go on from \(damaged: model_0000001.pth\)"):
        load_latest(tmp_path)


def test_pointer_that_leads_nowhere(tmp_path: Path) -> None:
    save(state(1), tmp_path, 1)
    for text in ("", "../elsewhere.pth", "model_0000009.pth"):
        (tmp_path / "last_checkpoint").write_text(text)
        assert loaded(tmp_path) == 1


def test_weights_alone_are_no_training(tmp_path: Path) -> None:
    save({"model": {"weight": torch.zeros(2)}}, tmp_path, 1)
    with pytest.raises(WeightsError, match=r"give it as MODEL\.WEIGHT"):
        load_latest(tmp_path)


def test_newest_are_kept_and_best_and_final_stay(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(state(step), tmp_path, step, keep=2, best=step in (1, 2), final=step == 5)
    assert names(tmp_path) == {
        *("model_0000004.pth", "model_0000005.pth", "model_best.pth", "model_final.pth", "last_checkpoint")
    }
    assert read_state_dict(tmp_path / "model_best.pth")["count"] == 2
    assert read_state_dict(tmp_path / "model_final.pth")["count"] == 5
    assert [resume.damage(tmp_path / name) for name in ("model_best.pth", "model_final.pth")] == ["", ""]


def test_all_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        save(state(step), tmp_path, step)
    assert len(names(tmp_path)) == 6


def test_best_is_copied_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    save(state(1), tmp_path, 1, best=True)
    assert read_state_dict(tmp_path / "model_best.pth")["count"] == 1


def killed_at(call: int, folder: Path) -> bool:
    """Save the state after 2 steps in another process, which dies at one of the moments that touch the disk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
        child = os.fork()
    if child == 0:
        left = [call]

        def dying(function: Callable[..., Any], half: bool = False) -> Callable[..., Any]:
            def run(*args: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    if half:
                        args[1].write_bytes(b"PK\x03\x04 half a file")
                    os._exit(9)
                return function(*args)

            return run

        try:
            torch.save = dying(torch.save, half=True)
            os.replace, os.fsync, os.link = dying(os.replace), dying(os.fsync), dying(os.link)
            save(state(2), folder, 2, keep=1, best=True)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process that it forks")
def test_killed_at_any_moment_a_whole_state_is_left(tmp_path: Path) -> None:
    call, seen = 0, set()
    while True:
        call += 1
        folder = tmp_path / str(call)
        save(state(1), folder, 1, best=True)
        killed = killed_at(call, folder)
        step = loaded(folder)
        seen.add(step)
        best = folder / "model_best.pth"
        assert read_state_dict(best)["count"] in (1, 2)
        save(state(3), folder, 3, keep=1, best=True)
        assert names(folder) == {"model_0000003.pth", "model_best.pth", "last_checkpoint"}
        assert resume.damage(best) == ""
        if not killed:
            break
    assert step == 2
    assert seen == {1, 2}
    assert call > 8


@pytest.mark.parametrize("limit", [500, 3000])
def test_full_disk_leaves_what_there_was(limit: int, tmp_path: Path) -> None:
    """Files of this process cannot grow beyond ``limit`` bytes."""
    save(state(1), tmp_path, 1, best=True)
    before = names(tmp_path)
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        path = save(state(2, size=100_000), tmp_path, 2, keep=1, best=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path is None
    assert names(tmp_path) == before
    assert loaded(tmp_path) == 1
    save(state(3), tmp_path, 3)
    assert loaded(tmp_path) == 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float32(1), r"state\['x'\]\[0\]: a float32"),
        (object(), "a object"),
        ({(1, 2): 3}, "a key of type tuple"),
        ({1}, "a set"),
    ],
)
def test_only_plain_types_are_written(value: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=message):
        save({"x": [value]}, tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()]


def test_random_generators_go_on_where_they_were(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    seed_all(5, rank=1)
    draws()
    save({"model": {}, "iteration": 1, "rng": [rng_state(cpu)]}, tmp_path, 1)
    expected = [draws(), draws()]
    seed_all(0)
    set_rng_state(load_latest(tmp_path)["rng"][0], cpu)
    assert [draws(), draws()] == expected
