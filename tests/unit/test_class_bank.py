"""Class banks on disk, CLIP's tokenizer and text encoder, tables that a config names."""

from __future__ import annotations

import gzip
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from maskrcnn_benchmark import mrb
from maskrcnn_benchmark.checkpoint.clip import load_clip_text
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.errors import ConfigError, DataError, PromptError, WeightsError
from maskrcnn_benchmark.modeling.heads.class_tables import build_class_table, build_object_row, class_names
from maskrcnn_benchmark.text import clip_tokenizer
from maskrcnn_benchmark.text.class_bank import ClassBank, bundled_names, make_bank, read_bank, read_names, write_bank
from maskrcnn_benchmark.text.clip_encoder import ClipText, ClipTextConfig
from maskrcnn_benchmark.text.clip_tokenizer import ClipTokenizer, load_clip_tokenizer

NAMES = ("cat", "dog", "aerosol_can")


@pytest.fixture
def vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of CLIP's form with three merges."""
    monkeypatch.setattr(clip_tokenizer, "MERGES", 3)
    folder = tmp_path / "vocabulary"
    folder.mkdir()
    with gzip.open(folder / "bpe_simple_vocab_16e6.txt.gz", "wt", encoding="utf-8") as file:
        file.write("#version: 0.2\nc a\nca t</w>\nd o\ng g</w>\n")
    return folder


@pytest.fixture
def tokenizer(vocabulary: Path) -> ClipTokenizer:
    return load_clip_tokenizer(vocabulary)


@pytest.fixture
def encoder() -> ClipText:
    torch.manual_seed(0)
    return ClipText(ClipTextConfig(vocab_size=517, width=64, layers=2, out=16)).eval()


def test_tokens(tokenizer: ClipTokenizer) -> None:
    begin, cat, end = 515, 513, 516
    ids = tokenizer.encode(["Cat", "a &amp; cat"], length=8)
    assert ids[0].tolist() == [begin, cat, end, 0, 0, 0, 0, 0]
    assert tokenizer.encode(["a & cat"], 8).tolist() == [ids[1].tolist()]
    with pytest.raises(PromptError, match="takes 10 tokens, CLIP reads 8"):
        tokenizer.encode(["dddddddd"], length=8)


