"""Weights that Faster R-CNN and RetinaNet begin with: those of classifiers, and of detectors of other classes."""

from __future__ import annotations

import io
import logging
import pickle
import pickletools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskrcnn_benchmark.checkpoint.caffe2 import torch_name
from maskrcnn_benchmark.checkpoint.io import Report, find_weights, load_weights, read_state_dict
from maskrcnn_benchmark.checkpoint.rules import FASTER_RCNN
from maskrcnn_benchmark.checkpoint.start import start_from
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.errors import WeightsError
from maskrcnn_benchmark.modeling.build import build_detector
from tests.narrow_rcnn import CONFIG, NARROW

BODY = "backbone.body."


def build(config: str = CONFIG, **keys: object) -> nn.Module:
    changed = {**NARROW, **{key.replace("__", "."): value for key, value in keys.items()}}
    return build_detector(load_cfg(config, opts=[str(part) for pair in changed.items() for part in pair]))


def begin(model: nn.Module, path: Path, caplog: pytest.LogCaptureFixture) -> Report:
    logging.getLogger("maskrcnn_benchmark").propagate = True
    with caplog.at_level(logging.INFO):
        return start_from(model, path)


def classifier(model: nn.Module) -> dict[str, Tensor]:
    """What torchvision would have saved: the body under its own names, a last layer, and counters."""
    state = {n.removeprefix(BODY): torch.rand_like(v) for n, v in model.state_dict().items() if n.startswith(BODY)}
    counters = {n.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for n in state if "running_mean" in n}
    return {**state, **counters, "fc.weight": torch.zeros(1000, 256), "fc.bias": torch.zeros(1000)}


def test_torchvision_classifier_gives_the_body(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build()
    state = classifier(model)
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "r50.old_format.pt")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = begin(model, tmp_path / "r50.old_format.pt", caplog)
    after = model.state_dict()
    body = [name for name in after if name.startswith(BODY)]
    assert sorted(report.loaded) == sorted(body)
    assert (len(after), len(report.loaded)) == (300, 265)
    assert all(torch.equal(after[name], state[name.removeprefix(BODY)]) for name in body)
    assert all(torch.equal(after[name], before[name]) for name in after if name not in body)
    assert "265 of 300 tensors loaded: backbone.body 265" in caplog.text
    assert "55 of the file have no place: " in caplog.text
    assert "35 keep their first values: backbone.fpn 16, rpn.head 6, rpn.anchor_generator 5" in caplog.text


def blobs(model: nn.Module) -> dict[str, np.ndarray]:
    """What Caffe2 would have saved of a model's body."""
    ends = {"weight": "w", "bias": "b"}
    branch = {"conv1": "2a", "conv2": "2b", "conv3": "2c", "bn1": "2a_bn", "bn2": "2b_bn", "bn3": "2c_bn"}
    out = {}
    for name, value in model.state_dict().items():
        parts = name.removeprefix(BODY).split(".")
        if not name.startswith(BODY) or parts[-1] not in ends:
            continue
        norm = "bn" in name or "downsample.1" in name
        end = {"weight": "s", "bias": "b"}[parts[-1]] if norm else "w"
        if parts[0].startswith("layer"):
            which = {"0": "1", "1": "1_bn"}[parts[3]] if parts[2] == "downsample" else branch[parts[2]]
            blob = f"res{int(parts[0][5:]) + 1}_{parts[1]}_branch{which}_{end}"
        else:
            blob = "conv1_w" if parts[-2] == "conv1" else f"res_conv1_bn_{end}"
        out[blob] = np.random.default_rng(len(out)).random(tuple(value.shape), dtype=np.float32)
    return {**out, "conv1_w_momentum": np.zeros(3, np.float32), "pred_w": np.zeros((1000, 8), np.float32)}


