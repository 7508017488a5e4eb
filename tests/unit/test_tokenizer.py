"""Tokenizers: where they are found, what is said when they are not, and equality with transformers."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskrcnn_benchmark.errors import PromptError
from maskrcnn_benchmark.text.tokenizer import load_tokenizer
from tests.unit.tiny_tokenizers import write_bpe, write_wordpiece

TEXTS = [
    "person. traffic light. hot dog",
    "  two  spaces, (parens) [x] ^$ *+? \\d",
    "Café ÉTÉ 東京 العربية 🐕‍🦺 zero\u200bwidth nbsp\u00a0here",
    "",
    " ",
    "a <mask> and [MASK] </s> [SEP]",
]


@pytest.fixture(params=[write_bpe, write_wordpiece], ids=["roberta", "bert"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return request.param(tmp_path / "tiny")


def theirs(folder: Path):
    transformers = pytest.importorskip("transformers")
    kind = transformers.BertTokenizerFast if (folder / "vocab.txt").is_file() else transformers.RobertaTokenizerFast
    return kind.from_pretrained(folder, local_files_only=True)


def test_same_tokens_as_transformers(folder: Path) -> None:
    expected, ours = theirs(folder)(TEXTS, return_offsets_mapping=True), load_tokenizer(folder)
    got = ours.encode(TEXTS)
    for row, text in enumerate(TEXTS):
        length = int(got.attention_mask[row].sum())
        assert got.input_ids[row, :length].tolist() == expected["input_ids"][row]
        assert got.input_ids[row, length:].eq(ours.pad_id).all()
        assert got.offsets(row) == [tuple(pair) for pair in expected["offset_mapping"][row]]
        assert [got.char_to_token(row, i) for i in range(len(text) + 2)] == [
            expected.char_to_token(row, i) for i in range(len(text) + 2)
        ]
        assert ours.count(text) == len(expected["input_ids"][row])
        assert ours.tokenize(text) == theirs(folder).tokenize(text)


def test_cuts_and_pads_as_transformers(folder: Path) -> None:
    ours, text = load_tokenizer(folder), ["dog " * 30, "cat"]
    expected = theirs(folder)(text, max_length=16, truncation=True, padding="max_length", return_tensors="pt")
    got = ours.encode(text, max_length=16, pad_to=16)
    assert got.input_ids.equal(expected["input_ids"])
    assert got.attention_mask.equal(expected["attention_mask"])
    assert got.char_to_token(0, 100) is None
    assert len(got) == 2
    assert ours.count(text[0]) > 16, "a cut text must not cut the next one"


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40))
def test_same_tokens_as_transformers_on_any_text(text: str, any_pair: tuple) -> None:
    for ours, expected in any_pair:
        assert ours.encode([text]).input_ids[0].tolist() == expected(text)["input_ids"]


@pytest.fixture(scope="module")
def any_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folders = [write(tmp_path_factory.mktemp("tiny")) for write in (write_bpe, write_wordpiece)]
    return tuple((load_tokenizer(folder), theirs(folder)) for folder in folders)


def test_a_saved_tokenizer_json_is_read_and_its_settings_are_not(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder)
    backend = tokenizer._backend
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    (tmp_path / "json").mkdir()
    backend.save(str(tmp_path / "json" / "tokenizer.json"))
    read = load_tokenizer(tmp_path / "json")
    assert read.encode(TEXTS).input_ids.equal(load_tokenizer(folder).encode(TEXTS).input_ids)
    assert (read.pad_id, read.mask_id, read.vocab_size) == (tokenizer.pad_id, tokenizer.mask_id, tokenizer.vocab_size)


def test_goes_to_a_worker_process(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert pickle.loads(pickle.dumps(tokenizer)).encode(TEXTS).input_ids.equal(tokenizer.encode(TEXTS).input_ids)


@pytest.mark.parametrize("place", ["MB_TOKENIZERS", "MODEL", "here"])
def test_found_by_name(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("MB_TOKENIZERS", "MODEL"):
        monkeypatch.delenv(variable, raising=False)
    root = tmp_path / "MODEL" if place == "here" else tmp_path / "elsewhere"
    if place != "here":
        monkeypatch.setenv(place, str(root))
    write_bpe(root / "tiny-roberta")
    assert load_tokenizer("tiny-roberta").name == "tiny-roberta"


def test_found_in_the_hugging_face_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    repository = tmp_path / "models--FacebookAI--roberta-base"
    write_bpe(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    hide_everything(tmp_path, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert load_tokenizer("roberta-base").name == "roberta-base"


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("roberta-base", "vocab.json and merges.txt (they are at https://huggingface.co/FacebookAI/roberta-base)"),
        ("bert-base-uncased", "vocab.txt (they are at https://huggingface.co/google-bert/bert-base-uncased)"),
        ("my/own", "tokenizer.json, or vocab.json and merges.txt, or vocab.txt"),
    ],
)
def test_missing_files_are_named(name: str, files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_everything(tmp_path, monkeypatch)
    with pytest.raises(PromptError) as caught:
        load_tokenizer(name)
    message = str(caught.value)
    assert f"tokenizer {name!r} is not here: put {files} into MODEL/{name} or $MB_TOKENIZERS/{name}" in message
    assert "\n" not in message


def test_download_says_why_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_everything(tmp_path, monkeypatch)
    with pytest.raises(PromptError, match="tokenizer 'roberta-base' cannot be downloaded: "):
        load_tokenizer("roberta-base", download=True)


def hide_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    for variable in ("MB_TOKENIZERS", "MODEL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("maskrcnn_benchmark.text.tokenizer.repository_root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)


def spoil_json(folder: Path) -> None:
    (folder / "vocab.json").write_text("{")


def other_vocabulary(folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (folder / "merges.txt").write_text("")


@pytest.mark.parametrize(
    ("spoil", "message"), [(spoil_json, "cannot be read: "), (other_vocabulary, "lack the tokens <s>, <pad>, </s>")]
)
def test_spoilt_files_are_named(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    spoil(write_bpe(tmp_path))
    with pytest.raises(PromptError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_half_a_surrogate_pair_is_named(folder: Path) -> None:
    with pytest.raises(PromptError, match=r"'dog \\ud83d' is not valid Unicode text"):
        load_tokenizer(folder).encode(["dog \ud83d"])
