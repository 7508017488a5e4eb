"""Training data of a detector: from ``DATASETS.TRAIN`` to batches."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.data.build_sampler import build_sampler
from maskrcnn_benchmark.data.catalog import ONE_FILE, Entry, find_path, resolve
from maskrcnn_benchmark.data.class_set import ClassSet, build_class_set
from maskrcnn_benchmark.data.collate import Item
from maskrcnn_benchmark.data.combine import Combined
from maskrcnn_benchmark.data.datasets.coco_grounding import CocoGrounding
from maskrcnn_benchmark.data.datasets.mdetr import MdetrDataset
from maskrcnn_benchmark.data.datasets.tsv import TsvDataset
from maskrcnn_benchmark.data.draws import rng_for
from maskrcnn_benchmark.data.label_set import ARCHITECTURES as LABELLED
from maskrcnn_benchmark.data.label_set import LabelSet, build_label_set, report_missing
from maskrcnn_benchmark.data.missing import refuse_missing
from maskrcnn_benchmark.data.modulated_set import ARCHITECTURES, ModulatedSet, build_modulated_set
from maskrcnn_benchmark.data.sample import TrainPictures
from maskrcnn_benchmark.data.samplers import EpochSampler
from maskrcnn_benchmark.data.set_samplers import BatchSampler, MultiSetSampler, for_process
from maskrcnn_benchmark.data.train_loader import ItemSource, TrainLoader
from maskrcnn_benchmark.data.train_set import TextSettings, TrainSet
from maskrcnn_benchmark.data.transforms import ColourJitter, Normalise, TrainTransform
from maskrcnn_benchmark.data.wording import Captions, ClassOptions, Wording, word_classes
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.modeling.interface import Batch
from maskrcnn_benchmark.text.class_bank import plain_name
from maskrcnn_benchmark.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

AnySet = TrainSet | ClassSet | ModulatedSet

CAPTIONED = ("mixed", "flickr", "refexp")  # kinds that bring their own text
NAMED = ("coco", "coco_grounding", "tsv")  # kinds whose class names become one
ENTRY_KEYS = {kind: {"augment", "copies", "vg_img_dir", "entities", "split"} for kind in CAPTIONED}
"""Further keys that an entry of a kind may have; of other kinds: augment and copies."""
AUGMENTED = (
    "FLIP_PROB_TRAIN",
    "VERTICAL_FLIP_PROB_TRAIN",
    "MULT_MIN_SIZE_TRAIN",
    "BRIGHTNESS",
    "CONTRAST",
    "SATURATION",
    "HUE",
)
"""Keys of ``AUGMENT`` that an entry may have values of its own for, under ``augment``."""


@dataclass(frozen=True)
class Plan:
    """How much there is to train on.

    Attributes:
        sets: Name, pictures and copies in an epoch of each data set.
        samples: Of an epoch, copies counted.
        batch_size: Of all processes together.
        batches: Of an epoch.
        sizes: Samples of a process in a batch of each set, where each batch is of one set.
        parts: Of the samples; an epoch is one of them.
    """

    sets: tuple[tuple[str, int, int], ...]
    samples: int
    batch_size: int
    batches: int
    sizes: tuple[int, ...] = ()
    parts: int = 1

    def __str__(self) -> str:
        parts = [f"{name} {count}{f' x {copies}' if copies > 1 else ''}" for name, count, copies in self.sets]
        left = self.samples // self.parts - self.batches * self.batch_size
        rest = f"; {left} sample{'s' * (left > 1)} of each epoch, others every time, fill no batch" if left > 0 else ""
        rest = "; there are too few samples for a batch, they are repeated in it" if left < 0 else rest
        sets = ", ".join(parts)
        if self.sizes:
            sizes = " or ".join(map(str, self.sizes))
            return (
                f"{self.samples} samples ({sets}): about {self.batches} batches of {sizes} in an epoch, of one set each"
            )
        sets += f") in {self.parts} parts (an epoch is one of them" if self.parts > 1 else ""
        return f"{self.samples} samples ({sets}): {self.batches} batches of {self.batch_size} in an epoch{rest}"


class TrainingData(ItemSource):
    """All data sets of a training as one.

    Args:
        sets: The data sets.
        copies: How often each of them is in an epoch.
        sampler: Which samples make up which batch.
        batch_size: Samples of all processes in a step.
        seed: Of everything random.
        normalise: From uint8 pixels to the input of the network.
        divisibility: The sides of a batch are multiples of this.
        workers: Processes that read ahead.

    Attributes:
        classes: Names of the labels 1, 2, ..., for a detector that reads no text; none where texts tell them.
    """

    def __init__(
        self,
        sets: Sequence[AnySet],
        copies: Sequence[int],
        sampler: BatchSampler,
        batch_size: int,
        seed: int,
        normalise: Normalise,
        divisibility: int = 32,
        workers: int = 0,
    ):
        self.sets, self.seed, self.normalise = tuple(sets), seed, normalise
        self.divisibility, self.workers = divisibility, workers
        self._combined = Combined([len(part) for part in sets], copies)
        self._sampler = sampler
        self.classes: tuple[str, ...] = next((part.classes for part in sets if isinstance(part, ClassSet)), ())
        self.plan = Plan(
            sets=tuple((part.dataset.name, len(part), copy) for part, copy in zip(sets, copies, strict=True)),
            samples=len(self._combined),
            batch_size=batch_size,
            batches=len(sampler),
            sizes=sampler.sizes if isinstance(sampler, MultiSetSampler) else (),
            parts=sampler.parts if isinstance(sampler, EpochSampler) else 1,
        )

    def item(self, epoch: int, index: int) -> Item:
        """A sample; equal for equal seed, epoch and index, whoever reads it.

        Raises:
            PictureError: its picture is missing or damaged.
        """
        number, place = self._combined.locate(index)
        return self.sets[number].item(place, rng_for(self.seed, epoch, index))

    def loader(
        self,
        epoch: int,
        start: int = 0,
        world: int = 1,
        rank: int = 0,
        endless: bool = False,
        workers: int | None = None,
        pin: bool = False,
    ) -> TrainLoader:
        """The batches of an epoch, from step ``start`` on, for one of ``world`` processes; see :class:`TrainLoader`.

        Raises:
            ConfigError: the batch cannot be shared by so many processes.
        """
        sampler = for_process(self._sampler, world, rank)
        return TrainLoader(self, sampler, self.workers if workers is None else workers, epoch, start, endless, pin)

    def prepare(self, batch: Batch, device: torch.device | str) -> Batch:
        """A batch of a loader on its device, normalised there: pixels travel as single bytes."""
        batch = batch.to(device)
        return replace(batch, images=self.normalise(batch.images))


def build_training_data(cfg: Cfg, tokenizer: Tokenizer | None, batch_size: int | None = None) -> TrainingData:
    """The training data of a config, with everything checked that can be before the first picture is read.

    Args:
        cfg: Config with the task file and the command line merged in.
        tokenizer: The network's; None: it reads no text.
        batch_size: Samples of all processes in a step; None: ``SOLVER.IMS_PER_BATCH``.

    Raises:
        ConfigError: keys do not fit each other or the data.
        DataError: files are missing or broken; the message names file and place.
        PromptError: the class names do not make a prompt.
    """
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN names no data set: give --task_config, or set DATASETS.TRAIN \"('name',)\"")
    sets: list[AnySet] = []
    copies = []
    for number, name in enumerate(cfg.DATASETS.TRAIN):
        entry = resolve(cfg, name, "train")
        made = _build_set(cfg, entry, number, tokenizer)
        for note in made.dataset.notes:
            logger.warning("%s: %s", made.dataset.annotations, note)
        if isinstance(made, LabelSet):
            report_missing(made)
        elif entry.kind not in ONE_FILE:
            refuse_missing(made.dataset)
        sets.append(made)
        copies.append(_copies(cfg, entry))
    _refuse_other_classes(sets)
    batch_size = cfg.SOLVER.IMS_PER_BATCH if batch_size is None else batch_size
    pictures = [part.dataset for part in sets]
    data = TrainingData(
        sets,
        copies,
        build_sampler(cfg, sets, pictures, copies, batch_size),
        batch_size=batch_size,
        seed=cfg.SOLVER.SEED,
        normalise=build_normalise(cfg),
        divisibility=cfg.DATALOADER.SIZE_DIVISIBILITY,
        workers=cfg.DATALOADER.NUM_WORKERS,
    )
    logger.info("training data: %s", data.plan)
    return data


def build_normalise(cfg: Cfg) -> Normalise:
    """From uint8 pixels to the input of the network of a config, in training."""
    mean, std = tuple(cfg.INPUT.PIXEL_MEAN), tuple(cfg.INPUT.PIXEL_STD)
    return Normalise(mean, std, cfg.INPUT.TO_BGR255, detectron2=cfg.INPUT.FORMAT == "RGB")


def _build_transform(cfg: Cfg, entry: Entry) -> TrainTransform:
    """What is done to the pictures of an entry: by the config, and by what the entry says itself, which wins.

    Raises:
        ConfigError: what the entry says is not about :data:`AUGMENTED`, or of a wrong type or size.
    """
    own, where = entry.options.get("augment", {}), f"DATASETS.REGISTER.{entry.name}.augment"
    if not isinstance(own, Mapping):
        raise ConfigError(f"{where} is {own!r}: give keys of AUGMENT with their values, of {', '.join(AUGMENTED)}")
    for key in sorted(set(own) - set(AUGMENTED)):
        raise ConfigError(f"{where}: {key!r} is not one of {', '.join(AUGMENTED)}")
    if own:
        cfg = cfg.override({f"AUGMENT.{key}": value for key, value in own.items()}, where)
    sizes = cfg.AUGMENT.MULT_MIN_SIZE_TRAIN or cfg.INPUT.MIN_SIZE_TRAIN
    return TrainTransform(
        min_sizes=sizes if isinstance(sizes, tuple) else (sizes,),
        max_size=cfg.INPUT.MAX_SIZE_TRAIN,
        flip=cfg.AUGMENT.FLIP_PROB_TRAIN,
        flip_down=cfg.AUGMENT.VERTICAL_FLIP_PROB_TRAIN,
        jitter=ColourJitter(cfg.AUGMENT.BRIGHTNESS, cfg.AUGMENT.CONTRAST, cfg.AUGMENT.SATURATION, cfg.AUGMENT.HUE),
    )


def _build_set(cfg: Cfg, entry: Entry, number: int, tokenizer: Tokenizer | None) -> AnySet:
    """The training set of an entry, in the form that the detector of the config learns from."""
    if cfg.MODEL.META_ARCHITECTURE in LABELLED:
        return build_label_set(cfg, entry, number, len(cfg.DATASETS.TRAIN))
    if tokenizer is None:
        return build_class_set(cfg, entry, _build_transform(cfg, entry))
    if cfg.MODEL.META_ARCHITECTURE in ARCHITECTURES:
        return build_modulated_set(cfg, entry, tokenizer)
    return _text_set(cfg, entry, _build_transform(cfg, entry), tokenizer)


def _refuse_other_classes(sets: Sequence[AnySet]) -> None:
    """A label must mean the same in all sets of a detector that knows its classes by number."""
    numbered = [part for part in sets if isinstance(part, ClassSet)]
    for part in numbered[1:]:
        pairs = zip(numbered[0].classes, part.classes, strict=True)
        differ = [(own, other) for own, other in pairs if plain_name(own) != plain_name(other)]
        if differ:
            raise ConfigError(
                f"DATASETS.TRAIN: a class is {differ[0][0]!r} in {numbered[0].dataset.name!r} and {differ[0][1]!r} in "
                f"{part.dataset.name!r}: their classes must be the same, in the same order"
            )


def _text_set(cfg: Cfg, entry: Entry, transform: TrainTransform, tokenizer: Tokenizer) -> TrainSet:
    """The training set of an entry, with texts."""
    fuse = cfg.MODEL.DYHEAD.FUSE_CONFIG
    text = TextSettings(
        tokenizer,
        length=cfg.MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN,
        hide=fuse.MLM_LOSS,
        label_tokens=fuse.USE_SHALLOW_CONTRASTIVE_LOSS,
    )
    dataset = _read(cfg, entry)
    keep_words = fuse.NO_MASK_FOR_GOLD if entry.kind in CAPTIONED else fuse.NO_MASK_FOR_OD
    return TrainSet(dataset, _wording(cfg, entry, dataset, tokenizer), transform, text, keep_words)


def _read(cfg: Cfg, entry: Entry) -> TrainPictures:
    """The reader of an entry.

    Raises:
        DataError: it is of a kind without words, or has a key that nothing reads.
    """
    if entry.kind not in (*CAPTIONED, *NAMED):
        raise DataError(
            f"data set {entry.name!r} is of kind {entry.kind!r}: a detector that reads text can be trained with "
            f"{', '.join((*NAMED, *CAPTIONED))}"
        )
    for key in set(entry.options) - ENTRY_KEYS.get(entry.kind, {"augment", "copies"}):
        raise DataError(f"data set {entry.name!r}: nothing reads its key {key!r} when it is of kind {entry.kind!r}")
    shots, clipped = cfg.DATASETS.FEW_SHOT, not cfg.DATASETS.DISABLE_CLIP_TO_IMAGE
    if entry.kind in ("coco", "coco_grounding"):
        override = cfg.DATASETS.OVERRIDE_CATEGORY if cfg.DATASETS.USE_OVERRIDE_CATEGORY else None
        seed = _shuffle_seed(cfg, entry) if shots else 0
        return CocoGrounding(entry.images, entry.annotations, entry.name, override, shots, seed, clipped)
    if shots:
        logger.warning(
            "%s: DATASETS.FEW_SHOT chooses among classes; this set has captions, and stays whole", entry.name
        )
    if entry.kind == "tsv":
        return TsvDataset(entry.annotations, entry.name, clipped)
    vg = entry.options.get("vg_img_dir")
    vg_images = find_path(vg, f"data set {entry.name!r}: vg_img_dir") if vg else None
    return MdetrDataset(entry.images, entry.annotations, entry.name, vg_images)


def _shuffle_seed(cfg: Cfg, entry: Entry) -> int:
    """The seed of the few-shot choice, which the original heeds for plain detection sets alone."""
    seed: int = cfg.DATASETS.SHUFFLE_SEED
    if seed == 0 or entry.kind == "coco" or cfg.DATASETS.FEW_SHOT_SHUFFLE:
        return seed
    logger.warning(
        "%s: DATASETS.SHUFFLE_SEED %d does not change the few-shot choice of a set read as grounding, as in the "
        "original; DATASETS.FEW_SHOT_SHUFFLE True makes it do so",
        entry.name,
        seed,
    )
    return 0


def _wording(cfg: Cfg, entry: Entry, dataset: TrainPictures, tokenizer: Tokenizer) -> Wording:
    if entry.kind in CAPTIONED:
        return Captions()
    assert isinstance(dataset, (CocoGrounding, TsvDataset))
    data = cfg.DATASETS
    sampled = entry.kind == "tsv" or data.SPECIAL_SAFEGUARD_FOR_COCO_GROUNDING
    options = ClassOptions(
        separator=data.SEPARATION_TOKENS,
        max_tokens=cfg.MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN,
        caption_prompt=data.CAPTION_PROMPT if data.USE_CAPTION_PROMPT and entry.kind != "tsv" else None,
        with_opening=data.ADD_DET_PROMPT,
        shuffled=not data.DISABLE_SHUFFLE,
        most_negatives=data.RANDOM_SAMPLE_NEG if sampled else -1,
        control=tuple(data.CONTROL_PROB) if entry.kind == "tsv" else None,
        max_num_labels=cfg.TEST.MDETR_STYLE_AGGREGATE_CLASS_NUM if entry.kind == "tsv" else -1,
    )
    return word_classes(dataset.name, dataset.names, tokenizer, options, sampled, tabular=entry.kind == "tsv")


def _copies(cfg: Cfg, entry: Entry) -> int:
    """How often a data set is in an epoch: by the key that its entry names, or ``DATASETS.GENERAL_COPY``."""
    key = str(entry.options.get("copies", "GENERAL_COPY"))
    if key not in cfg.DATASETS:
        raise ConfigError(f"data set {entry.name!r}: copies names {key!r}, which is no key of DATASETS")
    number: int = getattr(cfg.DATASETS, key)
    if number == -1:
        return 1
    if number < 1:
        raise ConfigError(
            f"DATASETS.{key} is {number} ({cfg.source(f'DATASETS.{key}')}): give -1 (once), or a number from 1"
        )
    return number
