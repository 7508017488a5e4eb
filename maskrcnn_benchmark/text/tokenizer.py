"""Tokenizers from files that are already here: equal to the fast tokenizers of transformers, without importing it.

A folder holds ``tokenizer.json``, or ``vocab.json`` and ``merges.txt`` (RoBERTa), or ``vocab.txt`` (BERT).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Encoding, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from torch import Tensor

from maskrcnn_benchmark.errors import PromptError
from maskrcnn_benchmark.paths import repository_root

FILES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer_config.json")
HUB = {"roberta-base": "FacebookAI/roberta-base", "bert-base-uncased": "google-bert/bert-base-uncased"}
WANTED = {"roberta-base": "vocab.json and merges.txt", "bert-base-uncased": "vocab.txt"}

Config = dict[str, Any]


@dataclass(frozen=True)
class TokenizedText:
    """P texts as tokens, padded to one length L."""

    input_ids: Tensor  # (P, L) int64
    attention_mask: Tensor  # (P, L) int64, 1 = token
    encodings: tuple[Encoding, ...]

    def __len__(self) -> int:
        return len(self.encodings)

    def char_to_token(self, row: int, char: int) -> int | None:
        """The first token that covers a character, None for a character (or a place beyond the text) without token."""
        token: int | None = self.encodings[row].char_to_token(char) if char >= 0 else None
        return token

    def offsets(self, row: int) -> list[tuple[int, int]]:
        """[begin, end) characters of each token; special tokens have (0, 0)."""
        return list(self.encodings[row].offsets)


class Tokenizer:
    """Text to token ids, with start and end tokens."""

    def __init__(self, backend: Backend, name: str) -> None:
        backend.no_padding()
        backend.no_truncation()
        self.name, self._backend = name, backend
        self.pad_id = self._special("<pad>", "[PAD]")
        self.mask_id = self._special("<mask>", "[MASK]")
        self.vocab_size: int = backend.get_vocab_size()

    def encode(self, texts: Sequence[str], max_length: int | None = None, pad_to: int | None = None) -> TokenizedText:
        """Tokenise.

        Args:
            texts: P texts.
            max_length: Cut what is longer (counting start and end token); None: cut nothing.
            pad_to: Length of the rows; None: that of the longest text.
        """
        encodings = self._encode(texts, max_length)
        longest = max((len(e.ids) for e in encodings), default=0)
        length = longest if pad_to is None else pad_to
        if longest > length:
            raise ValueError(f"a text of {longest} tokens cannot be padded to {length}")
        ids = torch.full((len(encodings), length), self.pad_id)
        mask = torch.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
            mask[row, : len(encoding.ids)] = 1
        return TokenizedText(ids, mask, encodings)

    def count(self, text: str) -> int:
        """How many tokens a text takes, with start and end token."""
        return len(self._encode([text], None)[0].ids)

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text as the vocabulary writes them, without start and end."""
        tokens: list[str] = self._backend.encode(_checked(text), add_special_tokens=False).tokens
        return tokens

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens with it."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=False)
        return text

    def _encode(self, texts: Sequence[str], max_length: int | None) -> tuple[Encoding, ...]:
        texts = [_checked(text) for text in texts]
        if max_length is None:
            return tuple(self._backend.encode_batch(texts))
        self._backend.enable_truncation(max_length)
        try:
            return tuple(self._backend.encode_batch(texts))
        finally:
            self._backend.no_truncation()

    def _special(self, *spellings: str) -> int:
        for spelling in spellings:
            token: int | None = self._backend.token_to_id(spelling)
            if token is not None:
                return token
        raise PromptError(f"tokenizer {self.name!r} has no token {' or '.join(spellings)}: its vocabulary is another's")


def load_tokenizer(name_or_path: str | Path, download: bool = False) -> Tokenizer:
    """A tokenizer by folder or by name (``roberta-base``, ``bert-base-uncased``).

    Args:
        name_or_path: A folder with its files, or a name, looked for in ``$MB_TOKENIZERS/<name>``, ``MODEL/<name>`` and
            the Hugging Face cache.
        download: Fetch the files from the Hugging Face hub when none of these has them. Off: no network is used.

    Raises:
        PromptError: the files are not here, or cannot be read.
    """
    name = str(name_or_path)
    folders = folders_of(name)
    for folder in folders:
        if _complete(folder):
            return _read(folder, folder.name)
    cached = _from_hub(name, offline=True)
    if cached is None and download:
        cached = _from_hub(name, offline=False)
    if cached is not None:
        return _read(cached, name)
    raise PromptError(_missing(name, folders))


