"""MDETR trained and scored on real pictures, narrow: pre-training, PhraseCut in its two steps, launchers, jobs."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint.resume import load_latest
from maskrcnn_benchmark.modeling.detectors.mdetr import Mdetr
from tests.e2e import slurm_cluster
from tests.golden.common import shared_path
from tests.mdetr_place import NARROW, SMALL, Place, make_place
from tests.training_runs import ROOT, environment, rows
from tools import main as mdetr_main

pytestmark = pytest.mark.full

STEPS = {
    **NARROW,
    **SMALL,
    "INPUT.MIN_SIZE_TRAIN": "(128,160)",
    "INPUT.MAX_SIZE_TRAIN": 256,
    "INPUT.MIN_SIZE_TEST": 128,
    "INPUT.MAX_SIZE_TEST": 224,
    "AUGMENT.CROP_FROM": "(144,)",
    "AUGMENT.CROP_SIZES": "(112,256)",
    "SOLVER.MAX_EPOCH": 0,
    "SOLVER.CHECKPOINT_EPOCH": 0,
    "SOLVER.CHECKPOINT_PERIOD": 50,
    "MODEL.MDETR.NUM_QUERIES": 20,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with JSON configs of the small real data."""
    root, folder = shared_path("data", "DATASET"), tmp_path_factory.mktemp("data")
    pictures = folder / "pictures"
    for split in ("train", "val"):
        (pictures / split).mkdir(parents=True)
    for file in (*(root / "coco" / "train2017").iterdir(), *(root / "coco" / "val2017").iterdir()):
        for place in (pictures, pictures / "train", pictures / "val"):
            (place / file.name).symlink_to(file)
    expressions = json.loads((root / "mdetr_annotations" / "finetune_refcocos_train.json").read_text())
    expressions["images"] = [{**row, "data_source": "coco"} for row in expressions["images"]]
    (folder / "final_mixed_train.json").write_text(json.dumps(expressions))
    val = (root / "mdetr_annotations" / "finetune_refcocos_val.json").read_text()
    (folder / "final_gqa_val.json").write_text(val)
    derived = root / "derived"
    pretrain = {
        "combine_datasets": ["flickr", "mixed"],
        "combine_datasets_val": ["flickr", "gqa", "refexp"],
        "coco_path": str(pictures),
        "vg_img_path": str(pictures),
        "flickr_img_path": str(pictures),
        "flickr_dataset_path": str(derived / "flickr30k_entities"),
        "flickr_ann_path": str(derived / "mdetr_annotations"),
        "refexp_ann_path": str(root / "mdetr_annotations"),
        "refexp_dataset_name": "refcocos",
        "gqa_ann_path": str(folder),
        "GT_type": "separate",
    }
    phrasecut = {
        "combine_datasets": ["phrasecut"],
        "combine_datasets_val": ["phrasecut"],
        "vg_img_path": str(pictures),
        "phrasecut_ann_path": str(derived / "mdetr_annotations"),
        "phrasecut_orig_ann_path": str(derived / "phrasecut"),
    }
    (folder / "pretrain.json").write_text(json.dumps(pretrain))
    few(root / "derived" / "mdetr_annotations", "final_flickr_separateGT_train", folder / "few")
    few(folder, "final_mixed_train", folder / "few")
    places = {"flickr_ann_path": str(folder / "few"), "gqa_ann_path": str(folder / "few")}
    (folder / "few.json").write_text(json.dumps({**pretrain, **places, "combine_datasets_val": ["refexp"]}))
    (folder / "phrasecut.json").write_text(json.dumps(phrasecut))
    return folder


def few(source: Path, name: str, folder: Path, count: int = 8) -> None:
    """The first captions of a file."""
    tree: dict[str, Any] = json.loads((source / f"{name}.json").read_text())
    tree["images"] = sorted(tree["images"], key=lambda row: row["id"])[:count]
    ids = {row["id"] for row in tree["images"]}
    tree["annotations"] = [row for row in tree["annotations"] if row["image_id"] in ids]
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(tree))