def test_the_vocabulary_in_other_forms(vocabulary: Path, tokenizer: ClipTokenizer, tmp_path: Path) -> None:
    tokenizer._backend.save(str(tmp_path / "tokenizer.json"))
    words = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    pair = tmp_path / "pair"
    pair.mkdir()
    (pair / "vocab.json").write_text(json.dumps(words))
    (pair / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\nd o\n")
    for place in (tmp_path / "tokenizer.json", pair, vocabulary / "bpe_simple_vocab_16e6.txt.gz"):
        assert torch.equal(load_clip_tokenizer(place).encode(["a cat, dogs"]), tokenizer.encode(["a cat, dogs"]))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "the vocabulary of CLIP is not here: put bpe_simple_vocab_16e6.txt.gz"),
        (b"not gzip", "is damaged"),
        (gzip.compress(b"#version\na b\n", mtime=0), "has 1 merges in place of 48894"),
    ],
)
def test_no_vocabulary(tmp_path: Path, content: bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(content)
    with pytest.raises(PromptError, match=told):
        load_clip_tokenizer(tmp_path)


def test_padding_and_other_texts_change_nothing(encoder: ClipText, tokenizer: ClipTokenizer) -> None:
    together = encoder.embed(["a cat", "a long long name of a dog"], tokenizer)
    torch.testing.assert_close(together[:1], encoder.embed(["a cat"], tokenizer))
    whole = tokenizer.encode(["a cat"])
    torch.testing.assert_close(together[0], encoder(whole)[0].detach())


def test_a_bank_goes_to_disk_and_back(encoder: ClipText, tokenizer: ClipTokenizer, tmp_path: Path) -> None:
    bank = make_bank(NAMES, encoder, tokenizer)
    read = read_bank(write_bank(bank, tmp_path / "b.safetensors"))
    assert (read.names, read.template, read.encoder) == (NAMES, "a {}", encoder.digest())
    assert torch.equal(read.table, bank.table)
    assert read.check(NAMES, bank, 16) is read
    assert torch.equal(read.rows(["dog", "cat"]), bank.table[[1, 0]])


def test_a_bank_of_something_else(encoder: ClipText, tokenizer: ClipTokenizer, tmp_path: Path) -> None:
    bank = make_bank(NAMES, encoder, tokenizer)
    with pytest.raises(DataError, match=r"the classes in another order: row 1 is 'cat' and class 1 is 'dog'"):
        bank.check(["dog", "cat", "aerosol_can"])
    with pytest.raises(DataError, match="has other classes: row 2 is 'dog'"):
        bank.check(["cat", "cow", "aerosol_can"])
    with pytest.raises(DataError, match=r"has 3 rows for 2 classes \(cat, dog\)"):
        bank.check(["cat", "dog"])
    made_by = deepcopy(encoder)
    with torch.no_grad():
        encoder.ln_final.weight[0] += 1
    with pytest.raises(DataError, match="their embeddings cannot be compared"):
        bank.check(other=make_bank(NAMES, encoder, tokenizer))
    with pytest.raises(DataError, match=r"the template 'a \{\}', and photos with 'a photo of a \{\}'"):
        bank.check(other=make_bank(NAMES, made_by, tokenizer, "a photo of a {}", "photos"))
    with pytest.raises(DataError, match="have 16 numbers, the detector's 512"):
        bank.check(width=512)
    with pytest.raises(PromptError, match="no embedding of 'dogs': the closest of its 3 are dog"):
        bank.rows(["dogs"])


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["cat", "dog", "cat"], r"'cat' comes more than once \(names 1, 3\)"),
        (["traffic light", "dog", "Traffic_Light"], "'traffic light' and 'Traffic_Light' are the same name"),
        (["cat", "  "], "name 2 of 2 is empty"),
        ([], "no names"),
    ],
)
def test_names_that_cannot_be_told_apart(
    names: list[str], told: str, encoder: ClipText, tokenizer: ClipTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(PromptError, match=told):
        make_bank(names, encoder, tokenizer)
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"categories": [{"id": i, "name": name} for i, name in enumerate(names)]}))
    with pytest.raises(PromptError, match=told):
        read_names(file)


def test_a_template_needs_a_place_for_the_name(encoder: ClipText, tokenizer: ClipTokenizer) -> None:
    with pytest.raises(ConfigError, match="must stand where the name goes"):
        make_bank(NAMES, encoder, tokenizer, "a photo")


