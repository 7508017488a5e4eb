"""Training sets of BoxSup, Detic, DECOLA and CenterNet2: boxes with labels, or pictures with names only."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.config.defaults.decola import ARCHITECTURES
from maskrcnn_benchmark.data.catalog import Entry, find_path
from maskrcnn_benchmark.data.class_set import ClassSet
from maskrcnn_benchmark.data.classes import check_classes
from maskrcnn_benchmark.data.collate import Item, Note
from maskrcnn_benchmark.data.datasets.labelled import LabelledPictures, LabelOptions
from maskrcnn_benchmark.data.datasets.tar import TarPictures, tar_pictures
from maskrcnn_benchmark.data.draws import Draws
from maskrcnn_benchmark.data.label_transforms import (
    DetrAugment,
    EfficientDetResizeCrop,
    LabelTransform,
    ResizeShortestEdge,
    apply,
)
from maskrcnn_benchmark.data.missing import missing
from maskrcnn_benchmark.data.pictures import PictureError
from maskrcnn_benchmark.errors import ConfigError, DataError

__all__ = ["ARCHITECTURES", "LabelSet", "build_label_set"]

logger = logging.getLogger(__name__)

WEAK = ("imagenet_lvis", "imagenet_tar")
"""Kinds for names of what is in pictures; like any set used for names alone, their unreadable pictures are replaced."""
ENTRY_KEYS = {
    "coco": {"copies"},
    "lvis": {"copies"},
    "imagenet_lvis": {"copies"},
    "imagenet_tar": {"copies", "tar_files", "tar_index"},
}
"""Kind that such a detector can be trained with -> what an entry of the catalog may say besides its files."""
TRIES = 100  # at a picture that can be read


class LabelSet(ClassSet):
    """A data set with its augmentation.

    Args:
        dataset: Pictures with boxes, or with names.
        augment: From pictures to pixels.
        classes: Names of the labels 1, 2, ...
        forgiving: A picture that cannot be read is noted, and another one taken; else it is an error.
    """

    dataset: LabelledPictures

    def __init__(
        self, dataset: LabelledPictures, augment: LabelTransform, classes: tuple[str, ...], forgiving: bool = False
    ):
        self.dataset, self.augment, self.classes, self.forgiving = dataset, augment, classes, forgiving

    def item(self, index: int, draws: Draws) -> Item:
        """A picture, with everything random taken from ``draws``.

        Where only names are known its target has no boxes, but ``image_labels``.

        Raises:
            PictureError: it is missing or damaged.
        """
        notes: list[Note] = []
        while True:
            try:
                sample = self.dataset[index]
                break
            except PictureError as error:
                if not self.forgiving or len(notes) == TRIES:
                    raise
                notes.append(Note(f"{self.dataset.name}: unreadable pictures, for which others were taken", str(error)))
                index = int(draws.numpy.randint(len(self)))
        assert sample.target is not None
        steps = self.augment.plan(sample.image.height, sample.image.width, draws.numpy)
        pixels, target = apply(steps, sample.image, sample.target)
        if sample.note:
            notes.append(Note(f"{self.dataset.name}: odd pictures", f"{sample.meta.file}: {sample.note}"))
        return Item(pixels, target, notes=tuple(notes))


@dataclass(frozen=True)
class _Place:
    """Which of the sets of ``DATASETS.TRAIN`` a data set is."""

    number: int
    count: int

    def of(self, cfg: Cfg, key: str) -> object:
        """The value of a key that has one for each set.

        Raises:
            ConfigError: it has more or fewer.
        """
        values = cfg.DATALOADER[key]
        getattr(cfg.DATALOADER, key)  # so that the key counts as read
        if len(values) != self.count:
            raise ConfigError(
                f"DATALOADER.{key} {values!r} ({cfg.source(f'DATALOADER.{key}')}) must have {self.count} values, one "
                "for each set of DATASETS.TRAIN"
            )
        return values[self.number]


def build_label_set(cfg: Cfg, entry: Entry, number: int, count: int) -> LabelSet:
    """The training set of a catalog entry, which is set ``number``, from 0, of ``count``.

    Raises:
        ConfigError: the network has another number of classes, or a key has not one value for each set.
        DataError: files are missing or broken, or the entry is of another kind or has a key that nothing reads.
    """
    if entry.kind not in ENTRY_KEYS:
        raise DataError(
            f"data set {entry.name!r} is of kind {entry.kind!r}: {cfg.MODEL.META_ARCHITECTURE} can be trained with "
            f"{', '.join(ENTRY_KEYS)}"
        )
    for key in sorted(set(entry.options) - ENTRY_KEYS[entry.kind]):
        raise DataError(f"data set {entry.name!r}: nothing reads its key {key!r} when it is of kind {entry.kind!r}")
    place = _Place(number, count)
    options = LabelOptions(
        image_labels=_only_names(cfg, place),
        outlines=cfg.MODEL.MASK_ON,
        keep_empty=not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_score=cfg.DATALOADER.PSEUDO_SCORE_THRESH,
        by_address=entry.kind != "coco",  # whose file names are those of its folder
    )
    dataset = LabelledPictures(entry.images, entry.annotations, entry.name, options, _tars(entry))
    classes = tuple(dataset.names.values())
    check_classes(cfg, entry.name, classes)
    return LabelSet(dataset, _augment(cfg, place), classes, forgiving=options.image_labels or entry.kind in WEAK)


def report_missing(part: LabelSet) -> None:
    """Look for the pictures of a set.

    Raises:
        DataError: some are missing of a set that others cannot stand in for.
    """
    if part.dataset.tars is None and (told := missing(part.dataset)):
        if not part.forgiving:
            raise DataError(f"{part.dataset.name}: {told}: put it there, or take it out of the annotations")
        logger.warning("%s: %s: others will be taken in their place", part.dataset.name, told)


def label_classes(part: LabelSet) -> list[np.ndarray]:
    """(K,) labels of each picture."""
    return [part.dataset.classes_of(index) for index in range(len(part))]


def _only_names(cfg: Cfg, place: _Place) -> bool:
    """Whether a set has names only.

    Raises:
        ConfigError: it has, and batches could mix it with others.
    """
    if cfg.DATALOADER.SAMPLER != "multi_dataset":
        if cfg.DATASETS.WITH_IMAGE_LABELS:
            source = cfg.source("DATALOADER.SAMPLER")
            raise ConfigError(
                f"DATALOADER.SAMPLER {cfg.DATALOADER.SAMPLER!r} ({source}): with DATASETS.WITH_IMAGE_LABELS True each "
                "batch must be of one set: use multi_dataset"
            )
        return False
    known = place.of(cfg, "DATASET_ANN")
    if known not in ("box", "image"):
        source = cfg.source("DATALOADER.DATASET_ANN")
        raise ConfigError(f"DATALOADER.DATASET_ANN {known!r} ({source}) is not box or image")
    if known == "image" and not cfg.DATASETS.WITH_IMAGE_LABELS:
        raise ConfigError("DATALOADER.DATASET_ANN has image: set DATASETS.WITH_IMAGE_LABELS True")
    return known == "image"


def _augment(cfg: Cfg, place: _Place) -> LabelTransform:
    """The augmentation of a set; with several sets the sizes are its own."""
    several = cfg.DATALOADER.SAMPLER == "multi_dataset" and cfg.DATALOADER.USE_DIFF_BS_SIZE
    inputs, flip = cfg.INPUT, cfg.AUGMENT.FLIP_PROB_TRAIN
    if inputs.AUG == "EfficientDetResizeCrop":
        side: object = place.of(cfg, "DATASET_INPUT_SIZE") if several else inputs.TRAIN_SIZE
        scale: object = place.of(cfg, "DATASET_INPUT_SCALE") if several else inputs.SCALE_RANGE
        assert isinstance(side, int)
        assert isinstance(scale, tuple)
        return EfficientDetResizeCrop(side, scale, flip)
    if inputs.AUG == "ResizeShortestEdge" and several:
        sizes, largest = place.of(cfg, "DATASET_MIN_SIZES"), place.of(cfg, "DATASET_MAX_SIZES")
        assert isinstance(sizes, tuple)
        assert isinstance(largest, int)
        return ResizeShortestEdge(tuple(map(int, sizes)), largest, flip)
    sizes = inputs.MIN_SIZE_TRAIN if isinstance(inputs.MIN_SIZE_TRAIN, tuple) else (inputs.MIN_SIZE_TRAIN,)
    if inputs.AUG == "DETR":
        least, largest_crop = cfg.AUGMENT.CROP_SIZES
        return DetrAugment(
            sizes,
            inputs.MAX_SIZE_TRAIN,
            flip,
            crop=cfg.AUGMENT.CROP_PROB_TRAIN,
            crop_from=cfg.AUGMENT.CROP_FROM,
            crop_sizes=(least, largest_crop),
        )
    return ResizeShortestEdge(sizes, inputs.MAX_SIZE_TRAIN, flip, inputs.MIN_SIZE_TRAIN_SAMPLING)


def _tars(entry: Entry) -> TarPictures | None:
    if entry.kind != "imagenet_tar":
        return None
    where = f"data set {entry.name!r}"
    files = entry.options.get("tar_files")
    if not files:
        raise DataError(f"{where}: no tar_files, the list of its tar files")
    index = entry.options.get("tar_index")
    return tar_pictures(
        find_path(files, f"{where}: tar_files"), find_path(index, f"{where}: tar_index") if index else None
    )