@pytest.fixture(autouse=True)
def tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MB_TOKENIZERS", str(shared_path("tokenizers")))


def run(config: Path, command: str, output: Path, **changed: Any) -> int:
    keys = {**STEPS, **{key.replace("__", "."): value for key, value in changed.items()}}
    opts = [str(part) for pair in keys.items() for part in pair]
    words = ["--dataset_config", str(config), *shlex.split(command), "--output_dir", str(output)]
    return cli.run(mdetr_main.main, [*words, *opts])


def metrics(folder: Path, name: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((next(folder.rglob(f"{name}/results.json"))).read_text())["metrics"]
    return found


def test_pre_training_learns(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    encode = Mdetr.encode_image

    def counted(self: Mdetr, images: Any) -> Any:
        seen.extend(meta.file for meta in images.metas)
        return encode(self, images)

    monkeypatch.setattr(Mdetr, "encode_image", counted)
    rates = "--ema --ema_decay 0.9 --lr 3e-4 --lr_backbone 3e-4 --text_encoder_lr 3e-4 --batch_size 4"
    assert run(data / "few.json", rates, tmp_path, SOLVER__MAX_ITER=52, TEST__DURING_TRAINING=False) == 0
    losses = [row["loss"] for row in rows(tmp_path)]  # an epoch has four steps
    assert mean(losses[-8:]) < 0.8 * mean(losses[:8])
    seen.clear()
    asked = f"--eval --ema --resume {tmp_path / 'model_final.pth'}"
    assert run(data / "pretrain.json", asked, tmp_path / "scores") == 0
    for name in ("flickr30k_val", "gqa_val", "refcocos_val"):
        numbers = metrics(tmp_path / "scores", name)
        assert 0 <= numbers["boxes/AP50" if name != "gqa_val" else "AP50"] <= 1
    assert 0 < metrics(tmp_path / "scores", "flickr30k_val")["Recall@1_all"] <= 1
    assert "refcocos/P@1" in metrics(tmp_path / "scores", "refcocos_val")
    captions = json.loads(shared_path("data", "DATASET", "mdetr_annotations", "finetune_refcocos_val.json").read_text())
    flickr = shared_path("data", "DATASET", "derived", "mdetr_annotations", "final_flickr_separateGT_val.json")
    pictures = [
        {row["file_name"] for row in tree["images"]} for tree in (captions, captions, json.loads(flickr.read_text()))
    ]
    assert len(seen) == sum(map(len, pictures)), "each picture is encoded once, whatever number of captions it has"


def test_pre_training_on_all_of_the_data(data: Path, tmp_path: Path) -> None:
    rates = "--ema --lr 1e-3 --lr_backbone 3e-4 --text_encoder_lr 3e-4 --batch_size 8"
    assert run(data / "pretrain.json", rates, tmp_path, SOLVER__MAX_ITER=50, TEST__DURING_TRAINING=False) == 0
    losses = [row["loss"] for row in rows(tmp_path)]
    assert len(losses) == 50
    assert all(map(math.isfinite, losses))
    assert mean(losses[-10:]) < 0.9 * mean(losses[:10])


def test_phrasecut_in_two_steps(data: Path, tmp_path: Path) -> None:
    config, first, second = data / "phrasecut.json", tmp_path / "detection", tmp_path / "masks"
    step = "--epochs 10 --lr_drop 11 --ema --text_encoder_lr 1e-5 --lr 5e-4"
    assert run(config, step, first, SOLVER__MAX_ITER=30, TEST__DURING_TRAINING=False) == 0
    step = f"--frozen_weights {first / 'checkpoint.pth'} --mask_model smallconv --no_aux_loss --epochs 35 --lr_drop 25"
    assert run(config, step, second, SOLVER__MAX_ITER=30, MODEL__MDETR__MASK_THRESH=0.2) == 0
    for folder in (first, second):
        losses = [row["loss"] for row in rows(folder)]
        assert len(losses) == 30
        assert all(map(math.isfinite, losses))
    masks = [row["loss_dice"] for row in rows(second)]
    assert mean(masks[-10:]) < mean(masks[:10])
    found = metrics(second, "phrasecut_miniv")
    assert 0 <= found["mask_mean_iou"] <= 1
    asked = (
        f"--resume {second / 'model_final.pth'} --ema --eval --mask_model smallconv --no_contrastive_align_loss --test"
    )
    assert run(config, asked, tmp_path / "scores", MODEL__MDETR__MASK_THRESH=0.2) == 0
    found = metrics(tmp_path / "scores", "phrasecut_test")
    assert {
        "mask_mean_iou",
        "mask_cum_iou",
        "mask_Pr@0.5",
        "mask_Pr@0.7",
        "mask_Pr@0.9",
        "box_mean_iou",
    } <= found.keys()


# --- other ways to start it ---


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), count=2)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What finds a Slurm of this machine alone."""
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    try:
        with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as found:
            yield found
    except TimeoutError as error:  # a container without what its daemons need
        pytest.skip(str(error))


def started(
    place: Place, words: list[str], variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, in the folder of the place."""
    kept = {key: value for key, value in os.environ.items() if key not in ("MASTER_ADDR", "MASTER_PORT", "DATASET")}
    env = (
        kept
        | dict(variables or {})
        | environment(MB_TOKENIZERS=str(place.tokenizers), PET_STANDALONE="1", PET_LOCAL_ADDR="127.0.0.1")
    )
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *words], cwd=place.folder, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_launcher_of_the_instructions(place: Place, tmp_path: Path) -> None:
    launcher = "-m torch.distributed.launch --nproc_per_node=2 --use_env"
    words = f"{launcher} {ROOT}/tools/main.py --dataset_config configs/pretrain.json --ema --output_dir {tmp_path}"
    steps = {"SOLVER.MAX_EPOCH": 0, "SOLVER.CHECKPOINT_EPOCH": 0, "SOLVER.MAX_ITER": 2}
    done = started(place, [*shlex.split(words), *place.opts(steps)])
    assert done.stdout.startswith("2 steps")
    state = load_latest(tmp_path)
    assert state is not None
    assert (state["iteration"], len(state["rng"])) == (2, 2), "the state of each process is in the checkpoint"
    assert done.stderr.count("batches of 4 in an epoch") == 1, "two pictures for each process; one of them talks"