class Python2(pickle._Pickler):
    """Writes text and bytes as Python 2 did: strings, of no encoding."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def _string(self, text: str | bytes) -> None:
        data = text.encode("latin1") if isinstance(text, str) else text
        head = pickle.SHORT_BINSTRING + bytes([len(data)]) if len(data) < 256 else None
        self.write((head or pickle.BINSTRING + len(data).to_bytes(4, "little")) + data)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = _string


def as_pickle(data: object, how: int | str) -> bytes:
    if how != "python 2":
        return pickle.dumps(data, protocol=int(how))
    stream = io.BytesIO()
    Python2(stream, 2).dump(data)
    assert any(operation.name == "BINSTRING" for operation, _, _ in pickletools.genops(stream.getvalue()))
    return stream.getvalue()


@pytest.mark.parametrize("how", [2, 4, 5, "python 2"])
def test_caffe2_classifier_gives_the_body(how: int | str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build()
    given = blobs(model)
    folder = tmp_path / "ImageNetPretrained" / "MSRA"
    folder.mkdir(parents=True)
    (folder / "R-50.pkl").write_bytes(as_pickle({"blobs": given, "cfg": "text"} if how == 4 else given, how))
    report = begin(model, folder / "R-50.pkl", caplog)
    after = model.state_dict()
    assert len(report.loaded) == 53 * 3, "weights of the convolutions, scales and biases; no statistics"
    assert report.unexpected == ("fc1000.weight",)
    stem, inner = after[f"{BODY}conv1.weight"], after[f"{BODY}layer3.5.bn2.weight"]
    assert torch.equal(stem, torch.from_numpy(given["conv1_w"]))
    assert torch.equal(inner, torch.from_numpy(given["res4_5_branch2b_bn_s"]))
    assert after[f"{BODY}bn1.running_var"].eq(1).all()


def test_names_of_the_model_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", str(tmp_path))
    with pytest.raises(WeightsError, match=r"R-50\.pkl.* `mrb models` lists where it can be had"):
        find_weights("catalog://ImageNetPretrained/MSRA/R-50")
    for place in ("R-50.pkl", "ImageNetPretrained/MSRA/R-50.pkl"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(b"")
        assert find_weights("catalog://ImageNetPretrained/MSRA/R-50") == tmp_path / place


def test_a_home_that_is_not_there_is_no_crash() -> None:
    with pytest.raises(WeightsError, match=r"no weights called '~output/r101\.pt'"):
        find_weights("~output/r101.pt")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "R-50.pkl").write_bytes(b"\x80\x02}U\x07conv1_wcos\nsystem\nU\x04true\x85Rs.")
    with pytest.raises(WeightsError, match=r"refused, because reading it would run os\.system"):
        read_state_dict(tmp_path / "R-50.pkl")


@pytest.mark.parametrize(
    ("blob", "name"),
    [
        ("res4_22_branch2a_w", "layer3.22.conv1.weight"),
        ("res2_0_branch1_bn_b", "layer1.0.downsample.1.bias"),
        ("fpn_inner_res4_22_sum_lateral_w", "fpn_inner3.weight"),
        ("fpn_res4_22_sum_b", "fpn_layer3.bias"),
        ("lr", "lr"),
    ],
)
def test_blob_names(blob: str, name: str) -> None:
    assert torch_name(blob) == name


def released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of maskrcnn-benchmark, which keep the stem apart."""
    stems = {f"{BODY}{part}.": f"{BODY}stem.{part}." for part in ("conv1", "bn1")}
    out = {}
    for name, value in state.items():
        old = next((old for old in stems if name.startswith(old)), "")
        out[stems[old] + name[len(old) :] if old else name] = value
    return out


def checkpoint(model: nn.Module, path: Path, by_released_names: bool = True) -> Path:
    state = {n: v if "cell_anchors" in n else torch.rand_like(v) for n, v in model.state_dict().items()}
    torch.save({"model": released(state) if by_released_names else state, "iteration": 20018, "optimizer": {}}, path)
    return path


