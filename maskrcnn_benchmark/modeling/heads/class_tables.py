"""Embeddings of class names from the files that a config names."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from maskrcnn_benchmark.checkpoint.clip import load_clip_text
from maskrcnn_benchmark.checkpoint.io import find_weights
from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.paths import repository_root
from maskrcnn_benchmark.text.class_bank import BUNDLED, ClassBank, bundled_names, make_bank, read_bank, read_names
from maskrcnn_benchmark.text.clip_tokenizer import load_clip_tokenizer

logger = logging.getLogger(__name__)

CLASSES, OBJECT = "MODEL.ZEROSHOT_CLS.WEIGHT_PATH", "MODEL.ZEROSHOT_CLS.OBJECT_WEIGHT_PATH"
NAMES = "MODEL.ZEROSHOT_CLS.NAMES_FILE"
OBJECT_NAME = "object"


def build_class_table(cfg: Cfg, classes: int) -> Tensor:
    """(C, E) float32: embeddings of the classes, of any length; zeros where their file is not there, and weights may
    bring them. With ``NAMES_FILE`` and ``TEXT_WEIGHT``, the names are embedded.

    Raises:
        ConfigError: the file is damaged, or has other numbers of classes or of values than the config, or other names
            than ``NAMES_FILE``, or is by another encoder than ``TEXT_WEIGHT``, or of another template than ``PROMPT``.
        WeightsError, PromptError: the names cannot be embedded.
    """
    zero_shot, names = cfg.MODEL.ZEROSHOT_CLS, class_names(cfg)
    if zero_shot.NAMES_FILE and zero_shot.TEXT_WEIGHT:
        return _checked(cfg, NAMES, zero_shot.NAMES_FILE, embed(cfg, names), classes).table
    bank = _bank(cfg, CLASSES, zero_shot.WEIGHT_PATH, classes)
    if bank is None:
        return torch.zeros(classes, zero_shot.DIM)
    try:
        return bank.check(names or None).table
    except DataError as error:
        raise ConfigError(f"{NAMES} {zero_shot.NAMES_FILE!r} ({cfg.source(NAMES)}): {error}") from None


def build_object_row(cfg: Cfg) -> Tensor:
    """(1, E): that of the prompt for objects of any class.

    Raises:
        ConfigError, WeightsError, PromptError: as :func:`build_class_table`; or the row is made otherwise than the
            bank of the classes.
    """
    zero_shot = cfg.MODEL.ZEROSHOT_CLS
    embedded = zero_shot.NAMES_FILE and zero_shot.TEXT_WEIGHT
    classes = None if embedded else _found(zero_shot.WEIGHT_PATH)
    bank = _bank(cfg, OBJECT, zero_shot.OBJECT_WEIGHT_PATH, 1, classes)
    if bank is None and embedded:
        bank = embed(cfg, [OBJECT_NAME])
    return torch.zeros(1, zero_shot.DIM) if bank is None else bank.table


def class_names(cfg: Cfg) -> tuple[str, ...]:
    """Names of the classes that the network is built with, in their order; none where nothing says.

    Raises:
        PromptError: ``NAMES_FILE`` cannot be read, or names a class twice.
    """
    zero_shot = cfg.MODEL.ZEROSHOT_CLS
    if zero_shot.NAMES_FILE:
        path = _found(zero_shot.NAMES_FILE)
        return bundled_names(zero_shot.NAMES_FILE) if path is None else read_names(path)
    table = _found(zero_shot.WEIGHT_PATH)
    if table is not None and table.suffix != ".npy":
        return read_bank(table).names
    return next((bundled_names(BUNDLED[key]) for key in BUNDLED if Path(zero_shot.WEIGHT_PATH).name == key), ())


def embed(cfg: Cfg, names: list[str] | tuple[str, ...]) -> ClassBank:
    """Any names, by the text encoder of ``TEXT_WEIGHT``.

    Raises:
        WeightsError: its weights are not there, or are of another model.
        PromptError: the vocabulary is not there, or names cannot be told apart.
    """
    zero_shot = cfg.MODEL.ZEROSHOT_CLS
    encoder = load_clip_text(zero_shot.TEXT_WEIGHT, zero_shot.TEXT_ACTIVATION)
    tokenizer = load_clip_tokenizer(zero_shot.TEXT_TOKENIZER)
    return make_bank(names, encoder, tokenizer, zero_shot.PROMPT, zero_shot.NAMES_FILE or "names")


def _bank(cfg: Cfg, key: str, name: str, rows: int, beside: Path | None = None) -> ClassBank | None:
    """None: the file is not there. ``beside``: a bank that it is used together with."""
    path = _found(name)
    if path is None:
        logger.info("%s %r (%s) is not there: the embeddings must come with the weights", key, name, cfg.source(key))
        return None
    try:
        bank = _checked(cfg, key, name, read_bank(path), rows)
        if beside is not None:
            bank.check(other=read_bank(beside))
        return bank.check(other=_text_encoder(cfg)) if bank.encoder else bank
    except DataError as error:
        raise ConfigError(f"{key} {name!r} ({cfg.source(key)}): {error}") from None


def _text_encoder(cfg: Cfg) -> ClassBank | None:
    """A bank without rows by the encoder of ``TEXT_WEIGHT``; None: there is none.

    Raises:
        WeightsError: its weights are not there, or are of another model.
    """
    zero_shot = cfg.MODEL.ZEROSHOT_CLS
    if not zero_shot.TEXT_WEIGHT:
        return None
    path = find_weights(zero_shot.TEXT_WEIGHT)
    digest = _digest(path, zero_shot.TEXT_ACTIVATION, path.stat().st_mtime_ns)
    source = f"MODEL.ZEROSHOT_CLS.TEXT_WEIGHT {zero_shot.TEXT_WEIGHT!r} with TEXT_ACTIVATION and PROMPT"
    return ClassBank(torch.zeros(0, zero_shot.DIM), (), zero_shot.PROMPT, digest, source)


@lru_cache(maxsize=4)
def _digest(path: Path, activation: str, modified: int) -> str:
    """That of an encoder; ``modified`` tells a file that was written anew."""
    with torch.device("cpu"):  # also where a network is built without values
        return load_clip_text(path, activation).digest()


def _checked(cfg: Cfg, key: str, name: str, bank: ClassBank, rows: int) -> ClassBank:
    width = cfg.MODEL.ZEROSHOT_CLS.DIM
    if bank.table.shape != (rows, width):
        raise ConfigError(
            f"{key} {name!r} ({cfg.source(key)}) has the shape {tuple(bank.table.shape)}, the config wants "
            f"{(rows, width)}: rows are classes (NUM_CLASSES), columns MODEL.ZEROSHOT_CLS.DIM"
        )
    return bank


def _found(name: str) -> Path | None:
    if not name:
        return None
    root = repository_root()
    places = [Path(name), *([root / name] if root else [])]
    return next((place for place in places if place.is_file()), None)
