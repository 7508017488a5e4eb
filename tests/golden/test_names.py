"""Checkpoints with the names of every released model: they load whole, and are refused with one name more or less."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_benchmark.checkpoint import io
from maskrcnn_benchmark.checkpoint.io import load_weights, save_weights
from maskrcnn_benchmark.checkpoint.names import Rule, rename
from maskrcnn_benchmark.checkpoint.rules import (
    CENTERNET2,
    FASTER_RCNN,
    FIBER,
    GLIP,
    describe,
    detectron2_resnet,
)
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.errors import WeightsError
from maskrcnn_benchmark.modeling.build import build_detector
from tests.golden.common import NO_SHARED, golden_root

Keys = Mapping[str, tuple[str, list[int]]]

CONFIGS = {  # of a released name list; a list with another name gets the one of its kind
    "fiber_b_coco": "e2e_dyhead_SwinT_B_FPN_coco_finetuning_fusion_backbone.yaml",
    "fiber_b_lvis": "e2e_dyhead_SwinT_B_FPN_lvis_finetuning_fusion_backbone.yaml",
    "fiber_b_pretrain_refexpclean": "pretrain/mixed_nococo_flickr_objects365_refexpclean.yaml",
    "fiber_b_refcoco": "refcoco.yaml",
    "glip_t_b": "pretrain/glip_Swin_T_O365.yaml",
}
FIBER_CONFIG = "pretrain/mixed_nococo_flickr_objects365.yaml"
GLIP_CONFIG, GLIP_A_CONFIG = "pretrain/glip_Swin_T_O365_GoldG.yaml", "pretrain/glip_A_Swin_T_O365.yaml"
GLIP_L_CONFIG = "pretrain/glip_Swin_L.yaml"


def lists(system: str) -> list[Any]:
    """The released name lists of a system, one parameter each."""
    root = golden_root()
    files = sorted((root / system / "keys").glob("[!_]*.json")) if root else []
    if not files:
        why = f"no name list of {system}" if root else NO_SHARED
        return [pytest.param(None, id="no-list", marks=pytest.mark.skip(reason=why))]
    return [pytest.param(path, id=path.stem) for path in files]


def read(path: Path) -> Keys:
    return {name: (entry[0], entry[1]) for name, entry in json.loads(path.read_text()).items()}


def shapes(keys: Keys) -> dict[str, list[int]]:
    return {name: shape for name, (_, shape) in keys.items()}


def build(path: Path) -> nn.Module:
    """The model of the config that a name list belongs to."""
    keys = shapes(read(path))
    fiber = any(name.startswith("fusion_backbone.") for name in keys)
    fused = any(".b_attn." in name for name in keys)
    kind = describe(keys)
    glip = GLIP_L_CONFIG if kind.startswith("GLIP-L") else GLIP_CONFIG if fused else GLIP_A_CONFIG
    config = CONFIGS.get(path.stem) or (FIBER_CONFIG if fiber else glip)
    narrow = not kind.startswith(("FIBER-B", "GLIP-T", "GLIP-L"))
    model: nn.Module = build_detector(load_cfg(f"configs/{config}", opts=narrow_options(keys) if narrow else []))
    return model


def narrow_options(keys: Mapping[str, list[int]]) -> list[str]:
    """Config options of a model whose widths are not those of a released one, read off its shapes."""

    def shape(ending: str) -> list[int]:
        return next(value for name, value in keys.items() if name.endswith(ending))

    def count(part: str) -> int:
        return len({name.split(part)[1].split(".")[0] for name in keys if part in name})

    width, channels, language = shape("patch_embed.proj.weight")[0], shape("fpn_inner2.bias")[0], shape("bias_lang")[0]
    depths = tuple(count(f"body.layers.{stage}.blocks.") for stage in range(4))
    heads = tuple(shape(f"layers.{stage}.blocks.0.attn.relative_position_bias_table")[1] for stage in range(4))
    options = {
        "MODEL.SWINT.EMBED_DIM": width,
        "MODEL.SWINT.OUT_CHANNELS": tuple(width * 2**stage for stage in range(4)),
        "MODEL.SWINT.DEPTHS": depths,
        "MODEL.SWINT.NUM_HEADS": heads,
        "MODEL.SWINT.WINDOW_SIZE": round(shape("relative_position_index")[0] ** 0.5),
        "MODEL.BACKBONE.OUT_CHANNELS": channels,
        "MODEL.BACKBONE.FUSION_VERSION": "v3" if any(".norm_i2t_" in name for name in keys) else "v2",
        "MODEL.LANGUAGE_BACKBONE.LANG_DIM": language,
        "MODEL.LANGUAGE_BACKBONE.NUM_HEADS": 4,
        "MODEL.LANGUAGE_BACKBONE.NUM_LAYERS": count("model.encoder.layer."),
        "MODEL.LANGUAGE_BACKBONE.INTERMEDIATE_SIZE": shape("layer.0.intermediate.dense.bias")[0],
        "MODEL.DYHEAD.CHANNELS": channels,
        "MODEL.DYHEAD.NUM_CONVS": len({name.split(".")[3] for name in keys if ".DyConv." in name}),
        "MODEL.DYHEAD.FUSE_CONFIG.JOINT_EMB_SIZE": channels,
        "MODEL.DYHEAD.FUSE_CONFIG.ADD_LINEAR_LAYER": any("tunable_linear" in name for name in keys),
    }
    return [str(item) for pair in options.items() for item in pair]


def without_memory(keys: Keys) -> dict[str, Tensor]:
    """Zeros of the listed shapes, each one number in memory and in a torch file."""
    return {name: torch.zeros((), dtype=getattr(torch, kind)).expand(shape) for name, (kind, shape) in keys.items()}


def write_safetensors(state: Mapping[str, Tensor], path: Path) -> None:
    """A file of zeros with a hole where the numbers would be, so that a gigabyte costs nothing."""
    kinds = {torch.float32: ("F32", 4), torch.int64: ("I64", 8)}
    header, end = {}, 0
    for name, value in state.items():
        kind, size = kinds[value.dtype]
        begin, end = end, end + size * value.numel()
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + end)


def wrapped(state: Mapping[str, Tensor]) -> dict[str, object]:
    """A state in every shape that training scripts give it."""
    parallel = {f"module.{name}": value for name, value in state.items()}
    return {
        "bare": dict(state),
        "model": {"model": dict(state), "iteration": 7},
        "module": parallel,
        "model_module": {"model": parallel, "optimizer": {"state": {}}},
        "state_dict": {"state_dict": dict(state)},
        "model_ema": {"model_ema": parallel},
    }


@pytest.mark.parametrize("path", lists("fiber"))
def test_names(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "file_digest", lambda path: "")  # holes or not, a gigabyte takes a second to hash
    keys = read(path)
    with torch.device("meta"):  # names and shapes only
        model = build(path)
    state = without_memory(keys)
    files = {tmp_path / f"{name}.pth": data for name, data in wrapped(state).items()}
    for file, data in files.items():
        torch.save(data, file)
    write_safetensors(state, tmp_path / "weights.safetensors")
    write_safetensors({f"module.{n}": v for n, v in state.items()}, tmp_path / "module.safetensors")
    for file in tmp_path.iterdir():
        report = load_weights(model, file)
        assert set(report.loaded) == set(keys), file.name
        assert not report.missing
        assert not report.unexpected
        assert not report.left_alone

    learned = [name for name in keys if "rpn.head" in name]
    for name in (learned[0], learned[-1]):
        torch.save({"model": {n: v for n, v in state.items() if n != name}}, tmp_path / "less.pth")
        with pytest.raises(WeightsError, match=rf"1 missing from the file \({name}\)"):
            load_weights(model, tmp_path / "less.pth")
    torch.save({"model": {**state, "rpn.head.extra": torch.zeros(1)}}, tmp_path / "more.pth")
    with pytest.raises(WeightsError, match=r"1 unknown to the model \(rpn\.head\.extra\)"):
        load_weights(model, tmp_path / "more.pth")
    torch.save({"model": {**state, learned[0]: torch.zeros(7, 7)}}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=rf"1 different \({learned[0]}: file has float32 \(7, 7\)"):
        load_weights(model, tmp_path / "other.pth")
    recomputed = ("cell_anchors", "position_ids", "relative_position_index")
    torch.save({n: v for n, v in state.items() if not any(part in n for part in recomputed)}, tmp_path / "lean.pth")
    assert len(load_weights(model, tmp_path / "lean.pth").left_alone) == sum(
        any(part in name for part in recomputed) for name in keys
    )


NARROW = [param for param in lists("fiber") if "small" in str(param.id)]


@pytest.mark.parametrize("path", NARROW or lists("fiber"))
def test_values_of_a_narrow_model(path: Path, tmp_path: Path) -> None:
    check_values(path, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("path", [param for param in lists("fiber") if param.id in ("fiber_b_pretrain", "no-list")])
def test_values_of_a_released_size(path: Path, tmp_path: Path) -> None:
    check_values(path, tmp_path)


def check_values(path: Path, tmp_path: Path) -> None:
    """A real file of every format gives its numbers to a model; buffers with other values are refused."""
    model, other = build(path), build(path)
    state = model.state_dict()
    buffer = next(name for name in state if name.endswith("relative_position_index"))
    for name, value in other.state_dict().items():
        if value.is_floating_point() and "cell_anchors" not in name:
            value.fill_(7)
    for file in ("weights.pth", "weights.safetensors"):
        save_weights(state, tmp_path / file)
        report = load_weights(other, tmp_path / file)
        assert len(report.loaded) == len(state)
        assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    torch.save({**state, buffer: state[buffer] + 1}, tmp_path / "shifted.pth")
    with pytest.raises(WeightsError, match=rf"{buffer}: its values are not those that the config gives"):
        load_weights(other, tmp_path / "shifted.pth")


@pytest.mark.parametrize("path", lists("fiber"))
def test_wrong_model_is_named(path: Path, tmp_path: Path) -> None:
    """The message says what the file looks like and what the config builds."""
    glip = any(name.startswith("backbone.") for name in read(path))
    other = path.with_stem("fiber_b_pretrain" if glip else "glip_t")
    if not other.exists():
        pytest.skip(f"no list {other.name} beside {path.name}")
    with torch.device("meta"):
        model = build(path)
    torch.save({"model": without_memory(read(other))}, tmp_path / "other.pth")
    mine, theirs = describe(shapes(read(path))), describe(shapes(read(other)))
    assert theirs.startswith("FIBER-B" if glip else "GLIP-T")
    with pytest.raises(WeightsError) as error:
        load_weights(model, tmp_path / "other.pth")
    assert f"looks like {theirs}; the config builds {mine}" in str(error.value)
    assert "\n" not in str(error.value)


def rules_of(system: str, names: Keys) -> tuple[Rule, ...]:
    """The renaming table of a released name list."""
    if system == "dap":
        return FASTER_RCNN
    if any(name.startswith("backbone.bottom_up.") for name in names):
        return CENTERNET2
    trunk = "detr.backbone.0.backbone"
    return detectron2_resnet(trunk, trunk) if any(f"{trunk}.res2." in name for name in names) else ()


@pytest.mark.parametrize("system", ["fiber", "dap", "decola", "mdetr"])
def test_renaming_goes_there_and_back(system: str) -> None:
    for path in [param.values[0] for param in lists(system)]:
        if path is None:
            pytest.skip(NO_SHARED)
        names = read(path)
        rules = rules_of(system, names)
        there = rename(names, rules)
        back = rename(there.values(), rules, outward=True)
        assert all(back[there[name]] == name for name in names), path.name
        if system == "fiber":
            assert all(rename(names, table) == {n: n for n in names} for table in (FIBER, GLIP, FASTER_RCNN))
        elif rules:
            assert any(old != new for old, new in there.items()), path.name


@pytest.mark.parametrize(
    ("system", "kinds"),
    [
        ("fiber", ("FIBER-B (fusion v", "a FIBER of width 32", "GLIP-", "a GLIP of width 32")),
        ("dap", ("Faster R-CNN", "RetinaNet")),
        ("decola", ("DECOLA or Deformable DETR", "CenterNet2")),
        ("mdetr", ("MDETR",)),
    ],
)
def test_every_released_list_is_recognised(system: str, kinds: tuple[str, ...]) -> None:
    for path in [param.values[0] for param in lists(system)]:
        if path is None:
            pytest.skip(NO_SHARED)
        data = json.loads(path.read_text())
        assert describe({n: e[1] if isinstance(e, list) else e for n, e in data.items()}).startswith(kinds), path.name
