"""What a detector of the drawn world can do: words that it was trained on, new pairs of them, and a shape learned anew.

Every number but the share of absent things comes from the tools' own functions, and stands in the ``results.json`` of
its evaluation too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from maskrcnn_benchmark.api import Predictor, load_model
from maskrcnn_benchmark.data.drawn import NEW_SHAPE
from maskrcnn_benchmark.data.drawn.caption_forms import NAMES
from maskrcnn_benchmark.demo.sets import RETAINED, TUNED
from maskrcnn_benchmark.finetuning import finetune
from maskrcnn_benchmark.structures import Detections
from maskrcnn_benchmark.zero_shot import zero_shot

CONFIG, WEIGHT = "configs/tiny/fiber_tiny.yaml", "MODEL/fiber_tiny.safetensors"
ZERO_SHOT = (RETAINED, "never_seen", "expressions")


@dataclass(frozen=True)
class Subject:
    """What is measured: a config, weights, and keys that win over the config."""

    config: str
    weight: str
    opts: tuple[str, ...] = ()

    def predictor(self, weight: str | Path | None = None) -> Predictor:
        """For single pictures; with other weights where they are given."""
        return Predictor(load_model(self.config, weight or self.weight, opts=self.opts))


@dataclass(frozen=True)
class Absent:
    """Where the scores go when names are asked that are not in the picture.

    Attributes:
        pictures: How many were asked.
        boxes: Returned for names of things in the picture, and for others.
        mass: Sums of their scores.
    """

    pictures: int
    boxes: tuple[int, int]
    mass: tuple[float, float]

    @property
    def share(self) -> float | None:
        """Of the sum of all scores, what went to names of things that are not there; None where nothing was found."""
        return self.mass[1] / sum(self.mass) if sum(self.mass) else None


@dataclass(frozen=True)
class Tuned:
    """A few-shot fine-tuning on the new shape: (before, after) of each number, its folder and its weights.

    ``AP50`` and ``AP`` are those of the new shape alone, in pictures that were asked for all shapes at once.
    """

    AP50: tuple[float, float]
    AP: tuple[float, float]
    retained_AP50: tuple[float, float]
    retained_AP: tuple[float, float]
    folder: Path
    weight: Path

    @property
    def gain(self) -> float:
        return self.AP50[1] - self.AP50[0]

    @property
    def loss(self) -> float:
        """Of AP50 on what was known before; negative where it grew."""
        return self.retained_AP50[0] - self.retained_AP50[1]


def score(subject: Subject, tasks: Mapping[str, Path], folder: Path) -> dict[str, dict[str, float]]:
    """Zero-shot numbers of :data:`ZERO_SHOT`, by set; result files go below ``folder``."""
    files = [str(tasks[name]) for name in ZERO_SHOT]
    return zero_shot(subject.config, subject.weight, files, [*subject.opts, "OUTPUT_DIR", str(folder)])


def precision_by_kind(numbers: Mapping[str, float]) -> dict[str, float]:
    """P@1 of referring expressions in all, then of each kind that there is: attribute, relation, ordinal."""
    kinds = {kind: numbers[f"{name}/P@1"] for kind, name in NAMES.items() if f"{name}/P@1" in numbers}
    return {"all": numbers["P@1"], **kinds}


def ask_absent(predictor: Predictor, annotations: Path, seed: int, count: int | None = None) -> Absent:
    """Ask each picture for the names of all that is in it together with as many names of things that are not.

    Every box that the detector returns counts with its score, however low; the only bound is that of the config,
    ``MODEL.ATSS.INFERENCE_TH``. The absent names are drawn from the classes of the set, so some share their colour or
    shape with a thing in the picture; their places in the prompt are random.

    Args:
        predictor: Of the detector.
        annotations: COCO file in which all things of every picture are annotated; pictures beside it.
        seed: Of the choice and order of names.
        count: At most so many pictures.
    """
    data = json.loads(annotations.read_text(encoding="utf-8"))
    names = {row["id"]: row["name"] for row in data["categories"]}
    present: dict[int, list[str]] = {row["id"]: [] for row in data["images"]}
    for row in data["annotations"]:
        present[row["image_id"]].append(names[row["category_id"]])
    boxes, mass, asked = [0, 0], [0.0, 0.0], 0
    for image in data["images"][:count]:
        there = list(dict.fromkeys(present[image["id"]]))
        if not there:
            continue
        prompt = question(there, list(names.values()), Random(f"{seed} {image['id']}"))
        found = predictor.set_image(annotations.parent / image["file_name"]).predict(prompt)
        asked += 1
        for side, (number, total) in enumerate(masses(found, prompt, there)):
            boxes[side] += number
            mass[side] += total
    return Absent(asked, (boxes[0], boxes[1]), (mass[0], mass[1]))


def question(there: Sequence[str], names: Sequence[str], random: Random) -> list[str]:
    """The names of what is there and as many others, mixed."""
    others = [name for name in names if name not in there]
    prompt = [*there, *random.sample(others, min(len(there), len(others)))]
    random.shuffle(prompt)
    return prompt


def masses(found: Detections, prompt: Sequence[str], there: Sequence[str]) -> list[tuple[int, float]]:
    """(boxes, sum of scores) of names that are in the picture, and of those that are not.

    Args:
        found: Label ``i`` is the ``i``-th name of the prompt, from 1.
        prompt: The names asked for.
        there: Those of them that are in the picture.
    """
    absent = [prompt[label - 1] not in there for label in found.labels.tolist()]
    counts = Counter(absent)
    scores = found.scores.tolist()
    sums = [
        sum(value for value, side in zip(scores, absent, strict=True) if side is wanted) for wanted in (False, True)
    ]
    return [(counts[False], sums[0]), (counts[True], sums[1])]


def tune(subject: Subject, task: Path, folder: Path) -> Tuned:
    """Fine-tune on the shots of a task file of :mod:`~maskrcnn_benchmark.demo.sets`, and score before and after."""
    opts = [*subject.opts, "MODEL.WEIGHT", subject.weight, "OUTPUT_DIR", str(folder)]
    finetune(subject.config, str(task), opts)
    run = folder / "ft_task_1"
    weight = next(path for name in ("model_best", "model_final") if (path := run / f"{name}.pth").is_file())
    before, after = run / "zero_shot", run / "eval" / weight.stem

    new = [of_class(side / NEW_SHAPE, NEW_SHAPE) for side in (before, after)]
    kept = [metrics(side / "retention" / RETAINED) for side in (before, after)]

    def pair(rows: list[dict[str, float]], key: str) -> tuple[float, float]:
        return rows[0][key], rows[1][key]

    return Tuned(pair(new, "AP50"), pair(new, "AP"), pair(kept, "AP50"), pair(kept, "AP"), run, weight)


def metrics(folder: Path) -> dict[str, float]:
    """The numbers of an evaluation, from its ``results.json``."""
    return dict(_results(folder)["metrics"])


def of_class(folder: Path, name: str) -> dict[str, float]:
    """AP and AP50 of one class of an evaluation, from its ``results.json``."""
    rows = _results(folder)["per_category"]["bbox"]
    return next({key: row[key] for key in ("AP", "AP50")} for row in rows if row["name"] == name)


def _results(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results


def as_rows(scores: Mapping[str, Mapping[str, float]], absent: Absent | None, tuned: Tuned | None) -> dict[str, Any]:
    """All numbers, for a JSON file."""
    rows: dict[str, Any] = {name: dict(numbers) for name, numbers in scores.items()}
    if absent is not None:
        rows["absent"] = {**asdict(absent), "share": absent.share}
    if tuned is not None:
        numbers = {key: value for key, value in asdict(tuned).items() if isinstance(value, tuple)}
        rows[TUNED] = {**numbers, "gain": tuned.gain, "loss": tuned.loss}
    return rows
