"""Bodies and text encoder of MDETR against torchvision, timm and transformers; its checkpoint files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path, PosixPath
from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn_benchmark.checkpoint import zoo
from maskrcnn_benchmark.checkpoint.io import load_weights, read_state_dict
from maskrcnn_benchmark.checkpoint.mdetr import start_body, start_text
from maskrcnn_benchmark.checkpoint.start import start_from
from maskrcnn_benchmark.commands.mdetr import BODIES
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.engine.freeze import freeze
from maskrcnn_benchmark.errors import ConfigError, WeightsError
from maskrcnn_benchmark.modeling.backbone.build import build_mdetr_body
from maskrcnn_benchmark.modeling.backbone.timm_body import FrozenBatchNormAct2d, build_timm_body
from maskrcnn_benchmark.text.encoder import PooledTextEncoder
from tests.unit.test_mdetr import NARROW, build
from tests.unit.test_text_encoder import ROBERTA, spread, texts


def filled(model: nn.Module) -> nn.Module:
    """Statistics of normalisation that matter."""
    generator = torch.Generator().manual_seed(2)
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.5)
    return model.eval()


@pytest.mark.parametrize(("layers", "dilated"), [(18, False), (50, False), (50, True)])
@torch.no_grad()
def test_resnet_is_that_of_torchvision(layers: int, dilated: bool) -> None:
    torchvision = pytest.importorskip("torchvision")
    options = {"replace_stride_with_dilation": [False, False, True]} if dilated else {}
    theirs = filled(getattr(torchvision.models, f"resnet{layers}")(weights=None, **options))
    name = f"R-{layers}-MDETR"
    ours = build_mdetr_body(load_cfg(opts=["MODEL.BACKBONE.CONV_BODY", name, "MODEL.MDETR.DILATION", str(dilated)]))
    state = {n: v for n, v in theirs.state_dict().items() if "num_batches" not in n and not n.startswith("fc.")}
    ours.load_state_dict(state)
    x = torch.randn(1, 3, 65, 97)
    found = ours(x)
    for name in ("conv1", "bn1", "relu", "maxpool"):
        x = theirs.get_submodule(name)(x)
    for i, value in enumerate(found, start=1):
        x = theirs.get_submodule(f"layer{i}")(x)
        torch.testing.assert_close(value, x, rtol=1e-4, atol=1e-4)
    assert [value.shape[1] for value in found] == ours.channels
    trained = {name.split(".")[0] for name, value in ours.named_parameters() if value.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}


@pytest.mark.filterwarnings("ignore:Mapping deprecated model name")  # of the other one here
@pytest.mark.parametrize(
    ("name", "dilated"), [("tf_efficientnet_b0_ns", False), ("tf_efficientnet_b0_ns", True), ("resnet18", False)]
)
@torch.no_grad()
def test_timm_body_is_timm_with_frozen_norms(name: str, dilated: bool) -> None:
    """Also the norms inside of numbered children, such as those of shortcuts."""
    timm = pytest.importorskip("timm")
    options = {"output_stride": 16} if dilated else {}
    theirs = filled(timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4), **options))
    chosen = ["MODEL.BACKBONE.CONV_BODY", f"timm_{name}", "MODEL.MDETR.DILATION", str(dilated)]
    ours = build_mdetr_body(load_cfg(opts=chosen))
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5
    ours.load_state_dict({n: v for n, v in theirs.state_dict().items() if "num_batches" not in n})
    ours.train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())
    assert any(isinstance(module, FrozenBatchNormAct2d) for module in ours.modules())
    assert all(value.requires_grad for value in ours.parameters())
    x = torch.randn(2, 3, 65, 97)
    if name != "resnet18":
        ours.eval()  # it has dropped paths in training
    found = ours(x)
    for value, expected in zip(found, theirs(x), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    assert (found[-1].shape[2:] == found[-2].shape[2:]) is dilated
    assert ours.channels == [value.shape[1] for value in theirs(x)]


BODY_OF_CONFIG = {
    "pretrain_enb3": ("timm_tf_efficientnet_b3_ns", "EB3", (181, 10_019_112)),
    "phrasecut_detection_enb3": ("timm_tf_efficientnet_b3_ns", "EB3", (181, 10_019_112)),
    "phrasecut_masks_enb3": ("timm_tf_efficientnet_b3_ns", "EB3", (181, 10_019_112)),
    "pretrain_enb5": ("timm_tf_efficientnet_b5_ns", "EB5", (271, 27_119_472)),
}
"""Config -> its body, what released files call that, and its tensors and numbers in the released networks."""


@pytest.mark.parametrize("name", BODY_OF_CONFIG)
def test_configs_have_the_body_of_their_files(name: str) -> None:
    pytest.importorskip("timm")
    body, short, counts = BODY_OF_CONFIG[name]
    config = f"configs/mdetr/{name}.yaml"
    cfg = load_cfg(config)
    found = (cfg.MODEL.BACKBONE.CONV_BODY, cfg.MODEL.MDETR.BACKBONE_WEIGHT)
    assert found == (body, BODIES[body] if name.startswith("pretrain") else "")
    files = [cfg.MODEL.WEIGHT, *(model.file for model in zoo.released().values() if model.config == config)]
    assert any(files)
    assert all(f"_{short}_" in file for file in files if file)
    with torch.device("meta"):
        values = list(build_mdetr_body(cfg).parameters())
    assert (len(values), sum(value.numel() for value in values)) == counts


def test_timm_body_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"'timm_no_such_net' \(here\): timm has no such network"):
        build_timm_body("no_such_net", "here")
    with pytest.raises(ConfigError, match=r"'timm_vit_tiny_patch16_224' .* no map at stride 4, 8, 32"):
        build_timm_body("vit_tiny_patch16_224", "here")
    with pytest.raises(ConfigError, match=r"'timm_swin_tiny_patch4_window7_224' .* channels last"):
        build_timm_body("swin_tiny_patch4_window7_224", "here")
    with pytest.raises(ConfigError, match=r"no such network with maps of features, dilated .*output_stride"):
        build_timm_body("efficientvit_b0", "here", dilated=True)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"needs timm, which is not installed: pip install 'timm>=1.0'"):
        build_timm_body("resnet18", "here")


@torch.no_grad()
def test_pooled_text_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = ROBERTA
    sizes = transformers.RobertaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate,
        max_position_embeddings=config.max_positions,
        type_vocab_size=config.type_vocab,
        layer_norm_eps=config.eps,
        pad_token_id=config.pad_id,
    )
    theirs = spread(transformers.RobertaModel(sizes).eval())
    ours = PooledTextEncoder(config).eval()
    state = {name: value for name, value in theirs.state_dict().items() if "position_ids" not in name}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected
    assert missing == ["embeddings.position_ids"]
    ids, mask = texts(config)
    expected = theirs(ids, attention_mask=mask)
    hidden = ours(ids, mask)
    torch.testing.assert_close(hidden[mask.bool()], expected.last_hidden_state[mask.bool()], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.pool(hidden), expected.pooler_output, rtol=1e-4, atol=1e-4)


def published(model: nn.Module, path: Path, ema: bool) -> Path:
    """A file as MDETR's training writes it; its averages are 1 above its weights."""
    state = model.state_dict()
    average = {name: value + 1 if value.is_floating_point() else value - 1 for name, value in state.items()}
    args = argparse.Namespace(lr=1e-4, output_dir=PosixPath("runs/1"), mask_model="none")
    data: dict[str, Any] = {"model": state, "model_ema": average if ema else None, "epoch": 3, "args": args}
    torch.save({**data, "optimizer": {"state": {}, "param_groups": []}}, path)
    return path


