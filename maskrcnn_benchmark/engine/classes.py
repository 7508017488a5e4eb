"""What the classes of a closed-vocabulary detector are called."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from maskrcnn_benchmark.checkpoint.io import read_classes
from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.data.catalog import resolve
from maskrcnn_benchmark.data.classes import check_classes, class_count
from maskrcnn_benchmark.data.datasets.coco import CocoDataset
from maskrcnn_benchmark.data.datasets.lvis import LvisDataset
from maskrcnn_benchmark.data.datasets.voc import VocDataset
from maskrcnn_benchmark.errors import DataError

logger = logging.getLogger(__name__)

CLASS_SETS: dict[str, Any] = {"coco": CocoDataset, "lvis": LvisDataset, "voc": VocDataset}
"""Kinds of data sets whose pictures are all asked for the same classes."""


def find_classes(cfg: Cfg, weights: Path) -> tuple[str, ...]:
    """Names of the labels 1, 2, ... of a detector.

    They are in the checkpoints of a training; for others, they are those of the first data set of ``DATASETS.TEST``.
    Where that is not here, classes are called by their numbers, and the log says so.

    Raises:
        ConfigError: the network has another number of classes.
    """
    if names := known_classes(cfg, weights):
        return names
    logger.warning("%s does not say what its classes are called: they go by their numbers", weights)
    return tuple(f"class {label}" for label in range(1, class_count(cfg) + 1))


def known_classes(cfg: Cfg, weights: Path) -> tuple[str, ...]:
    """As :func:`find_classes`; empty where nothing says.

    Raises:
        ConfigError: the network has another number of classes.
    """
    names, source = read_classes(weights), str(weights)
    if not names and cfg.DATASETS.TEST:
        source = cfg.DATASETS.TEST[0]
        try:
            entry = resolve(cfg, source, "test")
            dataset = CLASS_SETS[entry.kind].from_entry(entry)
            names = tuple(name for _, name in dataset.prompt_categories)
        except (DataError, KeyError) as error:
            logger.info("no class names from data set %r: %s", source, error)
    if names:
        check_classes(cfg, source, names)
    return names
