"""The sampler of a training, from its config and its sets."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.data.label_set import LabelSet, label_classes
from maskrcnn_benchmark.data.pictures import header_size
from maskrcnn_benchmark.data.sample import TrainPictures
from maskrcnn_benchmark.data.samplers import SAMPLERS, EpochSampler
from maskrcnn_benchmark.data.set_samplers import (
    BatchSampler,
    MultiSetSampler,
    RepeatFactorSampler,
    repeat_factors,
    set_weights,
)
from maskrcnn_benchmark.errors import ConfigError

logger = logging.getLogger(__name__)


def build_sampler(
    cfg: Cfg, sets: Sequence[object], pictures: Sequence[TrainPictures], copies: Sequence[int], batch_size: int
) -> BatchSampler:
    """What ``DATALOADER.SAMPLER`` says, over the samples of all sets, each as often as it has copies.

    Raises:
        ConfigError: the sampler needs sets of another kind, or a key has not one value for each set.
    """
    name, seed = cfg.DATALOADER.SAMPLER, cfg.SOLVER.SEED
    by_aspect = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    groups = [upright(part) if by_aspect else np.zeros(len(part), dtype=bool) for part in pictures]
    upright_ones = np.concatenate([np.tile(group, copy) for group, copy in zip(groups, copies, strict=True)])
    parts = _parts(cfg, len(upright_ones))
    if name == "shared":
        return EpochSampler(upright_ones, batch_size, seed, parts=parts)
    if name in SAMPLERS:
        return SAMPLERS[name](upright_ones, batch_size, seed)
    labelled = [part for part in sets if isinstance(part, LabelSet)]
    if len(labelled) < len(sets):
        source = cfg.source("DATALOADER.SAMPLER")
        raise ConfigError(
            f"DATALOADER.SAMPLER {name!r} ({source}) is for detectors with a list of classes, such as "
            f"DecolaDeformableDETR: use {' or '.join(SAMPLERS)}"
        )
    if name == "repeat_factor":
        classes = [row for part, copy in zip(labelled, copies, strict=True) for row in label_classes(part) * copy]
        factors = repeat_factors(classes, cfg.DATALOADER.REPEAT_THRESHOLD)
        return RepeatFactorSampler(upright_ones, batch_size, seed, factors)
    if any(copy > 1 for copy in copies):
        raise ConfigError("DATALOADER.SAMPLER multi_dataset: DATALOADER.DATASET_RATIO says how often a set is seen")
    return _multi(cfg, labelled, ~upright_ones, batch_size, seed)


def _parts(cfg: Cfg, samples: int) -> int:
    parts: int = cfg.DATALOADER.EPOCH_CHUNKS
    told = f"DATALOADER.EPOCH_CHUNKS {parts} ({cfg.source('DATALOADER.EPOCH_CHUNKS')})"
    if not 1 <= parts <= samples:
        raise ConfigError(f"{told}: give 1, or into how many parts the {samples} samples are to be cut")
    if parts > 1 and cfg.DATALOADER.SAMPLER != "shared":
        raise ConfigError(f"{told}: goes with DATALOADER.SAMPLER shared, not with {cfg.DATALOADER.SAMPLER}")
    return parts


def _multi(cfg: Cfg, sets: Sequence[LabelSet], wide: np.ndarray, batch_size: int, seed: int) -> MultiSetSampler:
    loader, count = cfg.DATALOADER, len(sets)
    ratio, rare_first = loader.DATASET_RATIO, loader.USE_RFS
    own = loader.USE_DIFF_BS_SIZE
    sizes = loader.DATASET_BS if own else (batch_size,) * count
    for key, values in {"DATASET_RATIO": ratio, "USE_RFS": rare_first, "DATASET_BS": sizes}.items():
        if len(values) != count:
            source = cfg.source(f"DATALOADER.{key}")
            raise ConfigError(
                f"DATALOADER.{key} {values!r} ({source}) must have {count} values, one for each set of DATASETS.TRAIN"
            )
    if min(*ratio, *sizes, 1) <= 0:
        raise ConfigError(f"DATALOADER.DATASET_RATIO {ratio!r} and DATALOADER.DATASET_BS {sizes!r} must be above 0")
    factors = [
        repeat_factors(label_classes(part), loader.REPEAT_THRESHOLD) if rare else None
        for part, rare in zip(sets, rare_first, strict=True)
    ]
    lengths = [len(part) for part in sets]
    sources = np.repeat(np.arange(count), lengths)
    weights = set_weights(factors, lengths, ratio)
    return MultiSetSampler(weights, sources, wide, tuple(sizes), seed, shared=not own)


def upright(dataset: TrainPictures) -> np.ndarray:
    """(N,) bool, height at least width; from the picture itself where the annotations do not tell."""
    sizes = dataset.sizes.copy()
    unknown = np.flatnonzero((sizes == 0).any(axis=1))
    for index in unknown.tolist():
        sizes[index] = header_size(dataset.file(index)) or (0, 1)
    if len(unknown):
        number = len(unknown)
        logger.info("%s: the annotations give no size for %d pictures: read from the pictures", dataset.name, number)
    return np.asarray(sizes[:, 0] >= sizes[:, 1])