def test_a_published_file(tmp_path: Path) -> None:
    model = build()
    path = published(model, tmp_path / "both.pth", ema=True)
    assert torch.equal(read_state_dict(path)["input_proj.bias"], model.state_dict()["input_proj.bias"])
    other = build(MDETR__DROPOUT=0.0)
    load_weights(other, path, ema=True)  # position_ids that a running average has rounded do not count
    assert torch.equal(other.state_dict()["input_proj.bias"], model.state_dict()["input_proj.bias"] + 1)
    path = published(model, tmp_path / "plain.pth", ema=False)
    assert torch.equal(read_state_dict(path, ema="preferred")["input_proj.bias"], model.state_dict()["input_proj.bias"])
    with pytest.raises(WeightsError, match="holds no averaged weights"):
        read_state_dict(path, ema=True)


def test_a_detector_starts_a_mask_head_and_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    detector, segm = build(), build(META_ARCHITECTURE="MDETR_SEGM")
    report = start_from(segm, published(detector, tmp_path / "detector.pth", ema=True))
    assert {name.split(".")[0] for name in report.left_alone} == {"bbox_attention", "mask_head"}
    assert torch.equal(segm.state_dict()["detr.input_proj.bias"], detector.state_dict()["input_proj.bias"] + 1)
    assert "no place for 4 tensors, such as detr.contrastive_align_projection" in caplog.text
    head = detector.state_dict()["contrastive_align_projection_text.bias"].clone()
    report = start_from(detector, published(segm, tmp_path / "segm.pth", ema=False))
    assert all("contrastive_align" in name for name in report.left_alone)
    assert torch.equal(detector.state_dict()["contrastive_align_projection_text.bias"], head)
    smaller = build(MDETR__NUM_QUERIES=5)
    with pytest.raises(WeightsError, match=r"1 different \(query_embed.weight"):
        start_from(smaller, tmp_path / "segm.pth")


