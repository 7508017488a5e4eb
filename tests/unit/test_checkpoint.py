"""Checkpoint files: what loads, what is refused, and what the refusal says."""

from __future__ import annotations

import argparse
import builtins
import collections
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from maskrcnn_benchmark.checkpoint.io import Report, find_weights, load_weights, read_state_dict, save_weights
from maskrcnn_benchmark.checkpoint.names import Rule, rename
from maskrcnn_benchmark.checkpoint.rules import FASTER_RCNN, describe, detectron2_resnet
from maskrcnn_benchmark.checkpoint.unpickle import load_torch
from maskrcnn_benchmark.errors import WeightsError


class Net(nn.Module):
    """A model with one of each: a weight, a bias, a buffer that the config gives."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(width, 2)
        self.register_buffer("embeddings", torch.zeros(1))
        self.attn = nn.Module()
        self.attn.register_buffer("relative_position_index", torch.arange(4))


def fails(call: Callable[[], object], *parts: str) -> str:
    """The message of the WeightsError that a call must raise: one line, with all parts."""
    with pytest.raises(WeightsError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text
    return text


def written(folder: Path, content: object, name: str = "weights.pth", old: bool = False) -> Path:
    torch.save(content, folder / name, _use_new_zipfile_serialization=not old)
    return folder / name


def state(**changes: Tensor) -> dict[str, Tensor]:
    return Net().state_dict() | changes


WRAPPERS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "bare": lambda s: s,
    "ordered": collections.OrderedDict,
    "model": lambda s: {"model": s, "iteration": 3},
    "state_dict": lambda s: {"state_dict": s},
    "model_ema": lambda s: {"model_ema": s},
    "module": lambda s: {f"module.{name}": value for name, value in s.items()},
    "module in model": lambda s: {"model": {f"module.{name}": value for name, value in s.items()}},
    "twice": lambda s: {"state_dict": {"model": {f"module.module.{name}": value for name, value in s.items()}}},
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_wrapper_loads(tmp_path: Path, wrapper: str, old: bool) -> None:
    wanted, model = state(), Net()
    report = load_weights(model, written(tmp_path, WRAPPERS[wrapper](wanted), old=old))
    assert (report.missing, report.unexpected, report.reshaped) == ((), (), {})
    assert sorted(report.loaded) == sorted(wanted)
    assert torch.equal(model.head.weight, wanted["head.weight"])


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.bin", "deep/er/weights.safetensors"])
def test_saved_weights_load(tmp_path: Path, name: str) -> None:
    first, second = Net(), Net()
    path = save_weights(first.state_dict(), tmp_path / name)
    report = load_weights(second, path)
    assert torch.equal(second.head.weight, first.head.weight)
    assert report.path == path
    assert len(report.digest) == 64
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file is left


def test_saving_writes_each_tensor_alone(tmp_path: Path) -> None:
    whole = torch.arange(10_000.0)
    for name in ("a.pth", "a.safetensors"):
        path = save_weights({"a": whole[:2], "b": whole[:2]}, tmp_path / name)
        assert path.stat().st_size < 5000
        assert read_state_dict(path)["b"].tolist() == [0, 1]


def test_failed_saving_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_weights(state(), tmp_path / "weights.pth")
    before = path.read_bytes()

    def full(data: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        save_weights(state(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_half_precision_and_prefix_of_some_names(tmp_path: Path) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in state().items()}
    assert load_weights(Net(), written(tmp_path, half)).fits
    names = read_state_dict(written(tmp_path, {"module.a": torch.zeros(1), "b": torch.zeros(1)}))
    assert sorted(names) == ["b", "module.a"]  # only a prefix that all names have is a wrapper


def test_averaged_weights(tmp_path: Path) -> None:
    plain, average = {"a": torch.zeros(1)}, {"a": torch.ones(1)}
    path = written(tmp_path, {"model": plain, "model_ema": average})
    assert read_state_dict(path)["a"] == 0
    assert read_state_dict(path, ema=True)["a"] == 1
    fails(lambda: read_state_dict(written(tmp_path, plain), ema=True), "no averaged weights (model_ema)")


def settings() -> dict[str, Any]:
    """What training scripts put beside the weights."""
    cfg = CfgNode({"MODEL": {"WEIGHT": "w.pth", "STEPS": (1, 2)}})
    cfg.freeze()
    counts: dict[str, list[int]] = collections.defaultdict(list)
    counts["seen"].append(3)
    return {
        "cfg": cfg,
        "args": argparse.Namespace(lr=1e-4, masks=[True, {"deep": 1}]),
        "best": np.float64(0.5),
        "step": np.int64(7),
        "curve": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "counts": counts,
        "milestones": collections.Counter([5, 5]),
    }


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
def test_settings_in_the_file_are_read_inertly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    path = written(tmp_path, {"model": state(), **settings()}, old=old)
    monkeypatch.setitem(sys.modules, "yacs.config", None)  # importing it would raise
    data = load_torch(path)
    assert data["cfg"]["MODEL"]["STEPS"] == (1, 2)
    assert type(data["cfg"]) is collections.OrderedDict
    assert data["args"].masks == [True, {"deep": 1}]
    assert (data["best"], data["step"]) == (0.5, 7)
    assert data["curve"].tolist() == [[0, 1, 2], [3, 4, 5]] == data["columns"].tolist()
    assert data["big"].tolist() == [0, 1, 2]
    assert data["counts"] == {"seen": [3]}
    assert load_weights(Net(), path).fits


class Evil:
    """Runs a function of its choice when it is unpickled."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: {"model": state(), "x": e}, lambda e: {"model": {"a": e}}])
