"""Signals that ask a training to end: it finishes its step, saves, and goes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

from maskrcnn_benchmark.errors import UserError

logger = logging.getLogger(__name__)

PATIENCE = 60  # seconds that Slurm's answer is waited for


class Interrupted(UserError):
    """The run was asked to end; it has saved its state. The exit code is what shells give for SIGTERM."""

    exit_code = 143


class Signals(AbstractContextManager["Signals"]):
    """Notices SIGTERM and SIGUSR1, so that a step can be finished and saved first."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.come_back = False  # SIGUSR1 came: the time is nearly up, and the run is to go on in another job
        self._before: dict[int, Any] = {}

    @property
    def name(self) -> str:
        """Of the signal that came; in another process of this run, where none came here."""
        return signal.Signals(self.received).name if self.received else "a signal to another process of this run"

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGUSR1"):
                if hasattr(signal, name):  # Windows has no SIGUSR1
                    number = getattr(signal, name)
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.come_back = self.come_back or number == getattr(signal, "SIGUSR1", None)


def requeue(env: Mapping[str, str] = os.environ) -> bool:
    """Inside a job of Slurm, ask once for it to be started again; returns whether Slurm agreed.

    This is for SIGUSR1, which ``sbatch --signal=USR1@120`` sends two minutes before the time limit. Not for SIGTERM: so
    ends ``scancel`` a job that should not come back, and one that is preempted Slurm queues again by itself.
    """
    job = env.get("SLURM_JOB_ID", "")
    if not job:
        return False
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("Slurm job %s could not be put back into the queue: %s", job, error)
        return False
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()
        logger.warning(
            "Slurm job %s could not be put back into the queue: %s", job, reason[0] if reason else done.returncode
        )
        return False
    logger.info("Slurm job %s is in the queue again", job)
    return True
