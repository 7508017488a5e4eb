"""Pseudo boxes by the commands that users type, on real pictures and in several processes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from maskrcnn_benchmark import mrb
from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.data.box_files import read_boxes
from tests.golden.common import shared_path
from tests.training_runs import ROOT, environment

pytestmark = pytest.mark.full

MODEL = "shufflenet_v2_x0_5"


def seeded(place: Path, classes: int) -> Path:
    torch.manual_seed(5)
    return save_weights(models.get_model(MODEL, weights=None, num_classes=classes).state_dict(), place / "seeded.pth")


def test_pictures_with_image_labels(tmp_path: Path) -> None:
    """The pictures of DECOLA's image-label form, with a seeded classifier of LVIS's 1,203 classes."""
    data = shared_path("data", "DATASET")
    labels = data / "derived" / "imagelabel" / "coco_lvis_image_info.json"
    words = [
        "--model",
        MODEL,
        "--weight",
        str(seeded(tmp_path, 1203)),
        "--images",
        str(data / "coco"),
        "--device",
        "cpu",
    ]
    assert mrb.main(["pseudo-boxes", str(labels), *words, "--out", str(tmp_path / "out"), "--pictures", "9"]) == 0
    listed = json.loads(labels.read_text())["images"]
    made = json.loads((tmp_path / "out" / "camnms8xyxy.json").read_text())
    size = {row["id"]: (row["width"], row["height"]) for row in made["images"]}
    by_file = {row["file_name"]: row for row in listed}
    assert {row["file_name"] for row in made["images"]} == set(by_file)
    assert {row["image_id"] for row in made["annotations"]} == set(size), "every picture has a box"
    for row in made["annotations"]:
        x, y, width, height = row["bbox"]
        assert min(x, y) >= 0
        assert min(width, height) >= 1
        assert x + width <= size[row["image_id"]][0] + 1e-3
        assert y + height <= size[row["image_id"]][1] + 1e-3
    for row in made["images"]:
        assert (row["width"], row["height"]) == (
            by_file[row["file_name"]]["width"],
            by_file[row["file_name"]]["height"],
        )
    assert Image.open(tmp_path / "out" / "cam.png").height > 600


def pictures(place: Path, count: int) -> Path:
    """ImageNet-1k's form, with 3 classes."""
    place.mkdir(parents=True)
    random, data, lines = np.random.default_rng(0), b"", []
    for number in range(count):
        file = place / "one.png"
        Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(file)
        lines.append(f"n{number}\t{number % 3}\t{len(data)}\t{file.stat().st_size}\t60\t40\n")
        data += file.read_bytes()
        file.unlink()
    (place / "train.binary").write_bytes(data)
    (place / "train.binary.label").write_text("".join(lines))
    return place


def command(place: Path, weight: Path) -> list[str]:
    words = ["--model", MODEL, "--weight", str(weight), "--device", "cpu", "--folder", str(place)]
    return [sys.executable, "tools/compute_box_imagenet1k.py", *words]


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("launcher", ["mpirun", "torchrun", "killed"])
def test_launchers_and_interruptions_give_the_same_file(launcher: str, tmp_path: Path) -> None:
    if launcher == "mpirun" and shutil.which("mpirun") is None:
        pytest.skip("Open MPI's mpirun is not installed")
    weight = seeded(tmp_path, 3)
    alone, other = (pictures(tmp_path / name, 40) for name in ("alone", "other"))
    done = start(command(alone, weight))
    assert done.wait(600) == 0, done.communicate()[1]
    words = command(other, weight)
    if launcher == "mpirun":
        words = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2", *words]
    elif launcher == "torchrun":
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words[1:]]
    else:
        first = start(words)
        limit = time.monotonic() + 600
        while not list(other.glob("*.parts/*.safetensors")) and time.monotonic() < limit:
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        assert list(other.glob("*.parts/*.safetensors"))
        assert not list(other.glob("*.npz"))
    done = start(words)
    assert done.wait(600) == 0, done.communicate()[1]
    for level in ("", "nms9", "nms8", "nms7", "nms6", "nms5"):
        name = f"train.cam3{level}xyxy.npz"
        tables = [read_boxes(place / name) for place in (alone, other)]
        assert tables[0].boxes.tobytes() == tables[1].boxes.tobytes()
        assert tables[0].first.tolist() == tables[1].first.tolist()
    assert not list(other.glob("*.parts"))