@pytest.mark.parametrize("name", ["system", "eval", "exec", "getattr"])
def test_malicious_pickle_is_refused(tmp_path: Path, name: str, wrap: Callable[[object], object], old: bool) -> None:
    mark = tmp_path / "harm"
    code = f"open({str(mark)!r}, 'w')"
    evil = {
        "system": Evil(os.system, f"touch {mark}"),
        "eval": Evil(eval, code),
        "exec": Evil(exec, code),
        "getattr": Evil(builtins.getattr, "text", "upper"),
    }[name]
    path = written(tmp_path, wrap(evil), old=old)
    fails(lambda: read_state_dict(path), str(path), "refused", f"{name}, which no weights need", ".safetensors")
    assert not mark.exists()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickle_of_any_protocol_is_refused(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "harm"
    content = {"model": state(), "extra": [Evil(os.system, f"touch {mark}")]}
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Evil(os.system, f"touch {mark}"), protocol))
    torch.save(content, tmp_path / "saved.pth", pickle_protocol=protocol)
    for name in ("bare.pth", "saved.pth"):
        fails(lambda name=name: read_state_dict(tmp_path / name), "refused", "system, which no weights need")
    assert not mark.exists()


def test_whole_model_and_objects_are_refused(tmp_path: Path) -> None:
    fails(lambda: read_state_dict(written(tmp_path, nn.Linear(1, 1))), "torch.nn.modules.linear.Linear", "refused")
    objects = np.array([{}, []], dtype=object)
    fails(lambda: read_state_dict(written(tmp_path, {"a": objects})), "not read")


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
@pytest.mark.parametrize("part", [0.01, 0.3, 0.9, 0.999])
def test_truncated_file(tmp_path: Path, part: float, old: bool) -> None:
    path = written(tmp_path, {"model": {"a": torch.zeros(5000)}}, old=old)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    fails(lambda: read_state_dict(path), str(path), "copy or download it again")


def test_truncated_safetensors(tmp_path: Path) -> None:
    path = save_weights(state(), tmp_path / "weights.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    fails(lambda: read_state_dict(path), str(path), "not a whole safetensors file")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "is a Git LFS pointer"),
        (b"once upon a time", "is no checkpoint (begins with b'once upon a ')"),
        (pickle.dumps({"a": 1}, protocol=2), "copy or download it again"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    fails(lambda: load_weights(Net(), path), str(path), says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "holds a list, not named tensors"),
        ({"model": {}}, "not named tensors"),
        ({"epoch": 3}, "'epoch' is of type int, not a tensor"),
        (torch.zeros(2), "holds a Tensor, not named tensors"),
    ],
)
def test_files_without_weights(tmp_path: Path, content: object, says: str) -> None:
    fails(lambda: load_weights(Net(), written(tmp_path, content)), says)


def test_a_surprise_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    less, more, other = state(), state(**{"neck.bias": torch.zeros(1)}), state(**{"head.weight": torch.ones(2, 4)})
    del less["head.bias"]
    cases = {
        "1 missing from the file (head.bias)": less,
        "1 unknown to the model (neck.bias)": more,
        "1 different (head.weight: file has float32 (2, 4), model wants float32 (2, 3))": other,
        "head.bias: file has int64 (2,), model wants float32 (2,)": state(**{"head.bias": torch.zeros(2).long()}),
        "relative_position_index: its values are not those that the config gives": state(
            **{"attn.relative_position_index": torch.zeros(4).long()}
        ),
    }
    for says, content in cases.items():
        model = Net()
        before = model.head.weight.clone()
        fails(lambda content=content, model=model: load_weights(model, written(tmp_path, content)), says)
        assert torch.equal(model.head.weight, before)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    extra = {f"x{i}": torch.zeros(1) for i in range(9)}
    fails(lambda: load_weights(Net(), written(tmp_path, state(**extra))), "9 unknown to the model (x0, x1, x2, ...)")


def test_what_may_be_missing(tmp_path: Path) -> None:
    lean = {name: value for name, value in state().items() if "relative_position_index" not in name}
    assert load_weights(Net(), written(tmp_path, lean)).left_alone == ("attn.relative_position_index",)
    del lean["head.bias"], lean["head.weight"]
    fails(lambda: load_weights(Net(), written(tmp_path, lean)), "2 missing from the file (head.weight, head.bias)")
    report = load_weights(Net(), written(tmp_path, lean), allow_missing=("head.*",))
    assert report.fits
    assert set(report.left_alone) == {"head.weight", "head.bias", "attn.relative_position_index"}
    assert "3 not in the file as declared" in report.summary()


