"""CLIP's byte-pair tokenizer from files that are already here."""

from __future__ import annotations

import gzip
import html
import json
import os
import zlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from maskrcnn_benchmark.errors import PromptError
from maskrcnn_benchmark.text.tokenizer import folders_of

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 48894  # of the released file, which has more lines
WORD_END = "</w>"
NAME = "clip-vit-base-patch32"
RELEASED = ("bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt")
FILES = (*RELEASED, "tokenizer.json", "vocab.json and merges.txt")
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
    """Text to token ids, between a start and an end token, then zeros.

    Text is taken in lower case, in Unicode's form NFC, with HTML's ``&amp;`` and the like resolved.
    """

    def __init__(self, backend: Tokenizer, name: str) -> None:
        backend.no_padding()
        backend.no_truncation()
        self.name, self._backend = name, backend

    def encode(self, texts: Sequence[str], length: int = 77) -> Tensor:
        """(P, length) int64.

        Raises:
            PromptError: a text has more tokens; nothing is cut.
        """
        found = self._backend.encode_batch([html.unescape(html.unescape(text)).strip() for text in texts])
        ids = torch.zeros(len(found), length, dtype=torch.int64)
        for row, (text, encoding) in enumerate(zip(texts, found, strict=True)):
            if len(encoding.ids) > length:
                raise PromptError(f"{text[:60]!r}... takes {len(encoding.ids)} tokens, CLIP reads {length}: shorten it")
            ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
        return ids


def load_clip_tokenizer(path: str | Path = "") -> ClipTokenizer:
    """The tokenizer of a file, or of a folder that has one of :data:`FILES`.

    Args:
        path: "": a folder ``clip-vit-base-patch32`` in ``$MB_TOKENIZERS``, ``$MODEL`` or ``MODEL/``, then
            ``datasets/metadata`` here and below ``$DATASET``.

    Raises:
        PromptError: there is none, or it cannot be read.
    """
    places = _places(str(path))
    for place in places:
        if backend := _read(place):
            return ClipTokenizer(backend, str(place))
    looked = ", ".join(map(str, dict.fromkeys(places)))
    raise PromptError(
        f"the vocabulary of CLIP is not here: put {RELEASED[0]} (https://github.com/openai/CLIP/tree/main/clip), "
        f"{FILES[2]}, or {FILES[3]} into a folder and name it (MODEL.ZEROSHOT_CLS.TEXT_TOKENIZER); looked in {looked}"
    )


def _places(path: str) -> list[Path]:
    if path:
        return [Path(path).expanduser()]
    own = os.environ.get("DATASET")
    below = [Path(folder, "metadata") for folder in (own, "DATASET") if folder]
    return [*folders_of(NAME), Path("datasets/metadata"), *below]


def _read(place: Path) -> Tokenizer | None:
    """None: there are no such files."""
    folder = place if place.is_dir() else place.parent
    names = {place.name} if place.is_file() else {file.name for file in place.iterdir()} if place.is_dir() else set()
    try:
        if released := next((name for name in names if name in RELEASED or name.endswith(".txt.gz")), None):
            return _backend(*_released(folder / released))
        if "tokenizer.json" in names:
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        if {"vocab.json", "merges.txt"} <= names:
            vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
            return _backend(vocabulary, _pairs((folder / "merges.txt").read_text(encoding="utf-8").splitlines()))
    except PromptError:
        raise
    except Exception as error:  # the backend raises plain Exception for a file that it cannot read
        raise PromptError(f"{place}: cannot be read as CLIP's vocabulary: {str(error).splitlines()[0]}") from error
    return None


def _released(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of CLIP's own file: ids go to bytes, to bytes that end a word, to merges, in that order."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            merges = _pairs([line.rstrip("\n") for line in islice(file, MERGES + 1)])
    except (OSError, EOFError, zlib.error) as error:
        raise PromptError(f"{path}: is damaged ({error}): copy it again") from None
    if len(merges) != MERGES:
        raise PromptError(f"{path}: has {len(merges)} merges in place of {MERGES}: it is cut off, or is another file")
    letters = _letters()
    tokens = [*letters, *(letter + WORD_END for letter in letters), *("".join(pair) for pair in merges), START, END]
    return {token: number for number, token in enumerate(tokens)}, merges


def _pairs(lines: Sequence[str]) -> list[tuple[str, str]]:
    """The first line says the version."""
    pairs = [tuple(line.split()) for line in lines[1:] if line.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise PromptError("merges are no pairs of tokens: the file is damaged, or is no vocabulary of CLIP")
    return pairs  # type: ignore[return-value]


def _letters() -> list[str]:
    """A visible letter for each byte, visible bytes first: the first 256 tokens."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) for byte in visible] + [chr(256 + number) for number in range(len(hidden))]


def _backend(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    backend = Tokenizer(
        models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix=WORD_END, unk_token=END)
    )
    missing = [token for token in (START, END) if token not in vocabulary]
    if missing:
        raise PromptError(f"a vocabulary without {' and '.join(missing)} is not that of CLIP")
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.post_processor = processors.RobertaProcessing(
        (END, vocabulary[END]), (START, vocabulary[START]), trim_offsets=False, add_prefix_space=False
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (START, END)])
    return backend
