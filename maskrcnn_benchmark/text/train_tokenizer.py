"""A small byte-level BPE tokenizer of RoBERTa's kind, for data of one's own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # ids 0 to 4, as in RoBERTa


def train_tokenizer(texts: Iterable[str], folder: Path, vocab_size: int = 1000) -> Path:
    """Learn a vocabulary from ``texts`` and write it to ``folder`` in the files of roberta-base; returns the folder.

    The same texts give the same files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    tokenizer.save_model(str(folder))
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    config = {"model_type": "roberta", "vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
