"""A Slurm cluster of this machine alone, from Debian's packages slurm-wlm and munge, in a folder of its own."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "sbatch", "srun")
PATIENCE = 300  # seconds


def missing() -> str:
    """Why there can be no cluster; "" where there can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)}: install the packages slurm-wlm and munge"
    return "" if os.geteuid() == 0 else "the daemons of Slurm need root"


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start the daemons; gives the variable that finds them.

    The machine says that it has more memory and cores than it may have, so that any job for CPUs fits.
    """
    folder.chmod(0o755)
    host, ports = socket.gethostname().split(".")[0], _free_ports(2)
    munge, conf = folder / "munge", folder / "slurm.conf"
    for path in (munge, folder / "state", folder / "spool"):
        path.mkdir()
    (munge / "key").write_bytes(os.urandom(1024))
    (munge / "key").chmod(0o400)
    conf.write_text(_conf(folder, host, ports), encoding="utf-8")
    found = {"SLURM_CONF": str(conf)}
    environment = {**os.environ, **found}
    places = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    commands = (
        ["munged", "--foreground", "--force", *(f"--{option}={munge / name}" for option, name in places.items())],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", host],
    )
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with open(folder / f"{command[0]}.out", "wb") as out:
                running.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
            _wait(lambda: (munge / "socket").exists(), folder)
        _wait(lambda: _idle(environment), folder)
        yield found
    finally:
        subprocess.run(["scancel", f"--user={_user()}"], env=environment, check=False, timeout=PATIENCE)
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(PATIENCE)


def ended_job(found: dict[str, str]) -> str:
    """What Slurm says of its one job after that ended: its processes live a little longer than their result's file."""
    said = ["scontrol", "show", "job", "--oneliner"]
    end = time.monotonic() + PATIENCE
    while True:
        told = subprocess.run(said, env={**os.environ, **found}, capture_output=True, text=True, check=True).stdout
        if not re.search("JobState=(PENDING|CONFIGURING|RUNNING|COMPLETING)", told):
            return told
        if time.monotonic() > end:
            raise TimeoutError(f"the job of Slurm does not end: {told}")
        time.sleep(0.2)


def _conf(folder: Path, host: str, ports: list[int]) -> str:
    user = _user()
    rows = {
        "ClusterName": "one",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmUser": user,
        "SlurmdUser": user,
        "SlurmctldPort": ports[0],
        "SlurmdPort": ports[1],
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder / 'munge' / 'socket'}",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SlurmdParameters": "config_overrides",
        "ReturnToService": 2,
        "MpiDefault": "none",
    }
    lines = [f"{key}={value}\n" for key, value in rows.items()]
    lines += [f"NodeName={host} NodeAddr=127.0.0.1 CPUs=80 RealMemory=500000 State=UNKNOWN\n"]
    return "".join([*lines, f"PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP\n"])


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _idle(environment: dict[str, str]) -> bool:
    told = subprocess.run(
        ["sinfo", "-h", "-t", "idle", "-o", "%D"], env=environment, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() == "1"


def _wait(condition: object, folder: Path) -> None:
    assert callable(condition)
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            told = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.out")))
            raise TimeoutError(f"Slurm does not come up:\n{told}")
        time.sleep(0.2)
