"""Evaluation: find things in every picture of a task, then score what was found.

Batches are the same for any number of processes, and each is the work of one of them; where there are fewer batches
than processes, so are parts of the prompts. Detections go through files (:mod:`maskrcnn_benchmark.engine.shards`): an
evaluation that was interrupted goes on, and while the first process scores, the others are already at the next task.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise

import torch
from tqdm import tqdm

from maskrcnn_benchmark.checkpoint.io import file_digest
from maskrcnn_benchmark.data.loader import EvalLoader, Loaded, eval_loader
from maskrcnn_benchmark.engine.distributed import World
from maskrcnn_benchmark.engine.inference import Model
from maskrcnn_benchmark.engine.questions import (
    CaptionQuestions,
    ClassQuestions,
    NoQuestions,
    OwnClassQuestions,
    Questions,
)
from maskrcnn_benchmark.engine.shards import Found, PredictionStore, key_of
from maskrcnn_benchmark.engine.tasks import Task, describe
from maskrcnn_benchmark.evaluation.report import write_files

logger = logging.getLogger(__name__)

PREDICTIONS = "predictions"  # folder of what has been found, until it is scored
TOGETHER = {"cpu": 1}  # prompts at once: on a CPU a batch gains nothing
TOGETHER_ELSEWHERE = 8
PACKAGES = ("torch", "numpy", "hotcoco", "pycocotools")


@dataclass(frozen=True)
class Unit:
    """What one process does at a time: a batch, and the prompts that are asked about it."""

    place: int  # in the loader's plan
    parts: range


def units_of(batches: int, parts: int, processes: int) -> list[Unit]:
    """All the work; unit number ``n`` is that of process ``n % processes``.

    Args:
        batches: Batches of pictures.
        parts: Prompts for each picture.
        processes: How many share it.
    """
    groups = 1 if batches >= processes else min(parts, -(-processes // max(1, batches)))
    edges = [parts * group // groups for group in range(groups + 1)]
    ranges = [range(begin, end) for begin, end in pairwise(edges)]
    return [Unit(place, part) for place in range(batches) for part in ranges]


def evaluate(model: Model, task: Task, world: World | None = None) -> dict[str, float]:
    """Find, score, write.

    Args:
        model: With its weights; every process has the same.
        task: What to evaluate.
        world: Which of how many processes this is; default: the only one.

    Returns:
        The numbers, the one that stands for all of them first; nothing in all processes but the first.

    Raises:
        DataError: a picture cannot be read, or the pictures scored are not those of the set (no result is written).
    """
    world = world or World()
    evaluator = task.evaluator() if world.main else None  # before the long part: it finds mistakes in the ground truth
    questions = _questions(task, model)
    loader = _loader(task)
    store = PredictionStore(task.folder / PREDICTIONS, _key(model, task, loader), world.rank)
    if world.main:
        store.drop_others()
    start = time.perf_counter()
    _find(model, task, questions, loader, store, world)
    if evaluator is None:
        return {}
    pieces = sum(len(questions.pieces(picture, range(questions.parts))) for picture in range(len(task.dataset)))
    store.wait(pieces, lambda count: logger.info("%s: %d of %d results, waiting", task.name, count, pieces))
    seconds = time.perf_counter() - start
    for entry in range(questions.entries):
        found = store.read(entry, questions.parts, lambda size, entry=entry: questions.meta(entry, size))  # type: ignore[misc]
        if found is not None:
            evaluator.update([found])
    summary = evaluator.summary()
    write_files(task.folder, {"config.yml": task.config.encode()})
    evaluator.write(task.folder, card=_card(model, task))
    write_files(task.folder, {"run.json": json.dumps(_run_card(model, task, world, seconds), indent=1).encode()})
    store.remove()
    task.expected(summary)
    return {evaluator.main: summary[evaluator.main], **summary}


def evaluate_all(model: Model, tasks: Sequence[Task], world: World | None = None) -> dict[str, dict[str, float]]:
    """Every task in turn: ``{task: numbers}``."""
    results = {}
    for task in tasks:
        logger.info(describe(task))
        results[task.name] = evaluate(model, task, world)
        logger.info("%s: results in %s", task.name, task.folder)
    return results


def _questions(task: Task, model: Model) -> Questions:
    if task.recipe.tokenizer is None:
        _compare_classes(task, model)
        return (OwnClassQuestions if task.own_classes else NoQuestions)(task.dataset)
    together = task.loader.together or TOGETHER.get(model.device.type, TOGETHER_ELSEWHERE)
    if task.texts:
        return ClassQuestions(task.dataset, task.texts, task.recipe, together)
    return CaptionQuestions(task.dataset, task.recipe, together)


def _compare_classes(task: Task, model: Model) -> None:
    """Tell when classes of a data set are called otherwise than those that the detector was trained on."""
    names = [name for _, name in task.dataset.prompt_categories]
    other = [pair for pair in zip(model.classes, names, strict=False) if pair[0] != pair[1]]
    if other:
        logger.warning(
            "%s: %d of %d classes have other names than in the training of these weights, the first is %r there and %r "
            "here: detections count by number",
            task.name,
            len(other),
            len(names),
            *other[0],
        )


def _loader(task: Task) -> EvalLoader:
    return eval_loader(
        task.dataset,
        task.recipe.transform,
        batch_size=task.loader.batch_size,
        workers=task.loader.workers,
        divisibility=task.recipe.divisibility,
        mixed=task.loader.mixed,
        on_bad_image=task.loader.on_bad_image,
    )


def _find(
    model: Model, task: Task, questions: Questions, loader: EvalLoader, store: PredictionStore, world: World
) -> None:
    """Do this process' part of what no earlier run has done."""
    store.refresh()
    units = units_of(len(loader.plan), questions.parts, world.size)[world.rank :: world.size]
    wanted = [(unit, [questions.pieces(number, unit.parts) for number in loader.plan[unit.place]]) for unit in units]
    todo = [unit for unit, pieces in wanted if not all(piece in store for row in pieces for piece in row)]
    done = len(units) - len(todo)
    if done:
        logger.info("%s: an earlier run did %d of %d batches; it goes on from there", task.name, done, len(units))
    bar = tqdm(total=len(units), initial=done, unit="batch", desc=task.name, disable=not world.main)
    try:
        for unit, batches in _read(loader, todo):
            found = [answer for loaded in batches for answer in questions.find(model, loaded, unit.parts)]
            store.add([*found, *_unread(questions, loader, unit)])
            bar.update()
    finally:
        bar.close()
        store.flush()  # whatever happened, what has been found need not be found again
    for file, reason in loader.skipped.values():
        logger.warning("skipped %s: %s", file, reason)