def folders_of(name: str) -> list[Path]:
    """Where the files of a tokenizer are looked for: the name as a path, then below the folders for such."""
    folders = [Path(name).expanduser()]
    if os.environ.get("MB_TOKENIZERS"):
        folders.append(Path(os.environ["MB_TOKENIZERS"], name))
    if os.environ.get("MODEL"):
        folders.append(Path(os.environ["MODEL"], name))
    root = repository_root()
    return [*folders, Path("MODEL", name), *([root / "MODEL" / name] if root else [])]


def _complete(folder: Path) -> bool:
    has = {file for file in FILES if (folder / file).is_file()}
    return "tokenizer.json" in has or "vocab.txt" in has or {"vocab.json", "merges.txt"} <= has


def _missing(name: str, folders: Sequence[Path]) -> str:
    wanted = WANTED.get(name, "tokenizer.json, or vocab.json and merges.txt, or vocab.txt")
    hub = f" (they are at https://huggingface.co/{HUB[name]})" if name in HUB else ""
    place = name if Path(name).is_absolute() else f"MODEL/{name} or $MB_TOKENIZERS/{name}"
    looked = ", ".join(str(folder) for folder in dict.fromkeys(folders))
    return (
        f"tokenizer {name!r} is not here: put {wanted}{hub} into {place}, or give the folder that has them "
        f"as MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE; looked in {looked} and the Hugging Face cache"
    )


def _from_hub(name: str, offline: bool) -> Path | None:
    """Folder of the hub's snapshot; None when it is not in the cache (``offline``)."""
    from huggingface_hub import snapshot_download  # slow to import, and seldom needed
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    error: Exception | None = None
    for repo in dict.fromkeys([HUB.get(name, name), name]):
        try:
            folder = Path(snapshot_download(repo, allow_patterns=list(FILES), local_files_only=offline))
        except (HFValidationError, LocalEntryNotFoundError, OSError) as reason:
            error = reason
            continue
        if _complete(folder):
            return folder
    if offline:
        return None
    reason_line = str(error or "it has no tokenizer files").strip().splitlines()[0]
    raise PromptError(f"tokenizer {name!r} cannot be downloaded: {reason_line}")


def _read(folder: Path, name: str) -> Tokenizer:
    try:
        config = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        if (folder / "tokenizer.json").is_file():
            backend = Backend.from_file(str(folder / "tokenizer.json"))
        elif (folder / "vocab.json").is_file():
            backend = _roberta(folder, config)
        else:
            backend = _bert(folder, config)
    except PromptError:
        raise
    except Exception as error:  # the backend raises plain Exception for a file that it cannot read
        raise PromptError(f"tokenizer files in {folder} cannot be read: {str(error).splitlines()[0]}") from error
    return Tokenizer(backend, name)


def _json(path: Path) -> Config:
    data: Config = json.loads(path.read_text(encoding="utf-8"))
    return data


def _roberta(folder: Path, config: Config) -> Backend:
    """Byte-level BPE."""
    prefix_space = bool(config.get("add_prefix_space", False))
    backend = Backend(
        models.BPE.from_file(
            str(folder / "vocab.json"),
            str(folder / "merges.txt"),
            continuing_subword_prefix="",
            end_of_word_suffix="",
        )
    )
    ids = _known(backend, folder, "<s>", "<pad>", "</s>", "<unk>", "<mask>")
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), trim_offsets=True, add_prefix_space=prefix_space
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ids])
    return backend


def _bert(folder: Path, config: Config) -> Backend:
    """WordPiece."""
    backend = Backend(models.WordPiece.from_file(str(folder / "vocab.txt"), unk_token="[UNK]"))
    ids = _known(backend, folder, "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
        lowercase=bool(config.get("do_lower_case", True)),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ids])
    return backend


def _known(backend: Backend, folder: Path, *tokens: str) -> dict[str, int]:
    ids: dict[str, int] = {token: index for token in tokens if (index := backend.token_to_id(token)) is not None}
    if missing := [token for token in tokens if token not in ids]:
        raise PromptError(
            f"tokenizer files in {folder} lack the tokens {', '.join(missing)}: the vocabulary is another's"
        )
    return ids


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(f"{text!r} is not valid Unicode text (half of a surrogate pair): correct the name") from None
    return text
