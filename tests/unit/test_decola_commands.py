"""The commands of DECOLA's documents, with a small world in the place of LVIS and ImageNet, and narrow networks."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.drawn import CLASSES, World, write_coco
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.text.class_bank import ClassBank, write_bank
from tests.decola_runs import only_names
from tools import train_net

PHASE_1_L = "weights/DECOLA_PHASE1_L_CLIP_R5021k_4x.pth"
BOX_SUP = "weights/BoxSup-DeformDETR_Lbase_CLIP_R5021k_4x.pth"
CENTERNET_2 = "weights/BoxSup-C2_Lbase_CLIP_R5021k_640b64_4x.pth"
TRAININGS = {
    "phase 1, LVIS-base": "--num-gpus 8 --config-file DECOLA_PHASE1_Lbase_CLIP_R5021k_4x.yaml",
    "phase 1, LVIS": "--num-gpus 8 --config-file DECOLA_PHASE1_L_CLIP_R5021k_4x.yaml",
    "phase 2": f"--num-gpus 8 --config-file DECOLA_PHASE2_Lbase_CLIP_R5021k_4x_ft4x.yaml MODEL.WEIGHTS {PHASE_1_L}",
    "phase 2, off-line": "--num-gpus 8 --config-file DECOLA_PHASE2_Lbase_CLIP_R5021k_4x_OFFLINE_ft4x.yaml "
    f"MODEL.WEIGHTS {PHASE_1_L}",
    "BoxSup": "--num-gpus 8 --config-file BoxSup-DeformDETR_Lbase_CLIP_R5021k_4x.yaml",
    "Detic": f"--num-gpus 8 --config-file Detic_DeformDETR_LbaseI_CLIP_R5021k_4x_ft4x.yaml MODEL.WEIGHTS {BOX_SUP}",
    "CenterNet2": "--num-gpus 8 --config-file DECOLA_C2_LbaseI_CLIP_R5021k_640b64_ft4x+Detic.yaml "
    f"MODEL.WEIGHTS {CENTERNET_2}",
}
SIZES = {"phase 2": "2 or 8", "phase 2, off-line": "2 or 8", "Detic": "2 or 8", "CenterNet2": "8 or 32 or 32"}
LABELLING = (
    "--num-gpus 8 --config-file DECOLA_SELF_LABELING_Lbase_CLIP_R5021k_4x.yaml --eval-only MODEL.WEIGHTS "
    f"{PHASE_1_L} INPUT.MIN_SIZE_TEST 240 "
    "OUTPUT_DIR output/pseudo_labels/DECOLA_SELF_LABELING_Lbase_CLIP_R5021k_4x/"
)
COUNT = 4
WIDTH = 16  # of the embeddings of names
SMALL: dict[str, Any] = {
    "MODEL.DEVICE": "cpu",
    "MODEL.SWINT.SIZE": "",
    "MODEL.SWINT.EMBED_DIM": 8,
    "MODEL.SWINT.DEPTHS": "(1, 1, 1, 1)",
    "MODEL.SWINT.NUM_HEADS": "(1, 1, 2, 2)",
    "MODEL.SWINT.WINDOW_SIZE": 4,
    "MODEL.ZEROSHOT_CLS.DIM": WIDTH,
    "MODEL.FED_LOSS.NUM_CLASSES": 5,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.USE_AMP": False,
    "SOLVER.LOG_PERIOD": 1,
}
DETR: dict[str, Any] = {
    "MODEL.BACKBONE.CONV_BODY": "SWIN",
    "MODEL.DEFORMABLE_DETR.NUM_CLASSES": len(CLASSES),
    "MODEL.DEFORMABLE_DETR.HIDDEN_DIM": 32,
    "MODEL.DEFORMABLE_DETR.NHEADS": 2,
    "MODEL.DEFORMABLE_DETR.ENC_LAYERS": 1,
    "MODEL.DEFORMABLE_DETR.DEC_LAYERS": 2,
    "MODEL.DEFORMABLE_DETR.DIM_FEEDFORWARD": 32,
    "MODEL.DEFORMABLE_DETR.NUM_OBJECT_QUERIES": 10,
    "MODEL.DECOLA.QUERIES_PER_PROMPT": 6,
}
CENTERNET: dict[str, Any] = {
    "MODEL.BACKBONE.CONV_BODY": "SWIN-FPN-P6P7",
    "MODEL.BACKBONE.OUT_CHANNELS": 32,
    "MODEL.ROI_HEADS.NUM_CLASSES": len(CLASSES),
    "MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM": 32,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.CENTERNET.NUM_BOX_CONVS": 1,
}


def narrow_keys(folder: Path, config: str) -> dict[str, Any]:
    """What makes the released network small; the sizes of batches stay."""
    if "C2" in config:
        return {**SMALL, **CENTERNET, "MODEL.ZEROSHOT_CLS.WEIGHT_PATH": folder / "names.safetensors"}
    banks = {"WEIGHT_PATH": "names", "OBJECT_WEIGHT_PATH": "object"}
    return SMALL | DETR | {f"MODEL.ZEROSHOT_CLS.{key}": folder / f"{name}.safetensors" for key, name in banks.items()}


def words(keys: dict[str, Any]) -> list[str]:
    return [str(part) for pair in keys.items() for part in pair]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``datasets`` and ``weights`` as DECOLA's documents lay them out."""
    folder = tmp_path_factory.mktemp("decola_world")
    generator = torch.Generator().manual_seed(0)
    for name, names in (("names", CLASSES), ("object", ("object",))):
        write_bank(
            ClassBank(torch.randn(len(names), WIDTH, generator=generator), tuple(names)), folder / f"{name}.safetensors"
        )
    data = folder / "datasets"
    boxes = write_coco(data / "coco", World(1, size=(96, 128), classes=CLASSES), COUNT).annotations
    (data / "lvis").mkdir()
    for part in ("train", "train_norare", "val"):
        shutil.copyfile(boxes, data / "lvis" / f"lvis_v1_{part}.json")
    pictures = data / "imagenet" / "ImageNet-LVIS"
    labels = write_coco(pictures, World(2, size=(96, 128), classes=CLASSES), COUNT).annotations
    for name in ("annotations", "pseudo_annotations"):
        (data / "imagenet" / name).mkdir()
    found = json.loads(labels.read_text())["annotations"]
    only_names(labels)
    pseudo = data / "imagenet" / "pseudo_annotations" / "imagenet_lvis_v1_decola_phase1_r50_21k_zeroshot_4x.json"
    pseudo.write_text(json.dumps({**json.loads(labels.read_text()), "annotations": found}))
    shutil.move(labels, data / "imagenet" / "annotations" / "imagenet_lvis_image_info.json")
    (folder / "weights").mkdir()
    for file in (PHASE_1_L, BOX_SUP, CENTERNET_2):
        cfg = load_cfg(f"{Path(file).stem}.yaml", opts=["MODEL.WEIGHT", "", *words(narrow_keys(folder, file))])
        save_weights(build_detector(cfg).state_dict(), folder / file)
    return folder