def test_released_tables(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 0.4, (3, 16)).astype(np.float16)
    np.save(tmp_path / "t.npy", values)
    bank = read_bank(tmp_path / "t.npy")
    assert torch.equal(bank.table, torch.from_numpy(values).float())
    assert bank.names == ()
    bank.check(NAMES)  # it does not say whose rows they are
    assert torch.equal(read_bank(tmp_path / "t.npy", NAMES).rows(["dog"])[0], bank.table[1])
    with pytest.raises(DataError, match="has 3 rows for 2 classes"):
        read_bank(tmp_path / "t.npy", NAMES[:2])
    with pytest.raises(PromptError, match="does not say which names its 3 rows are of"):
        bank.rows(["dog"])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("absent.npy", None, "no such class bank"),
        ("a.npy", b"\x93NUMPY\x01\x00", "not a whole .npy table"),
        ("a.safetensors", b"\x00" * 4, "not a whole class bank"),
    ],
)
def test_damaged_banks(tmp_path: Path, name: str, content: bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        read_bank(tmp_path / name)


def test_files_that_are_no_banks(tmp_path: Path) -> None:
    save_file({"table": torch.zeros(2, 4)}, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match="is no class bank"):
        read_bank(tmp_path / "a.safetensors")
    np.save(tmp_path / "one.npy", np.zeros(4, np.float16))
    with pytest.raises(DataError, match=r"embeddings are \(classes, numbers\)"):
        read_bank(tmp_path / "one.npy")
    bank = ClassBank(torch.zeros(2, 4), ("cat", "cat"))
    with pytest.raises(DataError, match="has 'cat' more than once"):
        read_bank(write_bank(bank, tmp_path / "b.safetensors"))


def test_lists_that_come_with_the_package() -> None:
    sizes = {name: len(bundled_names(name)) for name in ("lvis_v1", "coco", "objects365", "openimages")}
    assert sizes == {"lvis_v1": 1203, "coco": 80, "objects365": 365, "openimages": 500}
    assert bundled_names("lvis_v1")[0] == "aerosol_can"


def test_things_of_openimages_with_one_name_have_one_embedding(encoder: ClipText, tokenizer: ClipTokenizer) -> None:
    names = bundled_names("openimages")
    bank = make_bank(names, encoder, tokenizer, source="openimages")
    rows = {name: [row for row, other in enumerate(names) if other == name] for name in names}
    assert {name for name, places in rows.items() if len(places) > 1} == {"Bench", "Mouse"}
    assert len(bank) == len(names)
    for first, second in (rows["Bench"], rows["Mouse"]):
        assert torch.equal(bank.table[first], bank.table[second])
    with pytest.raises(PromptError, match="'Bench' comes more than once"):
        make_bank(names, encoder, tokenizer, source="mine.txt")


def test_weights_of_openclip(encoder: ClipText, tmp_path: Path) -> None:
    state = {**encoder.state_dict(), "visual.proj": torch.zeros(2), "logit_scale": torch.zeros(())}
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "clip.pt")
    assert load_clip_text(tmp_path / "clip.pt").digest() == encoder.digest()
    assert load_clip_text(tmp_path / "clip.pt", "gelu").digest() != encoder.digest()
    torch.save({"visual.proj": torch.zeros(2)}, tmp_path / "picture.pt")
    with pytest.raises(WeightsError, match=r"is no text encoder of CLIP: token_embedding\.weight"):
        load_clip_text(tmp_path / "picture.pt")
    with pytest.raises(ConfigError, match="TEXT_ACTIVATION 'relu'"):
        load_clip_text(tmp_path / "clip.pt", "relu")


def test_the_command_makes_what_a_config_reads(
    encoder: ClipText, vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(encoder.state_dict(), tmp_path / "clip.pt")
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    words = ["--weight", str(tmp_path / "clip.pt"), "--tokenizer", str(vocabulary), "--out"]
    assert mrb.main(["bank", str(tmp_path / "names.txt"), *words, str(tmp_path / "bank.safetensors")]) == 0
    assert "3 names, 16 numbers each" in capsys.readouterr().out
    zero_shot: dict[str, Any] = {
        "WEIGHT_PATH": tmp_path / "bank.safetensors",
        "OBJECT_WEIGHT_PATH": "",
        "DIM": 16,
        "TEXT_TOKENIZER": vocabulary,
    }

    def config(**changes: object) -> Any:
        keys = {**zero_shot, **changes}
        opts = [word for key, value in keys.items() for word in (f"MODEL.ZEROSHOT_CLS.{key}", str(value))]
        return load_cfg(None, opts=["MODEL.META_ARCHITECTURE", "DecolaDeformableDETR", *opts])

    cfg = config()
    assert class_names(cfg) == NAMES
    table = build_class_table(cfg, 3)
    assert torch.equal(table, read_bank(tmp_path / "bank.safetensors").table)
    embedded = config(WEIGHT_PATH="", NAMES_FILE=tmp_path / "names.txt", TEXT_WEIGHT=tmp_path / "clip.pt")
    torch.testing.assert_close(build_class_table(embedded, 3), table)
    assert build_object_row(embedded).any()
    assert not build_class_table(config(WEIGHT_PATH="absent.npy"), 3).any()
    with pytest.raises(ConfigError, match=r"has the shape \(3, 16\), the config wants \(4, 16\)"):
        build_class_table(cfg, 4)
    (tmp_path / "other.txt").write_text("dog\ncat\naerosol_can\n")
    with pytest.raises(ConfigError, match="the classes in another order"):
        build_class_table(config(NAMES_FILE=tmp_path / "other.txt"), 3)
