"""Files with the names of released Deformable DETRs and DECOLAs: they load whole, and nothing is left out untold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_benchmark.checkpoint import io
from maskrcnn_benchmark.checkpoint.io import load_weights
from maskrcnn_benchmark.checkpoint.names import rename
from maskrcnn_benchmark.checkpoint.rules import COPIES, RELEASED
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.errors import WeightsError
from maskrcnn_benchmark.modeling.build import build_detector
from tests.golden.common import fill, golden_root
from tests.golden.test_names import Keys, lists, read, without_memory

LISTS = [param for param in lists("decola") if param.values[0] is None or "C2" not in param.values[0].name]


def config_of(path: Path) -> str:
    """The released config that a list belongs to."""
    folder, _, name = path.stem.rpartition("eval_")
    return f"configs/decola/{'eval/' if folder or path.stem.startswith('eval_') else ''}{name}.yaml"


def model_of(path: Path, *opts: str) -> nn.Module:
    return build_detector(load_cfg(config_of(path), opts=opts))


@pytest.mark.parametrize("path", LISTS)
def test_released_names_load(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "file_digest", lambda path: "")  # holes or not, a gigabyte takes a second to hash
    keys = read(path)
    with torch.device("meta"):  # names and shapes only
        model = model_of(path)
    file = tmp_path / "model_final.pth"
    torch.save({"model": without_memory(keys), "iteration": 1}, file)
    report = load_weights(model, file, rules=RELEASED)
    assert set(report.loaded) == set(model.state_dict()) - set(report.left_alone)
    assert len(report.loaded) + len(report.unused) == len(keys)
    why = Counter(reason.split(" ")[0] for reason in report.unused.values())
    assert why["the"] == sum(rule.inward(name) is not None for name in keys for rule in COPIES)
    assert why["counters"] == sum(name.endswith("num_batches_tracked") for name in keys)
    assert set(why) <= {"the", "counters", "how"}
    there = rename(keys, RELEASED)
    back = rename(there.values(), RELEASED, outward=True)
    assert all(back[there[name]] == name for name in keys)


@pytest.mark.parametrize("path", LISTS[:1])
def test_other_files_are_refused(path: Path, tmp_path: Path) -> None:
    keys = read(path)
    with torch.device("meta"):
        model = model_of(path)
    state = without_memory(keys)
    less = {name: value for name, value in state.items() if not name.endswith("enc_output_norm.weight")}
    torch.save(less, tmp_path / "less.pth")
    with pytest.raises(WeightsError, match=r"1 missing from the file \(detr\.transformer\.enc_output_norm"):
        load_weights(model, tmp_path / "less.pth", rules=RELEASED)
    torch.save({**state, "detr.extra": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(WeightsError, match=r"1 unknown to the model \(detr\.extra\)"):
        load_weights(model, tmp_path / "more.pth", rules=RELEASED)


def small(keys: Keys) -> dict[str, Tensor]:
    """Values by name, of the first encoder layer and two decoder layers, each copy with values of its own."""
    return {
        name: torch.from_numpy(fill.values(name, tuple(shape), 0)) if kind.startswith("float") else torch.zeros(shape)
        for name, (kind, shape) in keys.items()
    }


@pytest.mark.full
@pytest.mark.parametrize("name", ["DECOLA_PHASE1_Lbase_CLIP_R5021k_4x", "BoxSup-DeformDETR_Lbase_CLIP_R501k_4x"])
def test_of_two_copies_the_shorter_name_counts(name: str, tmp_path: Path) -> None:
    root = golden_root()
    path = root / "decola" / "keys" / f"{name}.json" if root else None
    if path is None or not path.exists():
        pytest.skip("no such list of names")
    state, model = small(read(path)), model_of(path)
    torch.save({"model": state}, tmp_path / "both.pth")
    load_weights(model, tmp_path / "both.pth", rules=RELEASED)
    names = rename(state, RELEASED)
    ours = model.state_dict()
    for theirs, mine in names.items():
        if mine in ours and not mine.endswith("zs_weight"):  # a model that was built with a table keeps it
            assert torch.equal(ours[mine], state[theirs].to(ours[mine])), theirs
    alone = {k: v for k, v in state.items() if not k.startswith(("detr.class_embed.", "detr.bbox_embed."))}
    torch.save({"model": alone}, tmp_path / "one.pth")
    report = load_weights(model, tmp_path / "one.pth", rules=RELEASED, allow_missing=("*zs_weight",))
    assert not report.missing
    last = "bbox_embed.0.layers.0.weight"
    assert torch.equal(model.state_dict()[f"detr.{last}"], state[f"detr.transformer.decoder.{last}"])