def test_a_job_of_this_machine(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Slurm it is the machine that the command is given on."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    assert shutil.which("srun") is None
    run_job(place, tmp_path)


def test_a_job_of_slurm(place: Place, tmp_path: Path, slurm: dict[str, str]) -> None:
    pytest.importorskip("submitit")
    run_job(place, tmp_path, slurm)
    told = slurm_cluster.ended_job(slurm)
    assert "JobName=detectransformer" in told
    assert re.findall(r"(?:JobState|ExitCode)=\S+", told) == ["JobState=COMPLETED", "ExitCode=0:0"], told
    assert "NumTasks=2 CPUs/Task=10" in told


def run_job(place: Place, folder: Path, variables: Mapping[str, str] | None = None) -> None:
    words = f"{ROOT}/tools/run_with_submitit.py --dataset_config configs/phrasecut.json --ngpus 2 --nodes 1 --wait"
    steps = {"SOLVER.MAX_EPOCH": 0, "SOLVER.CHECKPOINT_EPOCH": 0, "SOLVER.MAX_ITER": 2}
    where = ["--device", "cpu", "--job_dir", str(folder / "%j")]
    done = started(place, [*shlex.split(words), *where, *place.opts(steps)], variables)
    found = re.search(r"^job (\w+)$", done.stdout, re.MULTILINE)  # submitit warns there of missing accounts
    assert found is not None, done.stdout + done.stderr
    state = load_latest(folder / found[1])
    assert state is not None
    assert (state["iteration"], len(state["rng"])) == (2, 2)
