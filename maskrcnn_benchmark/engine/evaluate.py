"""Zero-shot evaluation: from a config and a checkpoint to numbers and files."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.data.catalog import Entry, resolve
from maskrcnn_benchmark.data.datasets.coco import CocoDataset
from maskrcnn_benchmark.data.loader import eval_loader
from maskrcnn_benchmark.data.missing import refuse_missing
from maskrcnn_benchmark.engine.inference import Model, Recipe, build_recipe, predict
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.evaluation.coco import CocoEvaluator
from maskrcnn_benchmark.evaluation.report import write_files
from maskrcnn_benchmark.structures import TextBatch
from maskrcnn_benchmark.text.prompts import class_prompts

logger = logging.getLogger(__name__)

COCO = ("coco", "coco")  # kind of data and evaluator


@dataclass(frozen=True)
class LoaderSettings:
    """How pictures are read and put together."""

    batch_size: int
    workers: int
    mixed: bool  # the reference's batches: pictures of any shape together
    on_bad_image: str  # stop | skip


@dataclass(frozen=True)
class Task:
    """One data set to be evaluated: everything that can be checked before a network exists has been."""

    name: str  # that of the data set, after that of its task file where the former is not enough
    dataset: CocoDataset
    entry: Entry
    texts: tuple[TextBatch, ...]
    recipe: Recipe
    loader: LoaderSettings
    engine: str
    folder: Path  # where the results go
    config: str  # what all this was read from, as YAML


def plan_all(cfgs: Mapping[str, Cfg], folder: Path) -> list[Task]:
    """The tasks of several task files.

    Args:
        cfgs: Name of a task file -> its config.
        folder: Results of a data set go to ``folder/<name>``; where two task files use one name for data sets of their
            own, as those of ODinW do, to ``folder/<name of the task file>/<name>``.

    Raises:
        UserError: see :func:`plan`.
    """
    used = Counter(name for cfg in cfgs.values() for name in set(cfg.DATASETS.TEST))
    alike = any(count > 1 for count in used.values())
    return [task for file, cfg in cfgs.items() for task in plan(cfg, folder, file if alike else "")]


def plan(cfg: Cfg, folder: Path, group: str = "") -> list[Task]:
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
    _check(cfg)
    recipe = build_recipe(cfg)
    settings = LoaderSettings(
        batch_size=cfg.TEST.IMS_PER_BATCH,
        workers=cfg.DATALOADER.NUM_WORKERS,
        mixed=cfg.TEST.MIXED_BATCHES,
        on_bad_image=cfg.TEST.ON_BAD_IMAGE,
    )
    override = cfg.DATASETS.OVERRIDE_CATEGORY if cfg.DATASETS.USE_OVERRIDE_CATEGORY else None
    found = []
    for entry in [_entry(cfg, name) for name in cfg.DATASETS.TEST]:
        dataset = CocoDataset.from_entry(entry, override_categories=override)
        if settings.on_bad_image == "stop":
            refuse_missing(dataset)
        prompts = class_prompts(dataset.prompt_categories, recipe.prompts, recipe.tokenizer)
        found.append((entry, dataset, tuple(recipe.text([prompt]) for prompt in prompts)))
    engine, config = cfg.TEST.EVAL_ENGINE, cfg.dump_with_sources()
    tasks = []
    for entry, dataset, texts in found:
        name = f"{group}/{entry.name}" if group else entry.name
        tasks.append(Task(name, dataset, entry, texts, recipe, settings, engine, folder / name, config))
    return tasks


def _check(cfg: Cfg) -> None:
    """Refuse what cannot be evaluated, before anything is read."""
    if cfg.TEST.EVAL_TASK not in ("", "detection"):
        raise ConfigError(
            f"TEST.EVAL_TASK {cfg.TEST.EVAL_TASK!r} ({cfg.source('TEST.EVAL_TASK')}) is not known here: use 'detection'"
        )
    names = cfg.DATASETS.TEST
    if not names:
        raise ConfigError("DATASETS.TEST names no data set: give --task_config, or set DATASETS.TEST \"('name',)\"")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice:
        raise ConfigError(f"DATASETS.TEST ({cfg.source('DATASETS.TEST')}) names {twice!r} twice: name it once")


def _entry(cfg: Cfg, name: str) -> Entry:
    entry = resolve(cfg, name, "test")
    if (entry.kind, entry.evaluator) != COCO:
        how = f"with the evaluator {entry.evaluator!r}" if entry.evaluator else "without an evaluator"
        raise ConfigError(
            f"data set {name!r} is of kind {entry.kind!r} {how}: only kind 'coco' with evaluator 'coco' is known here"
        )
    return entry


def describe(task: Task) -> str:
    """What a task will do, in a line or two."""
    tokens = ", ".join(str(int(text.attention_mask.sum())) for text in task.texts)
    return (
        f"{task.name}: {len(task.dataset)} pictures, {len(task.dataset.categories)} classes in {len(task.texts)} "
        f"prompt{'s' * (len(task.texts) > 1)} of {tokens} tokens, batches of {task.loader.batch_size}\n"
        f"  annotations {task.entry.annotations}\n"
        f"  prompt {task.texts[0].prompts[0].text!r}{' ...' if len(task.texts) > 1 else ''}"
    )


def evaluate(model: Model, task: Task) -> dict[str, float]:
    """Find, score, write; returns the numbers.

    Raises:
        DataError: a picture cannot be read, or the pictures scored are not those of the set (nothing is written then).
    """
    evaluator = CocoEvaluator(
        task.entry.annotations,
        task.dataset.label_to_category,
        categories=task.dataset.evaluation_categories,
        engine=task.engine,
    )
    loader = eval_loader(
        task.dataset,
        task.recipe.transform,
        batch_size=task.loader.batch_size,
        workers=task.loader.workers,
        divisibility=task.recipe.divisibility,
        mixed=task.loader.mixed,
        on_bad_image=task.loader.on_bad_image,
    )
    start = time.perf_counter()
    with tqdm(total=len(task.dataset), unit="picture", desc=task.name) as bar:
        for detections in predict(model, loader, task.texts):
            evaluator.update(detections)
            bar.update(len(detections))
    seconds = time.perf_counter() - start
    for file, reason in loader.skipped:
        logger.warning("skipped %s: %s", file, reason)
    numbers = evaluator.summary()
    write_files(task.folder, {"config.yml": task.config.encode()})
    evaluator.write(task.folder, card=_card(model, task, seconds))
    return numbers


def _card(model: Model, task: Task, seconds: float) -> dict[str, object]:
    """What was measured, for results.json."""
    return {
        "dataset": task.entry.name,
        "weights": str(model.weights.path),
        "weights_sha256": model.weights.digest,
        "prompts": [text.prompts[0].text for text in task.texts],
        "device": str(model.device),
        "batch_size": task.loader.batch_size,
        "mixed_batches": task.loader.mixed,
        "seconds_per_picture": round(seconds / max(1, len(task.dataset)), 4),
    }


def evaluate_all(model: Model, tasks: Sequence[Task]) -> dict[str, dict[str, float]]:
    """Every task in turn: ``{task: numbers}``."""
    results = {}
    for task in tasks:
        logger.info(describe(task))
        results[task.name] = evaluate(model, task)
        logger.info("%s: results in %s", task.name, task.folder)
    return results
