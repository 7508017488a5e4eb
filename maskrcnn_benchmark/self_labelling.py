"""Off-line self-labelling: the best box of each name that a picture has, found by phase 1 of DECOLA or by the
baseline, and kept in a file.

Pictures are seen at several sizes, as DECOLA's documents have it (https://github.com/janghyuncho/DECOLA); each size has
its own file, ``inference_<data set>/lvis_instances_results_minsize_<N>.json``, and the latest is also there without the
size in its name, as the original leaves it. ``tools/convert_predictions_to_pseudo_annotations.py`` takes it from there.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint.io import file_digest, find_weights
from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.data.catalog import resolve
from maskrcnn_benchmark.data.datasets.labelled import LabelledPictures
from maskrcnn_benchmark.data.label_set import build_label_set
from maskrcnn_benchmark.data.loader import EvalLoader, Loaded, eval_loader
from maskrcnn_benchmark.data.pseudo_annotations import sized, write_json
from maskrcnn_benchmark.data.transforms import EvalTransform
from maskrcnn_benchmark.engine.device import pick_device
from maskrcnn_benchmark.engine.distributed import World, detect_world, local_device
from maskrcnn_benchmark.engine.log import say_what_others_cannot
from maskrcnn_benchmark.engine.self_label import Teacher, load_teacher
from maskrcnn_benchmark.engine.shards import Found, PredictionStore, key_of
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.structures import Detections
from maskrcnn_benchmark.structures.boxes import rescale

logger = logging.getLogger(__name__)

RESULTS = "lvis_instances_results.json"
ARCHITECTURES = ("DecolaDeformableDETR", "DeformableDETR")
LEFT_OUT = ("MODEL", "SOLVER", "DATASETS", "INPUT", "TEST.CONDITIONED", "TEST.SELF_LABEL")
"""Keys that a config for training or scoring has, and the two kinds that say what is done here anyway."""


@dataclass(frozen=True)
class Work:
    """One data set at one size.

    Attributes:
        dataset: Pictures with names.
        loader: Reads them.
        out: The file of this size.
        key: Says what is found with which weights.
    """

    dataset: LabelledPictures
    loader: EvalLoader
    out: Path
    key: str

    @property
    def report(self) -> Path:
        return self.out.with_suffix(".report.json")

    @property
    def done(self) -> bool:
        """Whether the file is there, of the same pictures and weights."""
        if not self.out.is_file() or not self.report.is_file():
            return False
        return bool(json.loads(self.report.read_text(encoding="utf-8")).get("key") == self.key)


def self_label(
    config_file: str,
    weight: str | None = None,
    sizes: Sequence[int] = (),
    opts: Sequence[str] = (),
    dry_run: bool = False,
    strict: bool = False,
    local_rank: int | None = None,
) -> list[Path]:
    """Boxes for the pictures of ``DATASETS.TEST`` at several sizes; run again after an interruption, it goes on.

    Several processes share the pictures of each size; they meet in ``OUTPUT_DIR``.

    Args:
        config_file: Of phase 1, such as ``DECOLA_SELF_LABELING_Lbase_CLIP_R5021k_4x.yaml``, or of the baseline.
        weight: Its weights; default ``MODEL.WEIGHT``.
        sizes: Short sides of the network's input, pixels; none: ``INPUT.MIN_SIZE_TEST`` alone.
        opts: ``[KEY, VALUE, KEY, VALUE, ...]``.
        dry_run: Check everything but the network, and stop.
        strict: A key that was set and that nothing read is an error.
        local_rank: What an old launcher passes.

    Returns:
        The file of each size.

    Raises:
        UserError: anything that the user can mend.
    """
    given = load_cfg(config_file, opts=opts)
    cfg = _config(given, weight or given.MODEL.WEIGHT)
    world = detect_world(os.environ, local_rank)
    device = local_device(world, pick_device(cfg.MODEL.DEVICE))
    folder = cli.output_folder(cfg.OUTPUT_DIR)
    cli.start([given], folder if world.main else None)
    if not world.main:
        say_what_others_cannot()
    works = _plan(cfg, folder, tuple(sizes) or (cfg.INPUT.MIN_SIZE_TEST,))
    for work in works:
        logger.info("%d pictures of %s: %s", len(work.dataset), work.dataset.name, work.out)
    if dry_run:
        return [work.out for work in works]
    teacher = load_teacher(cfg, cfg.MODEL.DECOLA.SELF_LABEL.TEACHER_WEIGHT, device)
    cli.report_unread([given], strict, left_out=LEFT_OUT)
    for work in works:
        _label(work, teacher, device, world, cfg.TEST.SELF_LABEL.OUTPUT)
    return [work.out for work in works]


def _config(cfg: Cfg, weight: str) -> Cfg:
    """With what self-labelling needs.

    Raises:
        ConfigError: the network is another, there are no weights, or there is not one data set.
    """
    if cfg.MODEL.META_ARCHITECTURE not in ARCHITECTURES:
        key = "MODEL.META_ARCHITECTURE"
        raise ConfigError(
            f"{key} {cfg.MODEL.META_ARCHITECTURE!r} ({cfg.source(key)}): boxes for names are found by "
            f"{' and '.join(ARCHITECTURES)}; others can label pictures with `mrb label`"
        )
    if not weight:
        raise ConfigError("no weights to label with: give --weight FILE, or set MODEL.WEIGHT")
    if len(cfg.DATASETS.TEST) != 1:
        source = cfg.source("DATASETS.TEST")
        raise ConfigError(f"DATASETS.TEST {cfg.DATASETS.TEST!r} ({source}) must name the one data set to label")
    values: dict[str, object] = {
        "DATASETS.WITH_IMAGE_LABELS": True,
        "DATALOADER.SAMPLER": "multi_dataset",
        "DATALOADER.DATASET_ANN": ("image",),
        "DATALOADER.USE_DIFF_BS_SIZE": False,
        "MODEL.DECOLA.SELF_LABEL.TEACHER_WEIGHT": str(find_weights(weight)),
    }
    return cfg.override(values, "self-labelling")


def _plan(cfg: Cfg, folder: Path, sizes: Sequence[int]) -> list[Work]:
    if wrong := [size for size in sizes if size < 1]:
        raise ConfigError(f"--sizes {wrong[0]}: the short side of a picture is at least 1")
    entry = resolve(cfg, cfg.DATASETS.TEST[0], "train")
    dataset = build_label_set(cfg, entry, 0, 1).dataset
    digest = file_digest(find_weights(cfg.MODEL.DECOLA.SELF_LABEL.TEACHER_WEIGHT))
    results = folder / f"inference_{entry.name}" / RESULTS
    works = []
    for size in dict.fromkeys(sizes):
        transform = EvalTransform(
            size, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD, detectron2=True
        )
        loader = eval_loader(
            dataset,
            transform,
            batch_size=cfg.TEST.IMS_PER_BATCH,
            workers=cfg.DATALOADER.NUM_WORKERS,
            divisibility=0,
            mixed=True,
            on_bad_image="skip",
        )
        options = cfg.MODEL.DECOLA.SELF_LABEL
        choice = [options.SELECT, options.MIN_AREA, options.MIN_SCORE]
        facts = [digest, file_digest(entry.annotations), size, cfg.INPUT.MAX_SIZE_TEST, loader.plan, choice]
        works.append(Work(dataset, loader, sized(results, size), key_of(facts)))
    return works


def _label(work: Work, teacher: Teacher, device: torch.device, world: World, also: str) -> None:
    """Find and write the boxes of one size."""
    if work.done:
        logger.info("%s is there: nothing to do", work.out)
        return
    store = PredictionStore(work.out.with_suffix(".parts"), work.key, world.rank)
    if world.main:
        store.drop_others()
    store.refresh()
    mine = range(world.rank, len(work.loader.plan), world.size)
    todo = [place for place in mine if not all((number, 0) in store for number in work.loader.plan[place])]
    if len(todo) < len(mine):
        logger.info("%s: an earlier run did %d of %d batches", work.out.name, len(mine) - len(todo), len(mine))
    told: set[int] = set()
    try:
        with tqdm(total=len(todo), unit="batch", desc=work.out.stem, disable=not world.main) as bar:
            for loaded in work.loader.read(todo):
                found = _find(work.dataset, loaded, teacher, device)
                store.add([*found, *_unread(work.loader, told)])
                bar.update()
        store.add(_unread(work.loader, told))
    finally:
        store.flush()  # whatever happened, what has been found need not be found again
    if world.main:
        store.wait(len(work.dataset), lambda count: logger.info("%d of %d pictures", count, len(work.dataset)))
        _write(work, store, also)


def _unread(loader: EvalLoader, told: set[int]) -> list[Found]:
    """Stand for the pictures that could not be read since the last call; ``told`` has those before."""
    new = sorted(loader.skipped.keys() - told)
    told.update(new)
    return [Found(number, 0, None) for number in new]


@torch.inference_mode()
def _find(dataset: LabelledPictures, loaded: Loaded, teacher: Teacher, device: torch.device) -> list[Found]:
    labels = [torch.from_numpy(dataset.classes_of(number)).to(device) for number in loaded.numbers]
    answers = teacher.find(loaded.images.to(device), labels)
    rows = []
    for number, meta, found in zip(loaded.numbers, loaded.images.metas, answers, strict=True):
        boxes = rescale(found.boxes.cpu(), (1, 1), meta.orig_size)
        rows.append(Found(number, 0, Detections(boxes, found.scores.cpu(), found.labels.cpu(), meta)))
    return rows


def _write(work: Work, store: PredictionStore, also: str) -> None:
    """The predictions of all pictures, by name of the picture's classes, and what became of the others."""
    dataset = work.dataset
    rows: list[dict[str, Any]] = []
    unreadable, without = [], 0
    for number in range(len(dataset)):
        found = store.read(number, 1, lambda size, number=number: dataset.meta(number, size))  # type: ignore[misc]
        if found is None:
            unreadable.append(str(dataset.file(number)))
            continue
        without += len(dataset.classes_of(number)) - len(found)
        mine: list[dict[str, Any]] = found.to_coco(dataset.label_to_category)
        rows += sorted(mine, key=lambda row: row["category_id"])
    write_json(work.out, rows)
    for name in (RESULTS, f"{also}.json" if also else RESULTS):
        shutil.copyfile(work.out, work.out.with_name(name))
    told = {"key": work.key, "pictures": len(dataset), "boxes": len(rows), "names without a box": without}
    write_json(work.report, {**told, "unreadable": unreadable})
    store.remove()
    if unreadable:
        shown = f"such as {unreadable[0]}"
        logger.warning("%d of %d pictures cannot be read and have no boxes, %s", len(unreadable), len(dataset), shown)
    if without:
        logger.warning("%d names of pictures have no box", without)
    logger.info("%d boxes: %s", len(rows), work.out)
