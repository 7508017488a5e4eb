"""The commands of DAP's instructions, as printed there, and trainings of small Faster R-CNNs by the same tool."""

from __future__ import annotations

import json
import math
import pickle
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint.resume import load_latest
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.box_files import write_npz
from maskrcnn_benchmark.data.datasets.voc import VOC_CLASSES
from maskrcnn_benchmark.modeling.build import build_detector
from tests.e2e.test_launchers import mpirun, needs_mpirun
from tests.golden.common import shared_path
from tests.narrow_rcnn import make_small_rcnn
from tests.training_runs import rows
from tests.unit import dap_files
from tools import train_net

pytestmark = pytest.mark.full

DAP = "configs/imagenet1k/dap_in1k_faster_rcnn_r50fpn.yaml"
START = "mpirun -n 8 python tools/train_net.py --config-file"
COMMANDS = {
    "pre-training": f"{START} {DAP}",
    "voc": f"{START} configs/imagenet1k/in1k_faster_rcnn_r50fpn_voc07.yaml "
    'OUTPUT_DIR "output/in1k_dap_r50/voc07" MODEL.WEIGHT "output/in1k_dap_r50/model_final.pth"',
    "voc, baseline": f"{START} configs/imagenet1k/in1k_faster_rcnn_r50fpn_voc07.yaml",
    "coco": f"{START} configs/imagenet1k/in1k_faster_rcnn_r50fpn_coco.yaml "
    'OUTPUT_DIR "output/in1k_dap_r50/coco" MODEL.WEIGHT "output/in1k_dap_r50/model_final.pth"',
    "coco, baseline": f"{START} configs/imagenet1k/in1k_faster_rcnn_r50fpn_coco.yaml",
}
TOLD = {
    "pre-training": ("begins with the weights of MODEL/R-50.pkl", "159 of 300 tensors loaded: backbone.body 159"),
    "voc": ("291 of 300 tensors loaded", "dropped, as it belongs to the classes of the data"),
    "voc, baseline": ("begins with the weights of MODEL/R-50.pkl", "159 of 300 tensors loaded: backbone.body 159"),
    "coco": ("291 of 300 tensors loaded", "dropped, as it belongs to the classes of the data"),
    "coco, baseline": ("90000 steps", "159 of 300 tensors loaded: backbone.body 159"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with little data and zeros for weights, all where the instructions want them."""
    folder = tmp_path_factory.mktemp("place")
    dap_files.write_binary(folder / "datasets" / "imagenet2012Full")
    write_npz(folder / "datasets" / "imagenet2012Full" / "train.cam3nms8xyxy.npz", dap_files.table(6))
    for split in ("trainval", "test"):
        write_voc(folder / "DATASET" / "voc" / "VOC2007", split)
    for split in ("train", "val"):
        write_coco(folder / "DATASET" / "coco", split)
    with torch.device("meta"):
        state = build_detector(load_cfg(DAP)).state_dict()
    zeros = {name: torch.zeros(()).expand(value.shape) for name, value in state.items() if "cell_anchors" not in name}
    (folder / "output" / "in1k_dap_r50").mkdir(parents=True)
    torch.save({"model": zeros, "iteration": 20018}, folder / "output" / "in1k_dap_r50" / "model_final.pth")
    (folder / "MODEL").mkdir()
    blobs = {blob: np.zeros(tuple(state[name].shape), np.float32) for name, blob in caffe2_names(state).items()}
    (folder / "MODEL" / "R-50.pkl").write_bytes(pickle.dumps(blobs, protocol=2))
    return folder


def caffe2_names(state: dict[str, torch.Tensor]) -> dict[str, str]:
    """Our names -> those of Caffe2, for the body."""
    parts = {"conv1": "2a", "conv2": "2b", "conv3": "2c", "bn1": "2a_bn", "bn2": "2b_bn", "bn3": "2c_bn"}
    found = {}
    for name in state:
        words = name.removeprefix("backbone.body.").split(".")
        if not name.startswith("backbone.body.") or "running" in name:
            continue
        norm = "bn" in name or "downsample.1" in name
        end = {"weight": "s" if norm else "w", "bias": "b"}[words[-1]]
        if not words[0].startswith("layer"):
            found[name] = f"res_conv1_bn_{end}" if norm else "conv1_w"
            continue
        branch = {"0": "1", "1": "1_bn"}[words[3]] if words[2] == "downsample" else parts[words[2]]
        found[name] = f"res{int(words[0][5:]) + 1}_{words[1]}_branch{branch}_{end}"
    return found


def write_voc(folder: Path, split: str, count: int = 8) -> None:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = [f"{split}{number}" for number in range(count)]
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
    for number, name in enumerate(names):
        Image.new("RGB", (40, 30)).save(folder / "JPEGImages" / f"{name}.jpg")
        box = "<xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>25</ymax>"
        found = f"<object><name>{VOC_CLASSES[number]}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
        size = "<size><width>40</width><height>30</height></size>"
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{found}</annotation>")


def write_coco(folder: Path, split: str, count: int = 8) -> None:
    (folder / f"{split}2017").mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 40, "height": 30})
        Image.new("RGB", (40, 30)).save(folder / f"{split}2017" / f"{number}.jpg")
    tree = {
        "images": images,
        "categories": [{"id": number, "name": f"thing {number}"} for number in range(1, 81)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": n, "bbox": [3, 4, 17, 21], "area": 357, "iscrowd": 0}
            for n in range(1, count + 1)
        ],
    }
    (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(tree))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_as_printed_are_in_order(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    for variable in ("DATASET", "MODEL"):
        monkeypatch.delenv(variable, raising=False)
    words = shlex.split(COMMANDS[name])
    assert words[:5] == ["mpirun", "-n", "8", "python", "tools/train_net.py"]
    code = cli.run(train_net.main, [*words[5:], "--dry-run", "--strict-config"])
    told = capsys.readouterr()
    assert code == 0, told.err
    assert all(part in told.out + told.err for part in TOLD[name])
    assert not (place / "output" / "in1k_dap_r50" / "voc07" / "last_checkpoint").exists()


@needs_mpirun
def test_mpirun_trains_and_the_result_is_transferred(tmp_path: Path) -> None:
    small = make_small_rcnn(tmp_path)
    keys = {"SOLVER__MAX_ITER": 3, "SOLVER__IMS_PER_BATCH": 4}
    mpirun("tools/train_net.py", *small.argv(tmp_path / "first", **keys, MODEL__CLS_AGNOSTIC_BBOX_REG=True))
    first = load_latest(tmp_path / "first")
    assert first is not None
    assert (first["iteration"], len(first["rng"])) == (3, 2), "the state of each process is in the checkpoint"
    weight = tmp_path / "first" / "model_final.pth"
    done = mpirun("tools/train_net.py", *small.argv(tmp_path / "second", **keys, MODEL__WEIGHT=weight))
    found = rows(tmp_path / "second")
    assert [row["step"] for row in found] == [1, 2, 3]
    assert all(math.isfinite(row["loss"]) for row in found)
    assert done.stderr.count("296 of 300 tensors loaded") == 1, "one of the processes talks"


OVERFIT = {
    "MODEL.WEIGHT": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.FREEZE_CONV_BODY_AT": 0,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 16,
    "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM": 128,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
    "MODEL.RPN.PRE_NMS_TOP_N_TRAIN": 300,
    "MODEL.RPN.PRE_NMS_TOP_N_TEST": 300,
    "MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN": 300,
    "MODEL.RPN.FPN_POST_NMS_TOP_N_TEST": 200,
    "INPUT.MIN_SIZE_TRAIN": "(128,)",
    "INPUT.MAX_SIZE_TRAIN": 192,
    "INPUT.MIN_SIZE_TEST": 128,
    "INPUT.MAX_SIZE_TEST": 192,
    "INPUT.PIXEL_STD": "(57.375, 57.12, 58.395)",
    "AUGMENT.FLIP_PROB_TRAIN": 0.0,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.MAX_EPOCH": 0,
    "SOLVER.MAX_ITER": 600,
    "SOLVER.STEPS": "(0.8,)",
    "SOLVER.STEPS_EPOCH": "()",
    "SOLVER.WARMUP_ITERS": 50,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 5.0,
    "SOLVER.CHECKPOINT_EPOCH": 0,
    "SOLVER.CHECKPOINT_PERIOD": 600,
    "SOLVER.TEST_PERIOD": 0,
}


def test_it_learns_pictures_of_voc_by_heart(tmp_path: Path) -> None:
    voc = shared_path("data", "DATASET", "derived", "voc", "VOC2007")
    entry = {"kind": "voc", "evaluator": "voc", "img_dir": str(voc), "ann_file": str(voc), "split": "train"}
    task = tmp_path / "task.yaml"
    sets = {"REGISTER": {"few": entry}, "TRAIN": ["few"], "TEST": ["few"]}
    task.write_text(yaml.safe_dump({"DATASETS": sets}), encoding="utf-8")
    opts = [str(word) for pair in OVERFIT.items() for word in pair]
    words = ["--config-file", "configs/base/rcnn_voc.yaml", "--task_config", str(task)]
    assert cli.run(train_net.main, [*words, "--override_output_dir", str(tmp_path / "out"), *opts]) == 0
    results = json.loads((tmp_path / "out" / "inference" / "few" / "results.json").read_text())
    assert results["metrics"]["AP50"] > 0.5
