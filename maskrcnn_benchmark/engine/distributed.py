"""Several processes as one training. The only module that imports torch.distributed.

With one process nothing is set up, and every function here gives what that process has.
"""

from __future__ import annotations

import importlib
import inspect
import io
import os
import re
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.run import get_args_parser
from torch.nn.parallel import DistributedDataParallel

from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.interface import ALONE, Peers

MEETING = timedelta(minutes=10)  # how long processes wait for one another at the start
PATIENCE = timedelta(hours=12)  # ... and later: one may evaluate for long while the others wait
DEFAULT_PORT = 29500
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
LOOK = 0.2  # seconds between two looks for what another process is to hand out
_wrapped: WeakSet[DistributedDataParallel] = WeakSet()


@dataclass
class _Meeting:
    """Where the processes that are together leave notes for each other."""

    store: dist.Store
    handed_out: int = 0


_meetings: list[_Meeting] = []  # one or none


@dataclass(frozen=True)
class World:
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its machine
    launcher: str = "none"

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0


_LAUNCHERS = (  # the first match wins: torchrun sets its variables inside a job of Slurm or MPI
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("openmpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("mpich", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)


def detect_world(env: Mapping[str, str], local_rank: int | None = None) -> World:
    """Who started this process, told from its environment; nothing is changed.

    Args:
        env: ``os.environ``.
        local_rank: What ``--local-rank`` or ``--local_rank`` said, for launchers that do not set it in the environment.

    Raises:
        ConfigError: the launcher's variables are no numbers, or do not fit together.
    """
    for launcher, rank_key, size_key, local_key in _LAUNCHERS:
        if rank_key not in env or size_key not in env:
            continue
        if launcher == "slurm" and "SLURM_STEP_ID" not in env:
            continue  # inside sbatch or salloc, but not started by srun: one process
        rank, size = _number(env, rank_key), _number(env, size_key)
        if not 0 <= rank < size:
            raise ConfigError(
                f"{rank_key}={rank} and {size_key}={size} ({launcher}) do not fit: ranks go from 0 to {size - 1}"
            )
        local = _number(env, local_key) if local_key in env else local_rank or 0
        return World(rank, size, local, launcher)
    return World()


def _number(env: Mapping[str, str], key: str) -> int:
    if not re.fullmatch(r"\d{1,9}", env[key]):
        raise ConfigError(
            f"environment variable {key}={env[key]!r} must be a whole number: see how the launcher was called"
        )
    return int(env[key])


def meeting_point(env: Mapping[str, str], world: World) -> tuple[str, int]:
    """(host, port) where the processes of a world meet: ``MASTER_ADDR``, ``MASTER_PORT``, or what the launcher tells.

    Raises:
        ConfigError: the processes are on several machines and nothing says which is the first.
    """
    port = _number(env, "MASTER_PORT") if "MASTER_PORT" in env else _default_port(env)
    if "MASTER_ADDR" in env:
        return env["MASTER_ADDR"], port
    if world.launcher == "slurm":
        hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or ""
        if int(env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES") or 1) > 1:
            return first_host(hosts), port
    local_size = env.get("OMPI_COMM_WORLD_LOCAL_SIZE") or env.get("MPI_LOCALNRANKS") or str(world.size)
    if world.launcher != "slurm" and int(local_size) < world.size:
        raise ConfigError(f"{world.size} processes on several machines: set MASTER_ADDR to the name of the first one")
    return "127.0.0.1", port


def _default_port(env: Mapping[str, str]) -> int:
    """Two jobs of Slurm or Open MPI on one machine do not get in each other's way."""
    job = env.get("SLURM_JOB_ID") or env.get("PMIX_NAMESPACE", "")
    if not job:
        return DEFAULT_PORT
    return 20000 + (int(job) if job.isdigit() else zlib.crc32(job.encode())) % 10000


def first_host(nodes: str) -> str:
    """``gpu07`` of Slurm's ``gpu[07-09,12],cpu1``.

    Raises:
        ConfigError: it is no such list.
    """
    match = re.match(r"([^\[\],\s]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", nodes)
    if match is None:
        raise ConfigError(
            f"SLURM_STEP_NODELIST={nodes!r} is not understood: set MASTER_ADDR to the name of the first machine"
        )
    return "".join(part or "" for part in match.groups())


def local_device(world: World, device: torch.device) -> torch.device:
    """The device of this process: its own where there are several processes on a machine.

    Raises:
        ConfigError: the machine has fewer accelerators than processes.
    """
    if world.size == 1 or device.type == "cpu":
        return device
    count = torch.accelerator.device_count()
    alone = count == 1 and world.launcher in ("slurm", "openmpi", "mpich")  # the launcher shows each process its own
    index = 0 if alone else world.local_rank
    if index >= count:
        raise ConfigError(
            f"process {world.local_rank} of this machine has no {device.type} device of its own, there are {count}: "
            f"start {count} processes, or set MODEL.DEVICE cpu"
        )
    torch.accelerator.set_device_index(index)
    return torch.device(device.type, index)


def init(world: World, device: torch.device) -> None:
    """Bring the processes of a world together; nothing to do where there is one.

    Raises:
        ConfigError: they do not find each other.
    """
    if world.size == 1 or dist.is_initialized():
        return
    # Its functions keep the group that exists at its first import as a default: that must not be ours, see shutdown.
    importlib.import_module("torch.distributed.nn.functional")
    host, port = meeting_point(os.environ, world)
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        store, _, _ = next(dist.rendezvous("env://", world.rank, world.size, timeout=MEETING))
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=PATIENCE)
        barrier()
        _meetings.append(_Meeting(store))
    except (RuntimeError, ValueError, OSError) as error:
        shutdown()
        reason = str(error).strip().splitlines()[0][:200]
        raise ConfigError(
            f"process {world.rank} of {world.size} ({world.launcher}) could not meet the others at {host}:{port} over "
            f"{backend} ({reason}): see whether all of them run, and try another MASTER_PORT"
        ) from error


def shutdown() -> None:
    """Part again; wrapped models can no longer be trained.

    A thread of the group that drops a tensor needs the interpreter, and where that is at its end already, the process
    aborts. So the threads must end here, which they do when nothing refers to the group any more. An error that is on
    its way may still hold a wrapped model.
    """
    while _wrapped:
        attributes = vars(_wrapped.pop())
        for name in ("reducer", "logger", "process_group"):
            attributes.pop(name, None)
    _meetings.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def together() -> bool:
    """Whether there is more than one process."""
    return dist.is_available() and dist.is_initialized()


def barrier() -> None:
    """Wait until every process is here."""
    if together():
        dist.all_reduce(torch.zeros(1, device=_device()))


def average(value: Tensor) -> Tensor:
    """Mean of a tensor over the processes, on its device and without gradient; what losses are normalised with."""
    value = value.detach().clone()
    if together():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def gather(value: Tensor) -> list[Tensor]:
    """Tensors (n, ...) of the processes, by rank; n may differ, and the part of this process keeps its gradient."""
    if not together():
        return [value]
    sizes = [torch.zeros(1, dtype=torch.int64, device=value.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(value)], device=value.device))
    longest = max(int(size) for size in sizes)
    padded = value.new_zeros(longest, *value.shape[1:])
    padded[: len(value)] = value.detach()
    rows = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(rows, padded)
    parts = [row[: int(size)] for row, size in zip(rows, sizes, strict=True)]
    parts[dist.get_rank()] = value
    return parts


def peers() -> Peers:
    """What the losses of a batch need to know of the other processes."""
    return Peers(average, gather, dist.get_rank()) if together() else ALONE


def reduce_mean(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Mean of each number over the processes, which all give the same names."""
    names = sorted(values)
    if not names:
        return {}
    row = torch.stack([torch.as_tensor(values[name]).detach().double().reshape(()).cpu() for name in names])
    means = average(row.to(_device()))
    return dict(zip(names, means.tolist(), strict=True))


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any of the processes."""
    return average(torch.tensor(float(flag), device=_device())).item() > 0


def gather_objects(value: Any) -> list[Any]:
    """What each process has, by rank; every process gets the list.

    Only numbers, text, tensors, and lists, tuples and dicts of them: nothing that is sent can run code.
    """
    if not together():
        return [value]
    return [_unpack(part) for part in gather(_pack(value))]


def broadcast(value: Any, source: int = 0) -> Any:
    """What the process ``source`` has; what the others pass is not looked at. For types see :func:`gather_objects`."""
    if not together():
        return value
    mine = dist.get_rank() == source
    data = _pack(value) if mine else torch.zeros(0, dtype=torch.uint8, device=_device())
    size = torch.tensor([len(data)], device=_device())
    dist.broadcast(size, source)
    data = data if mine else torch.zeros(int(size), dtype=torch.uint8, device=_device())
    dist.broadcast(data, source)
    return _unpack(data)


def hand_out(value: float) -> float:
    """The number that the first process has; the others wait for it however long it takes, and in no collective."""
    if not _meetings:
        return value
    meeting = _meetings[-1]
    meeting.handed_out += 1
    key = f"handed out {meeting.handed_out}"
    if dist.get_rank() == 0:
        meeting.store.set(key, value.hex())
    while not meeting.store.check([key]):
        time.sleep(LOOK)
    return float.fromhex(meeting.store.get(key).decode())


def _pack(value: Any) -> Tensor:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8).to(_device())


def _unpack(data: Tensor) -> Any:
    return torch.load(io.BytesIO(data.cpu().numpy().tobytes()), map_location="cpu", weights_only=True)


def _device() -> torch.device:
    """Where the processes exchange tensors."""
    if together() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def wrap(model: nn.Module, device: torch.device, find_unused: bool = False) -> nn.Module:
    """The model as one whose gradients are means over the processes; itself where there is one process."""
    if not together():
        return model
    devices = None if device.type == "cpu" else [device]
    # Buffers follow from the config and the weights: every process has the same, and need not hear of them each step.
    known = inspect.signature(DistributedDataParallel).parameters
    buffers: dict[str, Any] = {
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
    }
    wrapped = DistributedDataParallel(model, devices, find_unused_parameters=find_unused, **buffers)
    _wrapped.add(wrapped)
    return wrapped


def without_sync(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Around the forward and backward pass of a batch: gradients are exchanged with the ``last`` one of a step only."""
    return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()


def launch(processes: int, argv: Sequence[str]) -> NoReturn:
    """Start a command in several processes of this machine, in place of this process.

    SIGTERM and SIGUSR1 reach every process and leave it five minutes to save. The exit code is 0 where that of every
    process is, else 1.

    Args:
        processes: How many.
        argv: Script and its options, without the option that asked for this.

    Raises:
        ConfigError: not a sensible number, or this process is one of several already.
    """
    if processes < 1:
        raise ConfigError(f"--num-gpus {processes} must be at least 1")
    world = detect_world(os.environ)
    if world.size > 1:
        raise ConfigError(
            f"--num-gpus {processes} inside {world.launcher} with {world.size} processes: use one or the other"
        )
    count = torch.accelerator.device_count()
    if 0 < count < processes:
        raise ConfigError(f"--num-gpus {processes}, but this machine has {count}: ask for {count}")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, launch_command(processes, argv))


def launch_command(processes: int, argv: Sequence[str]) -> list[str]:
    """The command line that starts ``argv`` in several processes of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    known = get_args_parser().format_help()  # older releases cannot pass on SIGUSR1, or are less patient
    for option, value in (("--signals-to-handle", _SIGNALS), ("--shutdown-timeout", "300")):
        command += [option, value] if option in known else []
    return [*command, "--nproc-per-node", str(processes), *argv]
