"""What the options of MDETR's main.py come to in config keys."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from maskrcnn_benchmark.commands.mdetr import Job, plan
from maskrcnn_benchmark.commands.mdetr_flags import add_options, read
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.errors import ConfigError, UserError, WeightsError

PHRASECUT = {"combine_datasets": ["phrasecut"], "combine_datasets_val": ["phrasecut"]}


def job(folder: Path, *words: str, processes: int = 1, **tree: object) -> Job:
    """The options ``words`` with a JSON file of ``tree``."""
    path = folder / "data.json"
    path.write_text(json.dumps(tree or PHRASECUT))
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_options(parser)
    return plan(read(parser.parse_intermixed_args(["--dataset_config", str(path), *words])), processes)


def test_options_become_keys(tmp_path: Path) -> None:
    words = "--lr 3e-4 --weight_decay 1e-3 --epochs 7 --batch_size 4 --no_aux_loss --dropout 0.2 --text_encoder_lr 1e-6"
    cfg = load_cfg("configs/base/mdetr.yaml", opts=job(tmp_path, *words.split(), "--ema", processes=8).opts)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.LANG_LR, cfg.SOLVER.BACKBONE_LR) == (3e-4, 1e-6, 1e-5)
    assert (cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_BIAS) == (1e-3, 1e-3)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.TEST.IMS_PER_BATCH) == (32, 4)
    assert (cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.MODEL_EMA) == (7, 0.9998)
    assert (cfg.MODEL.MDETR.AUX_LOSS, cfg.MODEL.MDETR.DROPOUT) == (False, 0.2)
    assert cfg.DATASETS.TRAIN == ("phrasecut_train",)
    assert cfg.DATASETS.TEST == ("phrasecut_miniv",)


def test_epochs_of_a_part_of_the_data(tmp_path: Path) -> None:
    assert job(tmp_path, "--epoch_chunks", "20").keys["DATALOADER.EPOCH_CHUNKS"] == 20
    assert "DATALOADER.EPOCH_CHUNKS" not in job(tmp_path, "--epoch_chunks", "-1").keys


def test_the_defaults_are_those_of_the_original(tmp_path: Path) -> None:
    solver = load_cfg("configs/base/mdetr.yaml", opts=job(tmp_path).opts).SOLVER
    assert (solver.BASE_LR, solver.BACKBONE_LR, solver.LANG_LR, solver.WEIGHT_DECAY) == (1e-4, 1e-5, 5e-5, 1e-4)
    assert (solver.MAX_EPOCH, solver.MDETR_LR_DROP, solver.IMS_PER_BATCH, solver.MODEL_EMA) == (40, 35, 2, 0)
    assert (solver.CLIP_GRADIENTS.ENABLED, solver.CLIP_GRADIENTS.CLIP_VALUE, solver.SEED) == (True, 0.1, 42)
    assert (solver.MDETR_SCHEDULE, solver.WARMUP_FRACTION, solver.OPTIMIZER) == ("linear_with_warmup", 0.01, "ADAMW")


def test_the_command_line_wins_over_the_file_and_says_so(tmp_path: Path) -> None:
    found = job(tmp_path, "--epochs", "9", **PHRASECUT, epochs=5, lr_drop=3)
    assert (found.keys["SOLVER.MAX_EPOCH"], found.keys["SOLVER.MDETR_LR_DROP"]) == (9, 3)
    assert any("--epochs 9 counts, not 5 of" in note for note in found.notes)
    assert job(tmp_path, "SOLVER.MAX_EPOCH", "2", **PHRASECUT, epochs=5).opts[-2:] == ["SOLVER.MAX_EPOCH", "2"]


def test_a_backbone_without_a_rate(tmp_path: Path) -> None:
    assert job(tmp_path, "--lr_backbone", "0").keys["MODEL.BACKBONE.FREEZE"] is True
    timm = job(tmp_path, "--lr_backbone", "0", "--backbone", "timm_resnet18").keys
    assert "MODEL.BACKBONE.FREEZE" not in timm
    assert timm["SOLVER.BACKBONE_LR"] == 0


def test_the_test_split_is_not_trained_on(tmp_path: Path) -> None:
    found = job(tmp_path, "--test")
    assert (found.keys["DATASETS.TRAIN"], found.keys["DATASETS.TEST"]) == (
        "('phrasecut_train',)",
        "('phrasecut_test',)",
    )
    assert any("training is on the training split" in note for note in found.notes)


def test_paths_of_the_file(tmp_path: Path) -> None:
    for name in ("pictures/train", "pictures/val", "coco"):
        (tmp_path / name).mkdir(parents=True)
    tree = {
        "combine_datasets": ["flickr", "mixed"],
        "combine_datasets_val": ["flickr", "refexp"],
        "flickr_img_path": str(tmp_path / "pictures"),
        "flickr_dataset_path": "entities/",
        "flickr_ann_path": "ann/",
        "coco_path": str(tmp_path / "coco"),
        "refexp_dataset_name": "refcoco+",
        "GT_type": "merged",
    }
    keys = job(tmp_path, "--test", "--test_type", "testB", **tree).keys
    register = "DATASETS.REGISTER."
    assert keys["DATASETS.TRAIN"] == "('flickr30k_merged_train', 'mixed_train')"
    assert keys["DATASETS.TEST"] == "('flickr30k_merged_test', 'refcoco+_testB')"
    assert keys[f"{register}flickr30k_merged_train.ann_file"] == "ann/final_flickr_mergedGT_train.json"
    assert keys[f"{register}flickr30k_merged_test.img_dir"] == str(tmp_path / "pictures" / "val"), "as in the original"
    assert keys[f"{register}flickr30k_merged_test.entities"] == "entities"
    assert keys[f"{register}refcoco+_testB.ann_file"] == "mdetr_annotations/finetune_refcoco+_testB.json"
    assert keys[f"{register}mixed_train.img_dir"] == str(tmp_path / "coco"), "itself, where it has no train2014"
    assert keys["DATASETS.FLICKR_GT_TYPE"] == "merged"


@pytest.mark.parametrize(
    ("words", "tree", "told"),
    [
        (["--do_qa"], PHRASECUT, "--do_qa: this version has no heads for answers"),
        ([], {**PHRASECUT, "do_qa": True}, r"--do_qa \(.*data.json\)"),
        ([], {**PHRASECUT, "epohcs": 5}, "'epohcs' is no option of MDETR"),
        ([], {**PHRASECUT, "epochs": "5"}, "epochs = '5' is no int"),
        ([], {"combine_datasets": ["lvis"]}, "does not read MDETR's data set 'lvis'"),
        (["--backbone", "vgg"], PHRASECUT, "--backbone 'vgg' is not known"),
    ],
)
def test_what_is_not_there(tmp_path: Path, words: list[str], tree: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        job(tmp_path, *words, **tree)


def test_what_does_nothing_is_told(tmp_path: Path) -> None:
    assert any("--run_name has no effect" in note for note in job(tmp_path, "--run_name", "x").notes)
    assert job(tmp_path, **PHRASECUT, do_qa=0, ema=False).keys.get("SOLVER.MODEL_EMA") is None


def test_released_files_by_their_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", str(tmp_path))
    address = "https://zenodo.org/record/4721981/files/refcoco%2B_EB3_checkpoint.pth?download=1"
    with pytest.raises(WeightsError, match=r"mrb models get mdetr-enb3-refcoco\+"):
        job(tmp_path, "--load", address)
    (tmp_path / "refcoco+_EB3_checkpoint.pth").write_bytes(b"")
    assert job(tmp_path, "--load", address).keys["MODEL.WEIGHT"] == str(tmp_path / "refcoco+_EB3_checkpoint.pth")
    with pytest.raises(WeightsError, match="is no released model"):
        job(tmp_path, "--load", "https://example.org/a.pth")


def test_the_file_has_to_be_one(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    (tmp_path / "a.json").write_text("[1]")
    for name, told in (("none.json", "cannot be read"), ("a.json", "holds a list")):
        with pytest.raises(ConfigError, match=told):
            read(parser.parse_args(["--dataset_config", str(tmp_path / name)]))
