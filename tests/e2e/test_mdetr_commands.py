"""The commands of MDETR's instructions, as printed there but for the number of processes that a launcher starts."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.config import load_cfg
from tests.mdetr_place import Place, make_place, write_zeros
from tools import main as mdetr_main
from tools import run_with_submitit

pytestmark = pytest.mark.full

ZENODO = "https://zenodo.org/record/4721981/files"
LAUNCH = "python -m torch.distributed.launch --nproc_per_node={} --use_env main.py"
SUBMIT = "python run_with_submitit.py"
COMMANDS = {
    "pre-training, R101": f"{SUBMIT} --dataset_config configs/pretrain.json  --ngpus 8 --nodes 4 --ema",
    "pre-training, R101, one machine": f"{LAUNCH.format(8)} --dataset_config configs/pretrain.json --ema",
    "pre-training, ENB3": f"{SUBMIT} --dataset_config configs/pretrain.json  --ngpus 8 --nodes 4 --ema "
    "--backbone timm_tf_efficientnet_b3_ns --lr_backbone 5e-5",
    "pre-training, ENB3, one machine": f"{LAUNCH.format(8)} --dataset_config configs/pretrain.json --ema "
    "--backbone timm_tf_efficientnet_b3_ns --lr_backbone 5e-5",
    "phrasecut, scores": f"{LAUNCH.format(2)} --dataset_config configs/phrasecut.json --resume "
    f"{ZENODO}/phrasecut_resnet101_checkpoint.pth --ema --eval --mask_model smallconv --no_contrastive_align_loss "
    "--test",
    "phrasecut 1, R101": f"{SUBMIT} --dataset_config configs/phrasecut.json --epochs 10 --lr_drop 11 --load "
    f"{ZENODO}/pretrained_resnet101_checkpoint.pth --ema --ngpus 8 --nodes 4 --text_encoder_lr 1e-5 --lr 5e-5",
    "phrasecut 1, ENB3": f'{SUBMIT} --dataset_config configs/phrasecut.json --backbone "timm_tf_efficientnet_b3_ns" '
    "--epochs 10 --lr_drop 11  --ema  --ngpus 8 --nodes 4  --text_encoder_lr 1e-5  --lr_backbone 1e-5 --lr 5e-5  "
    f"--load {ZENODO}/pretrained_EB3_checkpoint.pth",
    "phrasecut 2, R101": f"{SUBMIT} --dataset_config configs/phrasecut.json --ngpus 8 --nodes 4  --frozen_weights "
    "detection_r101/checkpoint.pth --mask_model smallconv --no_aux_loss --epochs 35 --lr_drop 25",
    "phrasecut 2, ENB3": f"{SUBMIT} --dataset_config configs/phrasecut.json --ngpus 8 --nodes 4  --frozen_weights "
    "detection_enb3/checkpoint.pth --mask_model smallconv --no_aux_loss --epochs 35 --lr_drop 25  "
    '--backbone "timm_tf_efficientnet_b3_ns"',
}
TOLD = {
    "pre-training, R101": ("batches of 64 in an epoch", "SOLVER.MODEL_EMA 0.9998", "32 processes", "random weights"),
    "pre-training, R101, one machine": ("batches of 2 in an epoch", "flickr30k_val", "gqa_val", "refexp_all_val"),
    "pre-training, ENB3": ("SOLVER.BACKBONE_LR 5e-05", "timm_tf_efficientnet_b3_ns"),
    "pre-training, ENB3, one machine": ("SOLVER.BACKBONE_LR 5e-05", "40.0 epochs"),
    "phrasecut, scores": ("phrasecut_resnet101_checkpoint.pth", "the averaged (model_ema) weights", "phrasecut_test"),
    "phrasecut 1, R101": ("10.0 epochs", "pretrained_resnet101_checkpoint.pth", "tensors loaded, 0 of the model"),
    "phrasecut 1, ENB3": ("10.0 epochs", "pretrained_EB3_checkpoint.pth", "tensors loaded, 0 of the model"),
    "phrasecut 2, R101": ("35.0 epochs", "MODEL.MDETR.FROZEN_WEIGHTS: begins", "32 of the model begin anew"),
    "phrasecut 2, ENB3": ("35.0 epochs", "MODEL.MDETR.FROZEN_WEIGHTS: begins", "32 of the model begin anew"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = make_place(tmp_path_factory.mktemp("place"), count=24)  # enough for a batch of 64
    base = "configs/base/mdetr.yaml"
    for name, body in (("resnet101", "R-101-MDETR"), ("EB3", "timm_tf_efficientnet_b3_ns")):
        opts = ["MODEL.BACKBONE.CONV_BODY", body]
        write_zeros(made.folder / "MODEL" / f"pretrained_{name}_checkpoint.pth", load_cfg(base, opts=opts))
        folder = {"resnet101": "detection_r101", "EB3": "detection_enb3"}[name]
        write_zeros(made.folder / folder / "checkpoint.pth", load_cfg(base, opts=opts))
    masks = load_cfg(base, opts=["MODEL.META_ARCHITECTURE", "MDETR_SEGM"])
    write_zeros(made.folder / "MODEL" / "phrasecut_resnet101_checkpoint.pth", masks)
    return made


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_as_printed_are_in_order(
    name: str, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "timm" in COMMANDS[name]:
        pytest.importorskip("timm")
    place.enter(monkeypatch)
    words = shlex.split(COMMANDS[name])
    if words[1] == "-m":
        tool, words = mdetr_main.main, words[words.index("main.py") + 1 :]
    else:
        assert words[1] == "run_with_submitit.py"
        tool, words = run_with_submitit.main, words[2:]
    code = cli.run(tool, [*words, "--dry-run", "--strict-config"])
    told = capsys.readouterr()
    assert code == 0, told.err
    for part in TOLD[name]:
        assert part in told.out + told.err, told.err


def test_a_file_that_is_not_there(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place.enter(monkeypatch)
    words = ["--dataset_config", "configs/phrasecut.json", "--dry-run", "--load"]
    assert cli.run(mdetr_main.main, [*words, f"{ZENODO}/refcoco%2B_EB3_checkpoint.pth?download=1"]) == 2
    assert "`mrb models get mdetr-enb3-refcoco+` tries to download it" in capsys.readouterr().err
    assert cli.run(mdetr_main.main, [*words, "https://example.org/mdetr.pth"]) == 2
    assert "is no released model" in capsys.readouterr().err
