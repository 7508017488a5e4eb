"""Names of the classes of detectors that compare pictures with embeddings of names, and where those come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_benchmark.checkpoint.start import start_from
from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.data.drawn import CLASSES
from maskrcnn_benchmark.engine.inference import load
from maskrcnn_benchmark.engine.vocabulary import build_vocabulary
from maskrcnn_benchmark.errors import ConfigError, WeightsError
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.text.class_bank import ClassBank, bundled_names, write_bank
from maskrcnn_benchmark.text.clip_encoder import ClipText, ClipTextConfig
from maskrcnn_benchmark.training import check_start, starting_model
from tests import narrow_centernet2
from tests.narrow_decola import CONFIGS, WIDTH, narrow_cfg

CLASS_KEY, OBJECT_KEY = "MODEL__ZEROSHOT_CLS__WEIGHT_PATH", "MODEL__ZEROSHOT_CLS__OBJECT_WEIGHT_PATH"


def bank(path: Path, seed: int, names: tuple[str, ...] = CLASSES, **about: Any) -> Path:
    """A bank of some encoder, which ``seed`` stands for."""
    rows = torch.randn(len(names), WIDTH, generator=torch.Generator().manual_seed(seed))
    return write_bank(ClassBank(rows, names, **about), path)


def trained(cfg: Cfg, path: Path, names: tuple[str, ...] = CLASSES) -> Path:
    """Weights as a training leaves them."""
    torch.save({"model": build_detector(cfg).state_dict(), "classes": list(names)}, path)
    return path


def test_the_bundled_names_are_not_those_of_a_network_of_another_size(tmp_path: Path) -> None:
    """The table of LVIS that released configs speak of is not there; the weights bring fewer classes."""
    released = load_cfg(CONFIGS["phase 2"]).MODEL.ZEROSHOT_CLS.WEIGHT_PATH
    cfg = narrow_cfg("phase 2", tmp_path, MODEL__ZEROSHOT_CLS__WEIGHT_PATH=released)
    vocabulary = build_vocabulary(cfg, build_detector(cfg), lambda: CLASSES)
    assert vocabulary is not None
    assert vocabulary.names == CLASSES


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"encoder": "1" * 64}, "with the encoder '111111111111', and .*names.safetensors with '000000000000'"),
        ({"template": "a photo of a {}"}, r"with the template 'a photo of a \{\}', and .*names.safetensors with 'a \{"),
    ],
)
def test_banks_of_classes_and_of_the_object_are_made_alike(tmp_path: Path, other: dict[str, str], told: str) -> None:
    about: dict[str, Any] = {"encoder": "0" * 64, "template": "a {}"}
    keys = {CLASS_KEY: bank(tmp_path / "names.safetensors", 0, **about)}
    like = bank(tmp_path / "object.safetensors", 1, ("object",), **about)
    build_detector(narrow_cfg("phase 1", tmp_path, **keys, **{OBJECT_KEY: like}))
    foreign = bank(tmp_path / "foreign.safetensors", 1, ("object",), **about | other)
    with pytest.raises(ConfigError, match=rf"OBJECT_WEIGHT_PATH .*foreign.safetensors: was made {told}"):
        build_detector(narrow_cfg("phase 1", tmp_path, **keys, **{OBJECT_KEY: foreign}))
    build_detector(narrow_cfg("phase 1", tmp_path, **{OBJECT_KEY: foreign}))  # a .npy table does not say


@pytest.mark.parametrize("kind", ["phase 1", "baseline"])
def test_a_bank_is_of_the_text_encoder(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    encoder = ClipText(ClipTextConfig(vocab_size=517, width=64, layers=1, out=WIDTH))
    torch.save(encoder.state_dict(), tmp_path / "clip.pt")
    text = {"MODEL__ZEROSHOT_CLS__TEXT_WEIGHT": tmp_path / "clip.pt"}
    own = bank(tmp_path / "own.safetensors", 0, encoder=encoder.digest(), template="a {}")
    check_start(narrow_cfg(kind, tmp_path, **text, **{CLASS_KEY: own}))  # a network without values
    foreign = bank(tmp_path / "foreign.safetensors", 0, encoder="1" * 64, template="a {}")
    cfg = narrow_cfg(kind, tmp_path, **text, **{CLASS_KEY: foreign})
    with pytest.raises(ConfigError, match=r"foreign.safetensors: was made .* MODEL.ZEROSHOT_CLS.TEXT_WEIGHT"):
        check_start(cfg)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_a_bank_does_not_take_the_place_of_embeddings_of_another_encoder(tmp_path: Path, kind: str) -> None:
    def config(seed: int, *names: str, **more: Any) -> Cfg:
        keys = {CLASS_KEY: bank(tmp_path / f"{seed}.safetensors", seed, names)}
        return narrow_cfg(kind, tmp_path, **keys, MODEL__DEFORMABLE_DETR__NUM_CLASSES=len(names), **more)

    weights = trained(config(0, *CLASSES), tmp_path / "trained.pth")
    assert load(config(0, *CLASSES), weights).classes == CLASSES
    told = rf"trained\.pth: was trained with other embeddings .*\.WEIGHT_PATH '{tmp_path}/1\.safetensors'"
    for names in (CLASSES, (CLASSES[3], "zebra")):
        with pytest.raises(WeightsError, match=told):
            load(config(1, *names), weights)
    with pytest.raises(WeightsError, match=told):
        starting_model(config(1, *CLASSES, MODEL__WEIGHT=weights))
    assert load(config(1, "zebra", "kite"), weights).classes == ("zebra", "kite")  # nothing to compare them by
    assert load(narrow_cfg(kind, tmp_path, **{CLASS_KEY: "", OBJECT_KEY: ""}), weights).classes == CLASSES


def test_embeddings_of_classes_without_that_of_the_object_and_the_other_way_round(tmp_path: Path) -> None:
    """The table of the network is one: it comes from the files of the config, or from the weights."""
    weights = trained(narrow_cfg("phase 2", tmp_path), tmp_path / "trained.pth")
    for key, lost in ((CLASS_KEY, "class 1"), (OBJECT_KEY, "the prompt for objects of any class")):
        with pytest.raises(WeightsError, match=rf"{lost} has no embedding: .* give both, or neither"):
            load(narrow_cfg("phase 2", tmp_path, **{key: ""}), weights)


def test_the_object_prompt_is_of_one_encoder(tmp_path: Path) -> None:
    weights = trained(narrow_cfg("phase 2", tmp_path), tmp_path / "trained.pth", ())
    foreign = bank(tmp_path / "foreign.safetensors", 5, ("object",))
    with pytest.raises(WeightsError, match=r"OBJECT_WEIGHT_PATH '.*foreign\.safetensors'"):
        load(narrow_cfg("phase 2", tmp_path, **{OBJECT_KEY: foreign}), weights)


def test_released_weights_are_of_the_names_of_their_table(tmp_path: Path) -> None:
    """They do not say which names their rows are of; as many rows as COCO has classes are of COCO's."""
    names = bundled_names("coco")

    def config(seed: int, names: tuple[str, ...]) -> Cfg:
        own = {CLASS_KEY: bank(tmp_path / f"{seed}.safetensors", seed, names)}
        return narrow_cfg("baseline", tmp_path, **own, MODEL__DEFORMABLE_DETR__NUM_CLASSES=len(names))

    weights = trained(config(0, names), tmp_path / "released.pth", ())
    assert load(config(0, names), weights).classes == names
    with pytest.raises(WeightsError, match="was trained with other embeddings of the same names"):
        load(config(1, names), weights)
    load(config(1, names[::-1]), weights)


def test_centernet2_begins_with_its_own_bank(tmp_path: Path) -> None:
    """Also where the file has a table of the same size."""

    def config(seed: int, *names: str, **more: Any) -> Cfg:
        path = bank(tmp_path / f"{seed}.safetensors", seed, names)
        return load_cfg(narrow_centernet2.CONFIG, opts=narrow_centernet2.options(tmp_path, **{CLASS_KEY: path}, **more))

    weights = trained(config(0, *CLASSES), tmp_path / "trained.pth")
    with pytest.raises(WeightsError, match="was trained with other embeddings of the same names"):
        starting_model(config(1, *CLASSES, MODEL__WEIGHT=weights))
    others = [f"thing {number}" for number in range(len(CLASSES))]
    model = build_detector(config(1, *others))
    before = {name: value.clone() for name, value in model.state_dict().items() if name.endswith("zs_weight")}
    start_from(model, weights)
    assert len(before) > 0
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
