"""Which launcher started a process, where processes meet, and what they tell each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskrcnn_benchmark.engine import distributed
from maskrcnn_benchmark.engine.distributed import World, detect_world, first_host, launch, launch_command, meeting_point
from maskrcnn_benchmark.errors import ConfigError
from tests.unit.test_structure import PACKAGE_FILES, imports

SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456"}
WORLDS = [
    ({}, World()),
    ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, World(5, 8, 1, "torchrun")),
    ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, World(0, 1, 0, "torchrun")),
    ({"RANK": "5"}, World()),
    (
        {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
        World(2, 4, 0, "openmpi"),
    ),
    ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"}, World(1, 2, 1, "mpich")),
    ({"PMI_RANK": "1", "PMI_SIZE": "2"}, World(1, 2, 0, "mpich")),
    (SLURM, World()),  # a shell inside a job: nobody started eight of us
    ({**SLURM, "SLURM_STEP_ID": "0"}, World(3, 8, 1, "slurm")),
    (
        {**SLURM, "SLURM_STEP_ID": "0", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        World(1, 2, 1, "torchrun"),
    ),
]


@pytest.mark.parametrize(("env", "world"), WORLDS)
def test_launcher_is_told_from_the_environment(env: dict[str, str], world: World) -> None:
    assert detect_world(env) == world
    assert world.main == (world.rank == 0)


def test_local_rank_of_the_command_line_fills_in() -> None:
    env = {"RANK": "3", "WORLD_SIZE": "4"}
    assert detect_world(env, local_rank=3).local_rank == 3
    assert detect_world({**env, "LOCAL_RANK": "1"}, local_rank=3).local_rank == 1


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "environment variable RANK='x' must be a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK=2 and WORLD_SIZE=2 \(torchrun\) do not fit"),
        ({"PMI_RANK": "0", "PMI_SIZE": "-1"}, "PMI_SIZE='-1'"),
    ],
)
def test_environment_that_makes_no_sense_is_refused(env: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detect_world(env)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("a,b", "a"),
        ("rack[3,5]-n1,x", "rack3-n1"),
        ("n-1.cluster[1-2]", "n-1.cluster1"),
    ],
)
def test_first_machine_of_slurm(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    ("env", "launcher", "place"),
    [
        ({"MASTER_ADDR": "gpu1", "MASTER_PORT": "1234"}, "torchrun", ("gpu1", 1234)),
        ({}, "openmpi", ("127.0.0.1", 29500)),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, "openmpi", ("127.0.0.1", 29500)),
        ({"PMIX_NAMESPACE": "2079653889"}, "openmpi", ("127.0.0.1", 23889)),
        ({"PMIX_NAMESPACE": "prterun-node-4711@1"}, "openmpi", ("127.0.0.1", 23899)),
        (
            {"SLURM_STEP_NODELIST": "n[3-4]", "SLURM_STEP_NUM_NODES": "2", "SLURM_JOB_ID": "123456"},
            "slurm",
            ("n3", 23456),
        ),
        ({"SLURM_STEP_NODELIST": "n3", "SLURM_STEP_NUM_NODES": "1"}, "slurm", ("127.0.0.1", 29500)),
    ],
)
def test_meeting_point(env: dict[str, str], launcher: str, place: tuple[str, int]) -> None:
    assert meeting_point(env, World(0, 8, 0, launcher)) == place


def test_several_machines_need_an_address() -> None:
    with pytest.raises(ConfigError, match="8 processes on several machines: set MASTER_ADDR"):
        meeting_point({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, World(0, 8, 0, "openmpi"))


def test_one_process_is_a_world_of_its_own() -> None:
    distributed.init(World(), torch.device("cpu"))
    assert not distributed.together()
    assert distributed.reduce_mean({"b": torch.tensor(2.0), "a": 1}) == {"a": 1.0, "b": 2.0}
    assert distributed.reduce_mean({}) == {}
    assert distributed.gather_objects({"x": 1}) == [{"x": 1}]
    assert distributed.broadcast("x") == "x"
    assert distributed.any_process(True)
    assert not distributed.any_process(False)
    distributed.barrier()
    model = torch.nn.Linear(1, 1)
    assert distributed.wrap(model, torch.device("cpu")) is model
    with distributed.without_sync(model, last=False):
        pass


@pytest.mark.parametrize(
    ("processes", "env", "message"),
    [
        (0, {}, "--num-gpus 0 must be at least 1"),
        (2, {"RANK": "0", "WORLD_SIZE": "4"}, "--num-gpus 2 inside torchrun with 4 processes"),
    ],
)
def test_launch_refuses(processes: int, env: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started something"))
    with pytest.raises(ConfigError, match=message):
        launch(processes, ["train.py"])


PROGRAM = """
import json, os, sys
from pathlib import Path
import torch
from maskrcnn_benchmark.engine import distributed as d
world = d.detect_world(os.environ)
d.init(world, torch.device("cpu"))
torch.manual_seed(0)
model = torch.nn.Linear(2, 1)
wrapped = d.wrap(model, torch.device("cpu"))
x = torch.tensor([[1.0, 2.0], [3.0, 5.0], [0.5, -1.0], [2.0, 2.0]])
for part in range(2):  # of the step: one picture of each process
    with d.without_sync(wrapped, last=part == 1):
        (wrapped(x[2 * part + world.rank][None]).square().mean() / 2).backward()