def _read(loader: EvalLoader, units: Sequence[Unit]) -> Iterator[tuple[Unit, list[Loaded]]]:
    """The pictures of each unit: one batch, several where sizes were not as announced, none where none can be read."""
    batches = loader.read([unit.place for unit in units])
    ahead = next(batches, None)
    for turn, unit in enumerate(units):
        mine = []
        while ahead is not None and ahead.turn == turn:
            mine.append(ahead)
            ahead = next(batches, None)
        yield unit, mine


def _unread(questions: Questions, loader: EvalLoader, unit: Unit) -> list[Found]:
    """Stands for the pictures of a unit that could not be read."""
    missing = [number for number in loader.plan[unit.place] if number in loader.skipped]
    return [Found(*piece, None) for number in missing for piece in questions.pieces(number, unit.parts)]


def _key(model: Model, task: Task, loader: EvalLoader) -> str:
    """Says what is evaluated with which model, in all processes alike; a model without a key is like no other."""
    recipe = task.recipe
    tokenizer = recipe.tokenizer.name if recipe.tokenizer is not None else None
    return key_of(
        [
            model.key or time.time_ns(),
            model.device.type,
            file_digest(task.entry.annotations) if task.entry.annotations.is_file() else str(task.entry.annotations),
            [text.prompts[0].text for text in task.texts],
            [sorted(vars(recipe.transform).items()), tokenizer, recipe.pad_to, recipe.divisibility],
            loader.plan,
        ]
    )


def _card(model: Model, task: Task) -> dict[str, object]:
    """What was measured, for results.json: the same however the work was shared."""
    return {
        "dataset": task.entry.name,
        "weights": str(model.weights.path),
        "weights_sha256": model.weights.digest,
        "model": model.key,
        "prompts": _prompts(task),
        "batch_size": task.loader.batch_size,
        "mixed_batches": task.loader.mixed,
    }


def _prompts(task: Task) -> list[str] | str:
    if task.own_classes:
        return "the classes of the objects of each picture"
    if task.recipe.tokenizer is None:
        return "none, the classes are those of the network"
    return [text.prompts[0].text for text in task.texts] or "the caption of each picture"


def _run_card(model: Model, task: Task, world: World, seconds: float) -> dict[str, object]:
    """How it was measured, for run.json."""
    return {
        "seconds": round(seconds, 2),
        "seconds_per_picture": round(seconds / max(1, len(task.dataset)), 4),
        "processes": world.size,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("maskrcnn_benchmark", *PACKAGES)},
    }