def test_wrong_architecture_is_named(tmp_path: Path) -> None:
    glip = {
        "backbone.body.patch_embed.proj.weight": torch.zeros(96, 3, 4, 4),
        "rpn.head.dyhead_tower.0.b_attn.gamma_v": torch.zeros(1),
    }
    fails(lambda: load_weights(Net(), written(tmp_path, glip)), "looks like GLIP-T (with deep fusion); the config")


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ({"fusion_backbone.backbone.body.patch_embed.proj.weight": (128, 3, 4, 4)}, "FIBER-B (fusion v2)"),
        (
            {
                "fusion_backbone.backbone.body.patch_embed.proj.weight": (32, 3, 4, 4),
                "fusion_backbone.backbone.body.layers.2.blocks.14.attn.norm_i2t_i.weight": (128,),
                "fusion_backbone.tunable_linear.weight": (1, 96),
            },
            "a FIBER of width 32 (fusion v3, tunable linear layer)",
        ),
        (
            {"backbone.body.patch_embed.proj.weight": (192, 3, 4, 4), "rpn.head.dyhead_tower.0.x": (1,)},
            "GLIP-L (without deep fusion)",
        ),
        ({"layers.0.blocks.0.norm1.weight": (96,)}, "a Swin trained on ImageNet, a backbone without its detector"),
        ({"roberta.embeddings.word_embeddings.weight": (9, 9)}, "a BERT or RoBERTa text encoder alone"),
        ({"conv.weight": (1,)}, "an unknown model"),
    ],
)
def test_describe(shapes: dict[str, tuple[int, ...]], kind: str) -> None:
    assert describe(shapes) == kind


def test_meta_model_checks_names_only(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Net()
    assert load_weights(model, written(tmp_path, state())).fits
    assert model.head.weight.is_meta


def test_finding_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "MODEL").mkdir(parents=True)
    there.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("MODEL", raising=False)
    fails(lambda: find_weights("fiber.pth"), "'fiber.pth'", "tried fiber.pth, MODEL/fiber.pth", "put the file there")
    written(here / "MODEL", state(), "fiber.pth")
    assert find_weights("fiber.pth") == Path("MODEL/fiber.pth")
    assert find_weights("MODEL/fiber.pth") == Path("MODEL/fiber.pth")
    monkeypatch.setenv("MODEL", str(there))
    written(there, state(), "glip.pth")
    assert find_weights("MODEL/glip.pth") == find_weights("glip.pth") == there / "glip.pth"
    fails(lambda: find_weights("https://example.org/fiber.pth"), "not downloaded")
    fails(lambda: find_weights("MODEL"), "MODEL: is a folder", "give one of its files: fiber.pth")
    fails(lambda: read_state_dict(tmp_path), "is a folder", "give a file (.pth")


def test_last_checkpoint_leads_to_its_file(tmp_path: Path) -> None:
    path = written(tmp_path, state(), "model_0005000.pth")
    pointer = tmp_path / "last_checkpoint"
    for text in ("model_0005000.pth\n", str(path), "/moved/since/model_0005000.pth"):
        pointer.write_text(text)
        assert load_weights(Net(), pointer).path == path
    pointer.write_text("gone.pth")
    fails(lambda: find_weights(pointer), "names 'gone.pth', which is not there")


def test_rules_rename_whole_segments_both_ways() -> None:
    rule = Rule("stem.{a}.norm", "layer0.{a}.bn")
    assert rule.inward("stem.3.norm.weight") == "layer0.3.bn.weight"
    assert rule.outward("layer0.3.bn.weight") == "stem.3.norm.weight"
    assert rule.inward("stem.3.normal.weight") is None
    assert rule.inward("my.stem.3.norm") is None
    names = ["res2.0.conv1.norm.weight", "res2.0.shortcut.weight", "res2.0.conv1.weight", "stem.conv1.norm.bias"]
    rules = detectron2_resnet("net", "net")
    there = rename([f"net.{name}" for name in names], rules)
    assert list(there.values()) == [
        "net.layer1.0.bn1.weight",
        "net.layer1.0.downsample.0.weight",
        "net.layer1.0.conv1.weight",
        "net.bn1.bias",
    ]
    assert list(rename(there.values(), rules, outward=True).values()) == [f"net.{name}" for name in names]


def test_renaming_may_not_merge_names(tmp_path: Path) -> None:
    clash = ["backbone.body.stem.conv1.weight", "backbone.body.conv1.weight"]
    fails(lambda: rename(clash, FASTER_RCNN), *clash, "would both be called backbone.body.conv1.weight")


def test_rules_apply_while_loading(tmp_path: Path) -> None:
    theirs = {name.replace("head.", "predictor.fc."): value for name, value in state().items()}
    path = written(tmp_path, theirs)
    assert load_weights(Net(), path, rules=[Rule("predictor.fc", "head")]).fits
    report: Report = load_weights(Net(), written(tmp_path, state()), rules=[Rule("predictor.fc", "head")])
    assert report.fits
