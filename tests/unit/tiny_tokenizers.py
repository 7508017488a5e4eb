"""Tokenizer files of a few hundred tokens, for tests without the released ones."""

from __future__ import annotations

from pathlib import Path

from maskrcnn_benchmark.text.train_tokenizer import train_tokenizer

WORDS = (
    "person bicycle car traffic light fire hydrant stop sign container number container fish jellyfish star starfish "
    "dog hot dog cat wine glass café bow shark penguin which is black and white the street"
)


def write_bpe(folder: Path) -> Path:
    """vocab.json and merges.txt in RoBERTa's form."""
    return train_tokenizer([WORDS] * 2, folder, vocab_size=400)


def write_wordpiece(folder: Path) -> Path:
    """vocab.txt in BERT's form."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    words = sorted(set(WORDS.replace("é", "e").split()))
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    return folder