mine = torch.full((world.rank + 1, 2), float(world.rank), requires_grad=True)
found = {
    "world": [world.rank, world.size, world.launcher],
    "mean": d.reduce_mean({"b": torch.tensor(2.0 * world.rank), "a": world.rank + 1}),
    "average": d.average(torch.tensor([1.0, world.rank])).tolist(),
    "gathered": d.gather_objects({"rank": world.rank, "long": "x" * world.rank, "t": (1, None)}),
    "tensors": [part.tolist() for part in d.peers().gather(mine)],
    "own": [part.requires_grad for part in d.peers().gather(mine)].index(True),
    "broadcast": d.broadcast([world.rank, "seven"] if world.rank == 1 else None, source=1),
    "any": [d.any_process(world.rank == 1), d.any_process(False)],
    "gradient": model.weight.grad.flatten().tolist(),
}
refused = False
try:
    d.gather_objects(Path("x"))
except Exception as error:
    refused = "weights_only" in str(error).lower() or "WeightsUnpickler" in str(error)
found["refused"] = refused
d.shutdown()
tasks = Path("/proc/self/task")  # Linux only
names = [(task / "comm").read_text().strip() for task in tasks.iterdir()] if tasks.is_dir() else []
found["threads"] = [name for name in names if "gloo" in name]
Path(sys.argv[1], f"{world.rank}.json").write_text(json.dumps(found))
"""


def test_two_processes(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    start = (
        f"from maskrcnn_benchmark.engine.distributed import launch; launch(2, [{str(program)!r}, {str(tmp_path)!r}])"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", start], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [row["world"] for row in found] == [[0, 2, "torchrun"], [1, 2, "torchrun"]]
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    model(torch.tensor([[1.0, 2.0], [3.0, 5.0], [0.5, -1.0], [2.0, 2.0]])).square().mean().backward()
    for row in found:
        assert row["mean"] == {"a": 1.5, "b": 1.0}
        assert row["average"] == [1.0, 0.5]
        assert row["gathered"] == [{"rank": rank, "long": "x" * rank, "t": [1, None]} for rank in range(2)]
        assert row["tensors"] == [[[0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]]
        assert row["own"] == row["world"][0]
        assert row["broadcast"] == [1, "seven"]
        assert row["any"] == [True, False]
        assert row["gradient"] == pytest.approx(model.weight.grad.flatten().tolist())
        assert row["refused"]
        assert row["threads"] == []  # one that lives on may abort the process at its end
    assert "FutureWarning" not in done.stderr


def test_command_of_a_launch() -> None:
    command = launch_command(3, ["tools/train_net.py", "--config-file", "x.yaml"])
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert command[command.index("--nproc-per-node") + 1] == "3"
    assert command[-3:] == ["tools/train_net.py", "--config-file", "x.yaml"]


def test_processes_that_cannot_meet_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        distributed.dist, "rendezvous", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("timed out\nmore"))
    )
    monkeypatch.setenv("MASTER_ADDR", "gpu9")
    monkeypatch.setenv("MASTER_PORT", "1234")
    with pytest.raises(
        ConfigError, match=r"process 1 of 2 \(torchrun\) could not meet the others at gpu9:1234"
    ) as error:
        distributed.init(World(1, 2, 1, "torchrun"), torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_more_processes_than_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    gpu = torch.device("cuda")
    with pytest.raises(ConfigError, match="process 1 of this machine has no cuda device of its own, there are 1"):
        distributed.local_device(World(1, 2, 1, "torchrun"), gpu)
    assert distributed.local_device(World(1, 2, 1, "slurm"), gpu) == torch.device("cuda", 0)
    assert distributed.local_device(World(0, 1), gpu) == gpu
    assert chosen == [0]


def test_no_other_module_talks_to_other_processes() -> None:
    wrong = [path for path in PACKAGE_FILES if any(name.startswith("torch.distributed") for _, name in imports(path))]
    assert [path.name for path in wrong] == ["distributed.py"]
