"""Every training command line of FIBER's document, by ``--dry-run`` on data folders that hold a picture or two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.modeling.build import build_detector
from tests.unit.coco_files import coco, write
from tests.unit.tiny_tokenizers import write_bpe
from tests.unit.training_files import mdetr, write_tsv
from tools import train_net

MIXED = "mdetr_annotations/final_mixed_train_no_coco.json"
FLICKR = "mdetr_annotations/final_flickr_separateGT_train.json"
PRETRAIN = "--config-file configs/pretrain/{} --skip-test --use-tensorboard --override_output_dir {{output}}"
FINETUNE = "--config-file configs/{} --skip-test"
COMMANDS = {
    "pretrain": PRETRAIN.format("mixed_nococo_flickr_objects365.yaml"),
    "pretrain refexp": PRETRAIN.format("mixed_nococo_flickr_objects365_refexpclean.yaml"),
    "coco": FINETUNE.format("e2e_dyhead_SwinT_B_FPN_coco_finetuning_fusion_backbone.yaml"),
    "lvis": FINETUNE.format("e2e_dyhead_SwinT_B_FPN_lvis_finetuning_fusion_backbone.yaml"),
    "refcoco": FINETUNE.format("refcoco.yaml"),
    "refcoco+": FINETUNE.format("refcocoplus.yaml"),
    "refcocog": FINETUNE.format("refcocog.yaml"),
}


def put(folder: Path, pictures: str, annotations: str, data: dict) -> None:
    made = write(folder / pictures, data)
    (folder / annotations).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(made, folder / annotations)


def one_box_each(data: dict) -> dict:
    """What referring expressions are scored on."""
    first = {row["image_id"]: row for row in reversed(data["annotations"])}
    return {**data, "annotations": list(first.values())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with DATASET and a tokenizer."""
    root = tmp_path_factory.mktemp("work")
    data = root / "DATASET"
    for split in ("train", "val"):
        put(data, f"coco/{split}2017", f"coco/annotations/instances_{split}2017.json", coco())
    shutil.copytree(data / "coco" / "train2017", data / "coco", dirs_exist_ok=True)
    (data / "coco/annotations/lvis_od_train.json").write_text(json.dumps(coco()))
    captions = mdetr()
    for image in captions["images"]:
        image["data_source"] = "vg"
    put(data, "gqa/images", MIXED, captions)
    shutil.copy(data / MIXED, data / MIXED.replace("no_coco", "no_coco_refexp_clean"))
    put(data, "flickr30k/flickr30k_images/train", FLICKR, mdetr())
    for name in ("refcoco", "refcoco+", "refcocog"):
        put(data, "coco/train2014", f"mdetr_annotations/finetune_{name}_train.json", mdetr())
        (data / f"mdetr_annotations/finetune_{name}_val.json").write_text(json.dumps(one_box_each(mdetr())))
    table = write_tsv(data / "Objects365")
    table.rename(table.with_name("objects365_train_vgoiv6.cas2000.yaml"))
    write_bpe(root / "tokenizer")
    return root


def write_weights(path: Path, config: str) -> None:
    """A checkpoint of every name and shape, whose tensors are one number each on disk."""
    with torch.device("meta"):
        state = build_detector(load_cfg(config)).state_dict()
    torch.save({"model": {name: torch.zeros((), dtype=t.dtype).expand(t.shape) for name, t in state.items()}}, path)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_runs_dry(
    folder: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = COMMANDS[name].format(output=tmp_path / "out").split()
    write_weights(folder / "start.pth", argv[argv.index("--config-file") + 1])
    monkeypatch.chdir(folder)
    given = [*argv, "MODEL.WEIGHT", "start.pth", "MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE", str(folder / "tokenizer")]
    assert cli.run(train_net.main, [*given, "OUTPUT_DIR", str(tmp_path / "o"), "--dry-run"]) == 0, (
        capsys.readouterr().err
    )
    told = capsys.readouterr().err
    assert "training data: " in told
    assert "start.pth" in told


@pytest.mark.parametrize("option", ["--local_rank=0", "--local-rank=0"])
def test_both_spellings_of_the_local_rank(option: str) -> None:
    args = train_net.parse([option, "--config-file", "x.yaml", "--resume", "MODEL.WEIGHT", "y.pth"])
    assert args.local_rank == 0
    assert args.opts == ["MODEL.WEIGHT", "y.pth"]


@pytest.mark.parametrize("argv", [["--num-gpus", "2", "--skip-test"], ["--num-gpus=2", "--skip-test"]])
def test_number_of_processes_is_not_passed_on(argv: list[str]) -> None:
    assert cli.without_option(argv, "--num-gpus") == ["--skip-test"]
