"""How often classes are drawn for the losses of a step: common ones more often."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.data.catalog import find_path
from maskrcnn_benchmark.data.check import read_json
from maskrcnn_benchmark.data.classes import class_count
from maskrcnn_benchmark.data.label_set import LabelSet
from maskrcnn_benchmark.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

KEY = "MODEL.FED_LOSS.CAT_FREQ_PATH"


def class_chances(cfg: Cfg, sets: Sequence[object]) -> Tensor | None:
    """(C,) float64, in proportion to the pictures of a class to a power; None: no classes are drawn.

    Args:
        cfg: ``MODEL.FED_LOSS``, whose file of counts goes before those of the data.
        sets: Of the training; the first one with boxes counts, else the first one: what its categories say
            (``image_count``, in files of LVIS that of all of LVIS train), or else its pictures. The log says which.

    Raises:
        ConfigError: the file of counts is for other classes.
        DataError: it cannot be read.
    """
    fed = cfg.MODEL.FED_LOSS
    if not fed.ENABLED:
        return None
    labelled = [part.dataset for part in sets if isinstance(part, LabelSet)]
    if fed.CAT_FREQ_PATH:
        pictures, source = _from_file(cfg), f"image_count in {cfg.MODEL.FED_LOSS.CAT_FREQ_PATH} ({KEY})"
    elif labelled:
        part = next((part for part in labelled if not part.options.image_labels), labelled[0])
        pictures = part.pictures_of_classes
        source = f"image_count in the categories of {part.annotations}" if part.told else f"the pictures of {part.name}"
    else:
        return None
    none = f"; {none} of them have none and are never drawn" if (none := pictures.count(0)) else ""
    logger.info("classes of the federated loss: drawn of %d, by %s%s", len(pictures), source, none)
    return torch.tensor(pictures, dtype=torch.float64) ** fed.FREQ_POWER


def _from_file(cfg: Cfg) -> list[int]:
    """The counts of a JSON list of categories with ``id`` and ``image_count``."""
    file = find_path(cfg.MODEL.FED_LOSS.CAT_FREQ_PATH, f"{KEY} ({cfg.source(KEY)})")
    rows = read_json(file)
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"id", "image_count"} <= row.keys() for row in rows
    ):
        raise DataError(f"{file}: is not a list of categories that have id and image_count ({KEY})")
    if len(rows) != class_count(cfg):
        raise ConfigError(
            f"{KEY} {cfg.MODEL.FED_LOSS.CAT_FREQ_PATH!r} ({cfg.source(KEY)}) has {len(rows)} classes, the network "
            f"{class_count(cfg)}: leave it empty to count the training annotations, or set MODEL.FED_LOSS.ENABLED False"
        )
    return [int(row["image_count"]) for row in sorted(rows, key=lambda row: row["id"])]
