"""MDETR as a job of Slurm, or where there is none as one of this machine, by submitit."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskrcnn_benchmark.commands import mdetr, mdetr_flags
from maskrcnn_benchmark.commands.mdetr_flags import Asked, read
from maskrcnn_benchmark.engine.device import pick_device
from maskrcnn_benchmark.errors import ConfigError, UserError

logger = logging.getLogger(__name__)

NAME = "detectransformer"  # of the job, as in the original
FOLDER = "OUTPUT/experiments/%j"
MEMORY, CORES = 62, 10  # GB and cores for each process
NOTICE = 120  # seconds that a job is told before it ends
MOST_TIMEOUTS = 30  # times that a job that ran out of time is queued again
PORT = 20000  # the first of ten thousand, one for each job


@dataclass(frozen=True)
class Wanted:
    """What the job asks for.

    Attributes:
        nodes: Machines.
        processes: On each of them, one for each accelerator.
        minutes: That it may take.
        partition: Of Slurm; "": its default.
        folder: Of the job, "%j" stands for its number: logs, and the output where none is named.
        mail: Address that hears of its end; "": none.
        wait: Wait for the end.
    """

    nodes: int
    processes: int
    minutes: int
    partition: str
    folder: str
    mail: str
    wait: bool

    @property
    def size(self) -> int:
        """Processes in all."""
        return self.nodes * self.processes


def add_options(parser: argparse.ArgumentParser) -> None:
    """The original's options for the job."""
    parser.add_argument(
        "--ngpus", type=int, default=8, metavar="N", help="processes on a machine (default %(default)s)"
    )
    parser.add_argument("--nodes", type=int, default=4, metavar="N", help="machines (default %(default)s)")
    parser.add_argument("--timeout", type=int, default=4300, metavar="MINUTES", help="default %(default)s")
    parser.add_argument("--partition", default="", help="of Slurm")
    parser.add_argument(
        "--job_dir", default=FOLDER, metavar="DIR", help="on a disk of all machines (default %(default)s)"
    )
    parser.add_argument("--mail", default="", metavar="ADDRESS", help="hears when the job ends")
    parser.add_argument("--wait", action="store_true", help="wait for the end of the job, and fail if it does")


def wanted(args: argparse.Namespace) -> Wanted:
    """What the options ask for.

    Raises:
        ConfigError: a number below 1.
    """
    for name in ("ngpus", "nodes", "timeout"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)}: give a number from 1")
    folder = args.job_dir or FOLDER
    return Wanted(args.nodes, args.ngpus, args.timeout, args.partition, folder, args.mail, args.wait)


class Job:
    """What each process of the job does; also after it was interrupted, when it goes on where it was.

    Args:
        argv: Command line of ``run_with_submitit.py``.
        folder: As in :class:`Wanted`.
    """

    def __init__(self, argv: Sequence[str], folder: str) -> None:
        self.argv, self.folder = list(argv), folder

    def __call__(self) -> None:
        place = _submitit().JobEnvironment()
        number = str(place.job_id)
        os.environ.update(
            RANK=str(place.global_rank),
            WORLD_SIZE=str(place.num_tasks),
            LOCAL_RANK=str(place.local_rank),
            MASTER_ADDR=str(place.hostnames[0]) if place.num_nodes > 1 else "127.0.0.1",
            MASTER_PORT=str(PORT + int("".join(filter(str.isdigit, number))) % 10000),
        )
        parser = argparse.ArgumentParser(allow_abbrev=False)
        asked = read(parse(parser, self.argv))
        if asked.options.get("eval") or not asked.options.get("resume"):  # what is resumed goes on in its own folder
            asked.options.setdefault("output_dir", self.folder.replace("%j", number))
        mdetr.run(asked)

    def checkpoint(self) -> Any:
        """Called before the job is stopped: the same is queued again."""
        return _submitit().helpers.DelayedSubmission(Job(self.argv, self.folder))


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Options of the job and of MDETR together."""
    add_options(parser)
    mdetr_flags.add_options(parser)
    return parser.parse_intermixed_args(argv)


def check(asked: Asked, job: Wanted) -> None:
    """``--dry-run``: check all, and say what would be asked for.

    Raises:
        UserError: see :func:`mdetr.run`.
    """
    mdetr.run(asked, job.size)
    logger.info(
        "a job of %d processes (%d on each of %d machines), %d minutes at most, in %s",
        *(job.size, job.processes, job.nodes, job.minutes, job.folder),
    )


def submit(argv: Sequence[str], asked: Asked, job: Wanted) -> str:
    """Hand the job in; returns its number.

    Args:
        argv: Command line.
        asked: What it says of MDETR, which is checked here, before the job waits for machines.
        job: What it says of the job.

    Raises:
        ConfigError: submitit is not installed, or there is one machine and the job wants several.
        UserError: the job failed (with ``wait``).
    """
    package = _submitit()
    slurm = shutil.which("srun") is not None
    if not slurm and job.nodes > 1:
        raise ConfigError(
            f"--nodes {job.nodes}: Slurm (srun) is not here, and without it a job has one machine: give --nodes 1, or "
            "start tools/main.py with torchrun on each machine"
        )
    mdetr.plan(asked, job.size)
    executor = package.AutoExecutor(
        folder=job.folder, cluster="slurm" if slurm else "local", slurm_max_num_timeout=MOST_TIMEOUTS
    )
    device = asked.options.get("device", "auto")
    cpu = device == "cpu" if slurm else pick_device(device).type == "cpu"  # Slurm's machines may have what this has not
    executor.update_parameters(
        name=NAME,
        nodes=job.nodes,
        tasks_per_node=job.processes,
        timeout_min=job.minutes,
        mem_gb=MEMORY * job.processes,
        cpus_per_task=CORES,
        slurm_signal_delay_s=NOTICE,
        **({} if cpu else {"gpus_per_node": job.processes}),
        **({"slurm_partition": job.partition} if job.partition else {}),
        **({"slurm_additional_parameters": {"mail-user": job.mail, "mail-type": "END"}} if job.mail else {}),
    )
    handed = executor.submit(Job(argv, str(Path(job.folder).absolute())))
    number = str(handed.job_id)
    logger.info("job %s: logs in %s", number, handed.paths.folder)
    if job.wait:
        _wait(handed)
    return number


def _wait(handed: Any) -> None:
    try:
        handed.results()
    except Exception as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        raise UserError(
            f"job {handed.job_id} failed ({lines[-1] if lines else error!r}): see {handed.paths.stderr}"
        ) from None


def _submitit() -> Any:
    try:
        return importlib.import_module("submitit")
    except ImportError:
        raise ConfigError(
            "jobs need submitit, which is not installed: pip install submitit, or use tools/main.py"
        ) from None
