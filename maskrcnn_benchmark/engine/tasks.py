"""What an evaluation will do: everything that can be checked before a network exists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.config.defaults.decola import ARCHITECTURES
from maskrcnn_benchmark.data.catalog import Entry, resolve
from maskrcnn_benchmark.data.classes import check_classes, closed_vocabulary
from maskrcnn_benchmark.data.datasets.captions import CaptionSet
from maskrcnn_benchmark.data.datasets.coco import CocoDataset
from maskrcnn_benchmark.data.datasets.modulated_captions import ModulatedCaptions
from maskrcnn_benchmark.data.missing import refuse_missing
from maskrcnn_benchmark.engine.classes import CLASS_SETS
from maskrcnn_benchmark.engine.inference import Recipe, build_recipe
from maskrcnn_benchmark.engine.vocabulary import EMBEDDING
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.evaluation.build import EVALUATORS, Protocols, make_evaluator
from maskrcnn_benchmark.evaluation.expected import check_expected
from maskrcnn_benchmark.evaluation.interface import Evaluator
from maskrcnn_benchmark.structures import TextBatch
from maskrcnn_benchmark.text.prompts import class_prompts

CAPTION_SETS = ("flickr", "gqa", "phrasecut", "refexp")
ASKED_ANYTHING = {"MDETR": True, "MDETR_SEGM": False}
"""``MODEL.META_ARCHITECTURE`` of detectors that say what a caption names at all -> whether all of their boxes come."""
TASKS = {"detection": tuple(CLASS_SETS), "grounding": CAPTION_SETS}
"""``TEST.EVAL_TASK`` -> kinds of data set that it can be."""


@dataclass(frozen=True)
class LoaderSettings:
    """How pictures are read and put together."""

    batch_size: int
    workers: int
    mixed: bool  # the reference's batches: pictures of any shape together
    on_bad_image: str  # stop | skip
    together: int  # prompts that the network sees at once; 0: as suits the device


@dataclass(frozen=True)
class Task:
    """One data set to be evaluated."""

    name: str  # that of the data set, after that of its task file where the former is not enough
    dataset: Any  # class or caption pictures, see engine/questions.py
    entry: Entry
    texts: tuple[TextBatch, ...]  # prompts of all pictures; none where pictures have captions, or nothing reads them
    recipe: Recipe
    loader: LoaderSettings
    evaluator: Callable[[], Evaluator]  # reads the ground truth when it is called
    expected: Callable[[Mapping[str, float]], object]  # compares the numbers with those of the config, and tells
    folder: Path  # where the results go
    config: str  # what all this was read from, as YAML
    own_classes: bool = False  # each picture is asked for the classes of its own objects


def plan_all_tasks(cfgs: Mapping[str, Cfg], folder: Path) -> list[Task]:
    """The tasks of several task files.

    Args:
        cfgs: Name of a task file -> its config.
        folder: Results of a data set go to ``folder/<name>``; where two task files use one name for data sets of their
            own, as those of ODinW do, to ``folder/<name of the task file>/<name>``.

    Raises:
        UserError: see :func:`plan_tasks`.
    """
    used = Counter(name for cfg in cfgs.values() for name in set(cfg.DATASETS.TEST))
    alike = any(count > 1 for count in used.values())
    return [task for file, cfg in cfgs.items() for task in plan_tasks(cfg, folder, file if alike else "")]


def plan_tasks(cfg: Cfg, folder: Path, group: str = "") -> list[Task]:
    """One task per data set of ``DATASETS.TEST``; reads annotations and writes prompts, so mistakes show at once.

    Args:
        cfg: Config with the task file and the command line merged in.
        folder: Results of a data set go to ``folder/<group>/<name>``.
        group: Put before the names of the tasks.

    Raises:
        ConfigError: there is nothing to evaluate, or the task does not fit the data set.
        DataError: an annotation file is missing or wrong, or pictures are missing.
        PromptError: the class names do not make a prompt.
    """
    names = _names(cfg)
    recipe = build_recipe(cfg)
    settings = LoaderSettings(
        batch_size=cfg.TEST.IMS_PER_BATCH,
        workers=cfg.DATALOADER.NUM_WORKERS,
        mixed=cfg.TEST.MIXED_BATCHES,
        on_bad_image=cfg.TEST.ON_BAD_IMAGE,
        together=cfg.TEST.PROMPTS_TOGETHER,
    )
    override = cfg.DATASETS.OVERRIDE_CATEGORY if cfg.DATASETS.USE_OVERRIDE_CATEGORY else None
    entries = [_entry(cfg, name) for name in names]
    protocols = _protocols(cfg, {entry.evaluator for entry in entries})
    expected, tolerance = cfg.TEST.EXPECTED_RESULTS, cfg.TEST.EXPECTED_RESULTS_SIGMA_TOL
    config = cfg.dump_with_sources()
    tasks = []
    for entry in entries:
        dataset: Any = _read(cfg, entry, override)
        texts: tuple[TextBatch, ...] = ()
        if settings.on_bad_image == "stop":
            refuse_missing(dataset)
        if closed_vocabulary(cfg):
            check_classes(cfg, entry.name, [name for _, name in dataset.prompt_categories])
        elif entry.kind in CLASS_SETS:
            prompts = class_prompts(dataset.prompt_categories, recipe.prompts, recipe.reader)
            texts = tuple(recipe.text([prompt]) for prompt in prompts)
        else:
            _refuse_long(dataset, recipe)
        name = f"{group}/{entry.name}" if group else entry.name
        evaluator = partial(make_evaluator, entry, dataset, protocols)
        compare = partial(check_expected, rows=expected, sigma_tol=tolerance, task=name)
        task = Task(name, dataset, entry, texts, recipe, settings, evaluator, compare, folder / name, config)
        tasks.append(replace(task, own_classes=_own_classes(cfg)))
    return tasks


def _own_classes(cfg: Cfg) -> bool:
    """Whether pictures are asked for the classes of their own objects: conditioned AP.

    Raises:
        ConfigError: they are to be, and the detector cannot be asked.
    """
    key = "TEST.CONDITIONED.USE_GT_NAMES"
    if cfg.MODEL.META_ARCHITECTURE in EMBEDDING:
        return bool(cfg.TEST.CONDITIONED.USE_GT_NAMES)
    if cfg.TEST.CONDITIONED.USE_GT_NAMES:
        raise ConfigError(
            f"{key} True ({cfg.source(key)}) is for {' and '.join(EMBEDDING)}, and MODEL.META_ARCHITECTURE is "
            f"{cfg.MODEL.META_ARCHITECTURE!r}: set it to False"
        )
    return False


def _protocols(cfg: Cfg, evaluators: set[str]) -> Protocols:
    """How the evaluators measure; a key of one that is not used counts as not read."""
    protocols = Protocols(engine=cfg.TEST.EVAL_ENGINE)
    protocols = replace(protocols, boxes=ASKED_ANYTHING.get(cfg.MODEL.META_ARCHITECTURE, False))
    if cfg.MODEL.META_ARCHITECTURE in ARCHITECTURES:
        protocols = replace(protocols, plus_one=False, open_vocabulary=True, conditioned=_own_classes(cfg))
        each = cfg.TEST.DETECTIONS_PER_CLASS
        protocols = replace(
            protocols, per_image=cfg.TEST.DETECTIONS_PER_IMG, per_image_class=each if each >= 0 else None
        )
    if cfg.MODEL.META_ARCHITECTURE == "CenterNet2RCNN" and cfg.MODEL.MASK_ON:
        protocols = replace(protocols, iou_types=("bbox", "segm"))
    if "flickr" in evaluators:
        protocols = replace(protocols, flickr=cfg.DATASETS.FLICKR_GT_TYPE)
    if "lvis" in evaluators:
        protocols = replace(protocols, lvis="standard" if cfg.DATASETS.LVIS_USE_NORMAL_AP else "fixed")
    if "voc" in evaluators:
        protocols = replace(protocols, voc=cfg.TEST.VOC_PROTOCOL)
    return protocols


def problem_of(cfg: Cfg, entry: Entry) -> str:
    """Why a data set cannot be scored with a config; empty when it can."""
    if entry.kind not in (*CLASS_SETS, *CAPTION_SETS) or entry.evaluator not in EVALUATORS:
        how = f"with the evaluator {entry.evaluator!r}" if entry.evaluator else "without an evaluator"
        return (
            f"data set {entry.name!r} is of kind {entry.kind!r} {how}: it can be scored with kind "
            f"{', '.join([*CLASS_SETS, *CAPTION_SETS])} and evaluator {', '.join(EVALUATORS)}"
        )
    if entry.kind not in EVALUATORS[entry.evaluator].kinds:
        kinds = ", ".join(EVALUATORS[entry.evaluator].kinds)
        return (
            f"data set {entry.name!r} is of kind {entry.kind!r}, and the evaluator {entry.evaluator!r} scores {kinds}"
        )
    if entry.kind in CAPTION_SETS and closed_vocabulary(cfg):
        return f"data set {entry.name!r} is of kind {entry.kind!r}, captions, and this detector reads no text"
    task = cfg.TEST.EVAL_TASK
    if task and entry.kind not in TASKS[task]:
        other = next(name for name, kinds in TASKS.items() if entry.kind in kinds)
        return (
            f"TEST.EVAL_TASK {task!r} ({cfg.source('TEST.EVAL_TASK')}) does not fit data set {entry.name!r} of kind "
            f"{entry.kind!r}: use {other!r}"
        )
    return ""


def _names(cfg: Cfg) -> tuple[str, ...]:
    """The data sets, each once."""
    if cfg.TEST.EVAL_TASK not in ("", *TASKS):
        raise ConfigError(
            f"TEST.EVAL_TASK {cfg.TEST.EVAL_TASK!r} ({cfg.source('TEST.EVAL_TASK')}) is not known here: use "
            + " or ".join(map(repr, TASKS))
        )
    names: tuple[str, ...] = tuple(cfg.DATASETS.TEST)
    if not names:
        raise ConfigError("DATASETS.TEST names no data set: give --task_config, or set DATASETS.TEST \"('name',)\"")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice:
        raise ConfigError(f"DATASETS.TEST ({cfg.source('DATASETS.TEST')}) names {twice!r} twice: name it once")
    return names


def _entry(cfg: Cfg, name: str) -> Entry:
    entry = resolve(cfg, name, "test")
    if problem := problem_of(cfg, entry):
        raise ConfigError(problem)
    return entry


def _refuse_long(dataset: CaptionSet, recipe: Recipe) -> None:
    """Find a caption that the network cannot read before the first picture is."""
    limit = recipe.prompts.max_tokens
    for picture in range(len(dataset)):
        for entry, prompt in zip(dataset.entries(picture), dataset.prompts(picture), strict=True):
            if (count := recipe.reader.count(prompt.text)) > limit:
                raise DataError(
                    f"{dataset.annotations}: images (id {dataset.meta(entry, (0, 0)).image_id!r}): the caption "
                    f"{prompt.text[:40]!r}... takes {count} tokens, more than MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN "
                    f"{limit}: shorten it, or take it out"
                )


def _read(cfg: Cfg, entry: Entry, override: Any) -> Any:
    if entry.kind in CAPTION_SETS:
        modulated = cfg.MODEL.META_ARCHITECTURE in ASKED_ANYTHING
        return (ModulatedCaptions if modulated else CaptionSet).from_entry(entry)
    if entry.kind == "coco":
        return CocoDataset.from_entry(entry, override_categories=override)
    if override is not None:
        raise ConfigError(
            f"DATASETS.OVERRIDE_CATEGORY is for data of kind 'coco', and {entry.name!r} is of kind {entry.kind!r}"
        )
    return CLASS_SETS[entry.kind].from_entry(entry)


def describe(task: Task) -> str:
    """What a task will do, in a few lines."""
    head = f"{task.name}: {len(task.dataset)} pictures, "
    batches = f", batches of {task.loader.batch_size}\n  annotations {task.entry.annotations}"
    tail = f"{batches}\n  prompt "
    if task.own_classes:
        return f"{head}each asked for the classes of its own objects{batches}"
    if task.recipe.tokenizer is None:
        return f"{head}the {len(task.dataset.prompt_categories)} classes of the network{batches}"
    if not task.texts:
        first = task.dataset.prompts(0)[0].text
        return f"{head}{task.dataset.num_entries} captions{tail}{first!r} ..."
    tokens = ", ".join(str(int(text.attention_mask.sum())) for text in task.texts)
    plural = "s" * (len(task.texts) > 1)
    classes = f"{len(task.dataset.prompt_categories)} classes in {len(task.texts)} prompt{plural} of {tokens} tokens"
    return f"{head}{classes}{tail}{task.texts[0].prompts[0].text!r}{' ...' if plural else ''}"