def test_a_new_detector_starts_from_a_classifier_and_a_language_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    detector = build()
    classifier = filled(pytest.importorskip("torchvision").models.resnet18())
    torch.save(classifier.state_dict(), tmp_path / "resnet18.pth")
    start_body(detector, tmp_path / "resnet18.pth")
    own = detector.state_dict()
    assert torch.equal(own["backbone.0.body.layer4.1.conv2.weight"], classifier.state_dict()["layer4.1.conv2.weight"])
    assert torch.equal(own["backbone.0.body.bn1.running_var"], classifier.state_dict()["bn1.running_var"])
    assert "0 begin anew, 22 of the file have no place there" in caplog.text, "fc, and counters of its norms"
    text = {f"roberta.{name}": value + 1 for name, value in detector.transformer.text_encoder.state_dict().items()}
    whole = {name: value for name, value in text.items() if "pooler" not in name} | {"lm_head.bias": torch.zeros(40)}
    torch.save(whole, tmp_path / "roberta.bin")
    segm = build(META_ARCHITECTURE="MDETR_SEGM")
    report = start_text(segm, tmp_path / "roberta.bin")
    assert {name.split(".")[3] for name in report.left_alone} == {"pooler"}
    word = "embeddings.word_embeddings.weight"
    assert torch.equal(segm.state_dict()[f"detr.transformer.text_encoder.{word}"], text[f"roberta.{word}"])
    with pytest.raises(WeightsError, match=r"does not fit backbone.0.body of the model: .* missing"):
        start_body(detector, tmp_path / "roberta.bin")


def test_a_frozen_text_encoder_keeps_its_dropout() -> None:
    keys = {**NARROW, "MODEL.LANGUAGE_BACKBONE.FREEZE": True, "MODEL.BACKBONE.FREEZE": True}
    cfg = load_cfg(opts=[str(part) for pair in keys.items() for part in pair])
    detector = build()
    freeze(cfg, detector)
    detector.train()
    text = detector.get_submodule("transformer.text_encoder")
    assert text.training
    assert not any(value.requires_grad for value in text.parameters())
    assert not any(value.requires_grad for value in detector.get_submodule("backbone.0.body").parameters())
    assert detector.get_submodule("transformer.resizer.fc").weight.requires_grad