@pytest.mark.parametrize("classes", [1001, NARROW["MODEL.ROI_BOX_HEAD.NUM_CLASSES"]])
@pytest.mark.parametrize("agnostic", [False, True])
def test_transfer_takes_all_but_the_predictor(
    classes: int, agnostic: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dap = build(MODEL__ROI_BOX_HEAD__NUM_CLASSES=classes, MODEL__CLS_AGNOSTIC_BBOX_REG=agnostic)
    path = checkpoint(dap, tmp_path / "model_final.pth")
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = begin(model, path, caplog)
    predictor = {name for name in before if "roi_heads.box.predictor" in name}
    assert set(report.reshaped) == predictor, "dropped, also where the shapes agree"
    assert set(report.loaded) == set(before) - predictor
    after = model.state_dict()
    file = torch.load(path)["model"]
    assert all(torch.equal(after[name], before[name]) for name in predictor)
    assert torch.equal(after[f"{BODY}conv1.weight"], file[f"{BODY}stem.conv1.weight"])
    assert torch.equal(after["rpn.head.cls_logits.weight"], file["rpn.head.cls_logits.weight"])
    assert torch.equal(
        after["roi_heads.box.feature_extractor.fc7.weight"], file["roi_heads.box.feature_extractor.fc7.weight"]
    )
    assert (
        "dropped, as it belongs to the classes of the data that the file was trained on: roi_heads.box" in caplog.text
    )


def test_retinanet_drops_its_classifier(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = "configs/retinanet/retinanet_R-50-FPN_1x.yaml"
    path = checkpoint(build(config, MODEL__RETINANET__NUM_CLASSES=81), tmp_path / "retina.pth")
    report = begin(build(config, MODEL__RETINANET__NUM_CLASSES=9), path, caplog)
    assert set(report.reshaped) == {"rpn.head.cls_logits.weight", "rpn.head.cls_logits.bias"}
    assert "rpn.head.bbox_pred.weight" in report.loaded


def test_a_plain_convolution_becomes_a_deformable_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = classifier(build())
    torch.save(state, tmp_path / "r50.pth")
    model = build(MODEL__RESNETS__STAGE_WITH_DCN="(False, True, True, True)", MODEL__RESNETS__WITH_MODULATED_DCN=True)
    report = begin(model, tmp_path / "r50.pth", caplog)
    after = model.state_dict()
    assert torch.equal(after[f"{BODY}layer2.1.conv2.conv.weight"], state["layer2.1.conv2.weight"])
    assert {n for n in report.left_alone if n.startswith(BODY)} == {n for n in after if ".conv2.offset." in n}
    path = checkpoint(model, tmp_path / "dcn.pth")
    assert any(".conv2.offset." in name for name in begin(model, path, caplog).loaded)


def test_what_fits_nowhere_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build()
    torch.save({"model": {"bert.embeddings.weight": torch.zeros(3)}}, tmp_path / "bert.pth")
    with pytest.raises(WeightsError, match="none of its 1 tensors fits the backbone"):
        begin(model, tmp_path / "bert.pth", caplog)
    wide = classifier(build(MODEL__RESNETS__RES2_OUT_CHANNELS=64))
    torch.save(wide, tmp_path / "wide.pth")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match="does not fit the backbone") as error:
        begin(model, tmp_path / "wide.pth", caplog)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("by_released_names", [True, False])
def test_evaluation_takes_the_whole_file_or_refuses_it(by_released_names: bool, tmp_path: Path) -> None:
    model = build()
    path = checkpoint(model, tmp_path / "model_final.pth", by_released_names)
    assert len(load_weights(model, path, rules=FASTER_RCNN).loaded) == 300
    with pytest.raises(WeightsError, match="predictor"):
        load_weights(build(MODEL__ROI_BOX_HEAD__NUM_CLASSES=21), path, rules=FASTER_RCNN)
