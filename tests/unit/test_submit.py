"""What a job of submitit does with its options, and after it was interrupted."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from maskrcnn_benchmark.checkpoint.resume import POINTER
from maskrcnn_benchmark.commands import mdetr, submit
from maskrcnn_benchmark.commands.mdetr_flags import Asked

submitit = pytest.importorskip("submitit")

PHRASECUT = {"combine_datasets": ["phrasecut"], "combine_datasets_val": ["phrasecut"]}
LAST = "trained/model_0000002.pth"


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[mdetr.Job]]:
    """Inside of job 7 of this machine; what is run is only planned."""
    (tmp_path / "data.json").write_text(json.dumps(PHRASECUT))
    (tmp_path / LAST).parent.mkdir()
    (tmp_path / LAST).write_bytes(b"")
    (tmp_path / LAST).with_name(POINTER).write_text(Path(LAST).name)
    plans: list[mdetr.Job] = []

    def run(asked: Asked) -> None:
        plans.append(mdetr.plan(asked, 1))

    monkeypatch.setattr(mdetr, "run", run)
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ, {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "7"}):
        yield plans


def job(*words: str) -> submit.Job:
    return submit.Job(["--dataset_config", "data.json", *words], str(Path("experiments/%j").absolute()))


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ("", "experiments/7"),
        ("--output_dir out", "out"),
        (f"--resume {LAST}", "trained"),
        (f"--resume {LAST} --output_dir trained", "trained"),
        (f"--eval --resume {LAST}", "experiments/7"),
    ],
)
def test_the_folder_that_a_job_writes_to(words: str, folder: str, planned: list[mdetr.Job]) -> None:
    job(*words.split())()
    (plan,) = planned
    assert Path(str(plan.keys["OUTPUT_DIR"])).absolute() == Path(folder).absolute()
    assert plan.weight == (LAST if "--eval" in words else "")


@pytest.mark.parametrize("words", ["--ema --epochs 3", f"--resume {LAST}"])
def test_an_interrupted_job_is_queued_again_and_goes_on_in_its_folder(
    words: str, planned: list[mdetr.Job], tmp_path: Path
) -> None:
    """By what submitit itself does on the signal that comes before the end."""
    from submitit.core.job_environment import SignalHandler
    from submitit.core.utils import DelayedSubmission, JobPaths

    submission = DelayedSubmission(job(*words.split()))
    submission.set_timeout(submit.NOTICE, submit.MOST_TIMEOUTS)
    submission.result()
    paths = JobPaths(tmp_path, "7", 0)
    handler = SignalHandler(submitit.JobEnvironment(), paths, submission)
    with pytest.raises(SystemExit):  # not UncompletedJobError, its end for good
        handler.checkpoint_and_try_requeue(signal.SIGUSR2)
    DelayedSubmission.load(paths.submitted_pickle).result()
    first, second = planned
    assert first == second
