"""Drawn test sets of what a detector of the drawn world should find, and the task files that name them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maskrcnn_benchmark.data.drawn import FORMS, NEW_SHAPE, Split, World, Written
from maskrcnn_benchmark.data.drawn.shapes import SHAPES
from maskrcnn_benchmark.data.drawn.vocabulary import SEEN_PAIRS

SHOTS = 3
AGAIN = 5  # pictures to be reminded of each pair by; of each shape alone, as many for each example of the new one
EXAMPLES = f"{NEW_SHAPE}_examples"  # the set that the new shape is learned from
REMINDERS = ("shapes_again", "pairs_again")
"""Sets of what is known already, learned together with the new shape, so that it is not forgotten: names of shapes, as
those that the new one is told from, and names of pairs."""
AMONG = (NEW_SHAPE, *(shape for shape in SHAPES if shape != NEW_SHAPE))
"""What the pictures that the new shape is looked for in are about: all shapes alike, so that most things are others."""
TUNED = "new_shape"  # name of the task file of the fine-tuning
RETAINED = "seen"  # the set on which nothing should be lost

RECIPE: dict[str, dict[str, Any]] = {
    "SOLVER": {
        "MAX_EPOCH": 2,
        "IMS_PER_BATCH": 4,
        "BASE_LR": 0.0002,
        "LANG_LR": 0.0005,
        "WARMUP_ITERS": 0,
        "MODEL_EMA": 0.99,
        "LOG_PERIOD": 2,
        "CHECKPOINT_PERIOD": 100000,
        "TUNING_HIGHLEVEL_OVERRIDE": "full",
    },
    "DATALOADER": {"NUM_WORKERS": 0},
}
"""How the new shape is learned from :data:`SHOTS` pictures, among the reminders."""
VARIED = {
    "FLIP_PROB_TRAIN": 0.5,
    "VERTICAL_FLIP_PROB_TRAIN": 0.5,
    "BRIGHTNESS": 0.3,
    "CONTRAST": 0.3,
    "SATURATION": 0.3,
    "HUE": 0.5,
}
"""What is done to the examples alone. An arrow may point anywhere and be of any colour, and three pictures do not show
that; a reminder names colours, and a heart upside down is none."""


@dataclass(frozen=True)
class DrawnSet:
    """Pictures of a split in a form, about its own classes or others; equal values give equal files."""

    name: str
    form: str
    split: Split
    seed: int
    count: int
    classes: tuple[str, ...] | None = None
    also: tuple[str, ...] = ()

    def write(self, folder: Path) -> Written:
        """Draw it, in a folder of its name below ``folder``."""
        world = World(self.seed, self.split, classes=self.classes, also=self.also)
        return FORMS[self.form](folder / self.name, world, self.count)

    def command(self, folder: Path) -> list[str]:
        """The words of a command line that draws it there."""
        words = ["python", "-m", "maskrcnn_benchmark.data.drawn", "--out", str(folder / self.name)]
        words += ["--form", self.form, "--split", self.split.value]
        words += ["--seed", str(self.seed), "--count", str(self.count)]
        words += ["--classes", *self.classes] if self.classes else []
        return [*words, "--also", *self.also] if self.also else words


def plan_sets(count: int, seed: int) -> tuple[DrawnSet, ...]:
    """The sets of a demonstration or a measurement; pictures of training are in none of them, whatever the seed.

    Args:
        count: Pictures of each test set.
        seed: Of the pictures; those of expressions and of the examples are drawn with the next one.
    """
    return (
        DrawnSet(RETAINED, "coco", Split.SEEN, seed, count),
        DrawnSet("never_seen", "coco", Split.UNSEEN, seed, count),
        DrawnSet("expressions", "refcoco", Split.SEEN, seed + 1, count),
        DrawnSet(NEW_SHAPE, "coco", Split.NEW, seed, count, AMONG),
        DrawnSet(EXAMPLES, "coco", Split.NEW, seed + 1, SHOTS, AMONG[:1], AMONG[1:]),
        DrawnSet(REMINDERS[0], "coco", Split.SEEN, seed + 2, SHOTS * AGAIN * len(AMONG[1:]), AMONG[1:], AMONG[:1]),
        DrawnSet(REMINDERS[1], "coco", Split.SEEN, seed + 3, AGAIN * len(SEEN_PAIRS)),
    )


def draw_sets(folder: Path, count: int, seed: int) -> dict[str, Written]:
    """Write the sets of :func:`plan_sets` below ``folder``: name -> what was written."""
    return {drawn.name: drawn.write(folder) for drawn in plan_sets(count, seed)}


def write_tasks(folder: Path, sets: dict[str, Written]) -> dict[str, Path]:
    """Task files for ``tools/test_grounding_net.py``, and :data:`TUNED` for ``tools/finetune.py``: name -> file."""
    kinds = {RETAINED: "detection", "never_seen": "detection", "expressions": "grounding"}
    trees = {name: _test(name, sets[name].entry, kind) for name, kind in kinds.items()}
    trees[TUNED] = _tuning(sets)
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.yaml" for name in trees}
    for name, tree in trees.items():
        files[name].write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return files


def _test(name: str, entry: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"DATASETS": {"REGISTER": {name: entry}, "TEST": [name]}, "TEST": {"EVAL_TASK": kind}}


def _tuning(sets: dict[str, Written]) -> dict[str, Any]:
    register = {name: sets[name].entry for name in (EXAMPLES, *REMINDERS, NEW_SHAPE, RETAINED)}
    register[EXAMPLES] = register[EXAMPLES] | {"copies": "COCO_COPY", "augment": VARIED}
    datasets = {
        "REGISTER": register,
        "TRAIN": [EXAMPLES, *REMINDERS],
        "TEST": [NEW_SHAPE],
        "TRAIN_DATASETNAME_SUFFIX": "_grounding",
        "COCO_COPY": 90,
        "GENERAL_COPY": 1,
    }
    return {
        "DATASETS": datasets,
        **RECIPE,
        "TEST": {"EVAL_TASK": "detection", "RETENTION_DATASET": RETAINED},
    }
