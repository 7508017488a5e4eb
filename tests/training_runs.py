"""Trainings of a very small FIBER on drawn scenes, killed and signalled on purpose.

As a program it reads jobs, one JSON object a line, and runs each of them in a fork of itself, which saves the seconds
that Python takes to load everything: ``{"argv": [...], "at": 3, "signal": "SIGKILL", "out": "file"}`` trains, and sends
itself the signal in the middle of the third step. It answers with exit codes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from maskrcnn_benchmark import cli
from tests.narrow import CONFIG, Narrow, make_narrow

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "MODEL.BACKBONE.OUT_CHANNELS": 16,
    "MODEL.SWINT.EMBED_DIM": 8,
    "MODEL.SWINT.NUM_HEADS": "(1, 1, 2, 2)",
    "MODEL.SWINT.OUT_CHANNELS": "(8, 16, 32, 64)",
    "MODEL.LANGUAGE_BACKBONE.LANG_DIM": 32,
    "MODEL.LANGUAGE_BACKBONE.NUM_HEADS": 2,
    "MODEL.LANGUAGE_BACKBONE.INTERMEDIATE_SIZE": 32,
    "MODEL.DYHEAD.CHANNELS": 16,
    "MODEL.DYHEAD.NUM_CONVS": 1,
    "INPUT.MIN_SIZE_TRAIN": 64,
    "INPUT.MAX_SIZE_TRAIN": 96,
    "AUGMENT.MULT_MIN_SIZE_TRAIN": "(64,)",
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 6,
    "SOLVER.MAX_EPOCH": 0,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.WARMUP_ITERS": 4,
    "SOLVER.MODEL_EMA": 0.9,
    "SOLVER.LOG_PERIOD": 1,
}
MEASURED = ("time", "seconds", "data_wait", "memory")


@dataclass
class Small:
    """A folder with data and a tokenizer, and command lines that train on them."""

    narrow: Narrow
    task: Path
    annotations: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def argv(self, output: Path, **keys: Any) -> list[str]:
        """``SOLVER__MAX_ITER=3`` stands for ``SOLVER.MAX_ITER 3``."""
        changed = {**SMALL, **{key.replace("__", "."): value for key, value in keys.items()}}
        opts = [str(part) for pair in changed.items() for part in pair]
        given = ["--config-file", CONFIG, "--task_config", str(self.task), "--skip-test"]
        return [*given, "--override_output_dir", str(output), *self.narrow.opts, *opts]

    def run(self, output: Path, *flags: str, **keys: Any) -> int:
        """Train in this process; returns the exit code."""
        from tools import train_net

        return cli.run(train_net.main, [*self.argv(output, **keys), *flags])

    def fork(
        self, output: Path, at: int = 0, sent: str = "SIGKILL", env: dict[str, str] | None = None, **k: Any
    ) -> int:
        """Train in a process of its own, interrupted in step ``at``; returns the exit code, -9 for SIGKILL."""
        if not self.started:
            command = [sys.executable, "-m", "tests.training_runs"]
            self.started.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            self._ask(self.narrow.folder / "warm", warm=True, SOLVER__MAX_ITER=1)
        return self._ask(output, at, sent, env, **k)

    def whole(self, **keys: Any) -> Path:
        """The folder of a run that nothing interrupted, from an earlier test where there was such."""
        name = "_".join(f"{key}={value}" for key, value in sorted(keys.items()) if key != "SOLVER__CHECKPOINT_PERIOD")
        output = self.narrow.folder / f"whole_{name}"
        if not output.exists():
            assert self.fork(output, **keys) == 0, (output / "told").read_text()
        return output

    def _ask(
        self,
        output: Path,
        at: int = 0,
        sent: str = "SIGKILL",
        env: dict[str, str] | None = None,
        warm: bool = False,
        **k: Any,
    ) -> int:
        output.mkdir(parents=True, exist_ok=True)
        job = {
            "warm": warm,
            "argv": self.argv(output, **k),
            "at": at,
            "signal": sent,
            "env": env or {},
            "out": str(output / "told"),
        }
        process = self.started[0]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    def close(self) -> None:
        for process in self.started:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=300)


def make_small(folder: Path, count: int = 6) -> Small:
    narrow = make_narrow(folder)
    annotations = narrow.data(folder / "scenes", count=count)
    sets = {
        "drawn_train": {"kind": "coco_grounding", "ann_file": str(annotations), "img_dir": str(annotations.parent)},
        "drawn": {"kind": "coco", "ann_file": str(annotations), "img_dir": str(annotations.parent)},
    }
    task = folder / "train.yaml"
    task.write_text(yaml.safe_dump({"DATASETS": {"REGISTER": sets, "TRAIN": ["drawn_train"], "TEST": ["drawn"]}}))
    return Small(narrow, task, annotations)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def rows(output: Path) -> list[dict[str, Any]]:
    """``metrics.jsonl`` without what was measured."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def final_state(output: Path) -> dict[str, Any]:
    return torch.load(output / "model_final.pth", weights_only=True)


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def _child(job: dict[str, Any]) -> None:
    """One job, to its end."""
    from maskrcnn_benchmark.solver.build import Solver
    from tools import train_net

    handle = os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(job["env"])
    torch.set_num_threads(1)
    step = Solver.step

    def interrupted(self: Solver) -> Any:
        if self.done + 1 == job["at"]:
            os.kill(os.getpid(), getattr(signal, job["signal"]))
        return step(self)

    Solver.step = interrupted  # type: ignore[method-assign]
    code = cli.run(train_net.main, job["argv"])
    sys.stdout.flush()
    os._exit(code)


def main() -> None:
    from tools import train_net

    for line in sys.stdin:
        job = json.loads(line)
        if job["warm"]:  # loads what is loaded when it is first needed
            with redirect_stdout(sys.stderr):
                code = cli.run(train_net.main, job["argv"])
            print(code, flush=True)
            continue
        child = os.fork()
        if not child:
            try:
                _child(job)
            finally:
                os._exit(99)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