def run(world: Path, command: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    """A command, as it is typed in the world's folder."""
    monkeypatch.chdir(world)
    keys = {} if "MODEL.WEIGHTS" in command else {"MODEL.WEIGHT": ""}
    keys |= narrow_keys(world, command)
    return cli.run(train_net.main, [*shlex.split(command), *words(keys), *more])


@pytest.mark.parametrize("name", list(TRAININGS))
def test_a_training_is_planned(
    world: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(world, f"{TRAININGS[name]} --dry-run --resume", monkeypatch, "OUTPUT_DIR", str(tmp_path)) == 0
    told = capsys.readouterr().err
    assert "training data: " in told
    if name in SIZES:
        assert f"batches of {SIZES[name]} in an epoch, of one set each" in told
    assert list(tmp_path.iterdir()) == []  # nothing is written


def test_labelling_is_planned(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(world, f"{LABELLING} --dry-run", monkeypatch) == 0
    assert "DECOLA_SELF_LABELING_Lbase_CLIP_R5021k_4x/inference_imagenet_lvis_v1/" in capsys.readouterr().out


def test_a_batch_that_processes_cannot_share_is_refused(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = TRAININGS["BoxSup"].replace("--num-gpus 8", "--num-gpus 3")
    assert run(world, f"{command} --dry-run", monkeypatch) == 2
    assert "SOLVER.IMS_PER_BATCH 16 cannot be shared by 3 processes" in capsys.readouterr().err


def test_boxes_of_some_classes_of_a_larger_network(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """LVIS-base beside ImageNet-21k: the file of boxes has to list all classes, not to have boxes of all."""
    shutil.copytree(world, tmp_path / "world")
    file = tmp_path / "world" / "datasets" / "lvis" / "lvis_v1_train_norare.json"
    data = json.loads(file.read_text())
    few = {row["id"] for row in data["categories"][:5]}
    boxes = [row for row in data["annotations"] if row["category_id"] in few]
    file.write_text(json.dumps({**data, "categories": data["categories"][:5], "annotations": boxes}))
    command = (
        "--config-file BoxSup+ST-DeformDETR_LbaseI21k_CLIP_R5021k_4x_ft4x.yaml --dry-run MODEL.WEIGHTS "
        f"{BOX_SUP} DATASETS.TRAIN \"('lvis_v1_train_norare', 'imagenet_lvis_v1')\""
    )
    assert run(tmp_path / "world", command, monkeypatch) == 2
    told = capsys.readouterr().err
    assert f"NUM_CLASSES {len(CLASSES)} " in told
    assert "lvis_v1_train_norare has 5" in told
    assert "or give it a file whose categories are all of them" in told
    file.write_text(json.dumps({**data, "annotations": boxes}))
    assert run(tmp_path / "world", command, monkeypatch) == 0


def test_pictures_go_to_weights_and_biases(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb.py").write_text(FAKE_WANDB, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    keys = {
        "OUTPUT_DIR": tmp_path / "run",
        "SOLVER.MAX_ITER": 6,
        "SOLVER.STEPS": "(6,)",
        "DATALOADER.DATASET_BS": "(2, 2)",
        "DATALOADER.DATASET_MIN_SIZES": "((64, 80), (48, 64))",
        "DATALOADER.DATASET_MAX_SIZES": "(96, 96)",
        "WANDB.DISABLE_WANDB": False,
        "WANDB.PROJECT": "boxes",
        "WANDB.VIS_PERIOD": 2,
    }
    command = TRAININGS["phase 2"].replace("--num-gpus 8 ", "") + " --skip-test"
    assert run(world, command, monkeypatch, *words(keys)) == 0
    calls = sys.modules.pop("wandb").calls
    (opened,) = [call for name, call in calls if name == "init"]
    assert (opened["project"], opened["name"]) == ("boxes", "decola")
    assert opened["config"]["WANDB.VIS_PERIOD"] == 2
    shown = {
        row["step"]: {key: value for key, value in row.items() if isinstance(value, Image.Image)}
        for name, row in calls
        if name == "log"
    }
    assert [step for step, pictures in shown.items() if pictures] == [2, 4, 6]
    kinds = [tuple(pictures) for pictures in shown.values() if pictures]
    assert set(kinds) <= {("box-predictions", "box-targets"), ("image-predictions", "image-targets")}
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) >= 1


FAKE_WANDB = """
calls = []
class Error(Exception):
    pass
class Run:
    id = "abc"
    def log(self, row):
        calls.append(("log", row))
    def define_metric(self, name, step_metric):
        pass
    def finish(self):
        calls.append(("finish", {}))
def Image(picture):
    return picture
def init(**options):
    calls.append(("init", options))
    return Run()
"""
