#!/usr/bin/env python3
"""DECOLA from beginning to end on drawn pictures, beside a detector that is trained on boxes alone: minutes.

    python benchmarks/decola_drawn.py --seeds 3

Twelve classes, four shapes in three colours. Those in black, which LVIS would call rare, are novel: no box of the
training is of a black thing, as LVIS-base has none of rare classes. For each seed, with other pictures and other first
weights:

1. Phase 1 is trained on boxes of base classes.
2. It finds boxes for pictures that have a name and nothing else, of base and novel classes (``mrb self-label``).
3. Phase 2 begins with these weights and is trained on boxes and names: on the boxes of step 2 (off-line), and with
   phase 1 as the teacher (on-line).
4. BoxSup is trained on boxes of base classes, for as many steps as both phases have together.

All begin with the same body, which tells colours and shapes, also those of novel classes, but knows no boxes: it stands
for the classifier of ImageNet-21k that DECOLA begins with. A name is embedded as the sum of a vector for its colour and
one for its shape. Scores are those of other pictures, in which all twelve classes are looked for.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml

from maskrcnn_benchmark import cli, mrb
from maskrcnn_benchmark.checkpoint.io import find_weights, read_state_dict, save_weights
from maskrcnn_benchmark.checkpoint.resume import name_of
from maskrcnn_benchmark.data.drawn import FORMS, Split, World
from maskrcnn_benchmark.data.drawn.vocabulary import COLOURS, SHAPES, frequency
from maskrcnn_benchmark.demo import encoders
from maskrcnn_benchmark.engine.curves import Points, draw_panels
from maskrcnn_benchmark.engine.log import setup_logging
from maskrcnn_benchmark.errors import ConfigError, WeightsError
from maskrcnn_benchmark.evaluation.report import table
from maskrcnn_benchmark.paths import repository_root
from maskrcnn_benchmark.structures.boxes import iou, xywh_to_xyxy
from maskrcnn_benchmark.text.class_bank import ClassBank, write_bank
from maskrcnn_benchmark.training import train_net
from maskrcnn_benchmark.zero_shot import zero_shot

PAIRS = tuple(f"{c} {s}" for s in ("square", "triangle", "hexagon", "cross") for c in ("blue", "brown", "black"))
NOVEL = tuple(name for name in PAIRS if frequency(name) == "r")
BASE = tuple(name for name in PAIRS if name not in NOVEL)
CLASSES = (*BASE, *NOVEL)
SIZE = (128, 128)  # of the pictures
MOST = 4  # things in a picture with boxes, or to test on
WIDTH = 32  # of the embeddings
BODY = "fusion_backbone.backbone.body."  # in the weights that FIBER begins with
OF_TEXT = "i2t"  # in the names of what a body has for text
LESSON = ("--plain", "--text-steps=0", "--joint-steps=0", "--facts", "colour", "shape")
WINDOWS = ("--opts", "MODEL.SWINT.WINDOW_SIZE", "5")
"""What the body learns before, alone, and its windows, which are those of the configs."""
CONFIGS = {
    "BoxSup": "configs/tiny/decola_drawn_boxsup.yaml",
    "phase 1": "configs/tiny/decola_drawn_phase1.yaml",
    "off-line": "configs/tiny/decola_drawn_phase2_offline.yaml",
    "on-line": "configs/tiny/decola_drawn_phase2.yaml",
}
SETS = {"off-line": ("boxes", "found"), "on-line": ("boxes", "names")}
PARTS = ("novel", "base")
POINTS = 3  # of a curve
SAME_BOX = 0.5  # IoU from which on a box fits


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    steps: tuple[int, int] = (240, 160)  # of phase 1 and of phase 2
    boxed: int = 400  # pictures with boxes
    named: int = 600  # pictures with names only
    tests: int = 100  # pictures


@dataclass
class Outcome:
    """Of one seed; what is measured lies between 0 and 1."""

    scores: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    """What was trained -> steps from the beginning -> AP50 of novel and of base classes. Those of phase 1 are of asking
    for the names that a picture has."""
    labels: dict[str, float] = field(default_factory=dict)  # share of the boxes found for names that fit such a thing
    seconds: dict[str, float] = field(default_factory=dict)  # of a processor

    def last(self, kind: str) -> dict[str, float]:
        """The scores of the last weights."""
        return self.scores[kind][max(self.scores[kind])]


def make_start(given: str, steps: int, out: Path) -> Path:
    """The body that all trainings begin with, as a file.

    Args:
        given: Weights that the small FIBER of the drawn world begins with; none: they are made.
        steps: Of making them.
        out: Folder.

    Raises:
        WeightsError: the file is not there, or is of something else.
    """
    if not given:
        given = str(out / "encoders.safetensors")
        encoders.main(["--out", given, "--picture-steps", str(steps), *LESSON, *WINDOWS])
    source = find_weights(given)
    state = read_state_dict(source)
    body = {name.removeprefix(BODY): value for name, value in state.items() if name.startswith(BODY)}
    if not body:
        raise WeightsError(f"--start {given!r} has no {BODY}*: give what an earlier run made, or nothing")
    seen = {name: value for name, value in body.items() if OF_TEXT not in name}
    return save_weights(seen, out / "start.safetensors")


def write_embeddings(folder: Path) -> dict[str, str]:
    """Class banks of the names, and of "object", the mean of all pairs; what ``MODEL.ZEROSHOT_CLS`` says of them."""
    axes = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))).Q
    axis = dict(zip((*COLOURS, *SHAPES), axes, strict=False))
    pairs = {f"{colour} {shape}": axis[colour] + axis[shape] for colour in COLOURS for shape in SHAPES}
    names = ClassBank(torch.stack([pairs[name] for name in CLASSES]), tuple(map(_word, CLASSES)))
    thing = ClassBank(torch.stack(list(pairs.values())).mean(0, keepdim=True), ("object",))
    return {
        "WEIGHT_PATH": str(write_bank(names, folder / "names.safetensors")),
        "OBJECT_WEIGHT_PATH": str(write_bank(thing, folder / "object.safetensors")),
    }


def write_data(seed: int, plan: Plan, folder: Path) -> Path:
    """Pictures with boxes of base classes, with names, and to test on; returns the task file that says where."""
    world = World(seed, Split.TRAIN, SIZE, BASE, most=MOST, also=NOVEL)
    boxed = FORMS["lvis"](folder / "boxes", world, plan.boxed)
    tests = FORMS["lvis"](folder / "tests", World(seed, Split.SEEN, SIZE, CLASSES, most=MOST), plan.tests)
    named = folder / "names"
    FORMS["labels"](named, World(seed, Split.TRAIN, SIZE, CLASSES), plan.named)
    command("data", "lvis", str(boxed.annotations))
    base = boxed.annotations.with_name(f"{boxed.annotations.stem}_norare.json")
    names = {"kind": "imagenet_lvis", "img_dir": str(named), "ann_file": str(named / "image_info.json")}
    register = {
        "boxes": {**boxed.entry, "ann_file": str(base)},
        "names": names,
        "found": {**names, "ann_file": str(folder / "found.json")},
        "tests": tests.entry,
    }
    sets = {"REGISTER": register, "TRAIN": ["boxes"], "TEST": ["tests"]}
    task = folder / "task.yaml"
    task.write_text(yaml.safe_dump({"DATASETS": sets, "MODEL": {"ZEROSHOT_CLS": write_embeddings(folder)}}))
    return task


def command(*words: str) -> None:
    """Run ``mrb``.

    Raises:
        ConfigError: it has failed, and has said why.
    """
    if mrb.main(words):
        raise ConfigError(f"mrb {' '.join(words)}: has failed, see above")


def train(kind: str, out: Path, task: Path, weight: Path, seed: int, steps: int) -> None:
    """Train one of :data:`CONFIGS`; ``out`` gets :data:`POINTS` checkpoints."""
    keys = {
        "MODEL.WEIGHT": weight,
        "DATASETS.TRAIN": SETS.get(kind, ("boxes",)),
        "SOLVER.SEED": seed,
        "SOLVER.MAX_ITER": steps,
        "SOLVER.CHECKPOINT_PERIOD": -(-steps // POINTS),
        "SOLVER.CHECKPOINTS_KEPT": 0,
    }
    train_net(CONFIGS[kind], str(task), [str(word) for pair in keys.items() for word in pair], output=str(out))


def label(weight: Path, task: Path, out: Path) -> Path:
    """Boxes for the names of pictures, found by phase 1; returns the annotation file that the task calls "found"."""
    tree = yaml.safe_load(task.read_text(encoding="utf-8"))
    root = repository_root() or Path()
    tree |= {"_BASE_": str((root / CONFIGS["phase 1"]).resolve())}
    tree["DATASETS"] |= {"TRAIN": ["names"], "TEST": ["names"]}
    config = task.with_name("label.yaml")
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    found = Path(tree["DATASETS"]["REGISTER"]["found"]["ann_file"])
    words = ["--config-file", str(config), "--weight", str(weight), "--output", str(out), "--join", str(found)]
    one = ("--set", "TEST.IMS_PER_BATCH", "1")  # a picture is then searched for its own name alone
    command("self-label", *words, "--boxes", "xywh", "--iou-thres", str(SAME_BOX), *one)
    return found


def fitting(found: Path, seed: int) -> dict[str, float]:
    """The share of boxes that fit a thing of the name that they were found for, of novel and of base classes."""
    data = json.loads(found.read_text(encoding="utf-8"))
    files = {row["id"]: Path(row["file_name"]) for row in data["images"]}
    world, hits = World(seed, Split.TRAIN, SIZE, CLASSES), {part: list[bool]() for part in PARTS}
    for row in data["annotations"]:
        file, name = files[row["image_id"]], CLASSES[row["category_id"] - 1]
        things = world.of_class(file.parent.name.replace("_", " "), int(file.stem)).items
        truth = torch.tensor([item.box for item in things if item.name == name]).reshape(-1, 4).float()
        box = xywh_to_xyxy(torch.tensor([row["bbox"]]))
        hits["novel" if name in NOVEL else "base"].append(bool((iou(truth, box) >= SAME_BOX).any()))
    return {part: float(np.mean(values)) for part, values in hits.items()}


def score(kind: str, weight: Path, task: Path, out: Path) -> dict[str, float]:
    """AP50 of novel and of base classes."""
    tables = yaml.safe_load(task.read_text(encoding="utf-8"))["MODEL"]["ZEROSHOT_CLS"]
    words = [word for key, path in tables.items() for word in (f"MODEL.ZEROSHOT_CLS.{key}", path)]
    zero_shot(CONFIGS[kind], str(weight), [str(task)], ["OUTPUT_DIR", str(out), *words])
    file = out / "eval" / weight.stem / "inference" / "tests" / "results.json"
    scores: dict[str, list[float]] = {part: [] for part in PARTS}
    for row in json.loads(file.read_text(encoding="utf-8"))["per_category"]["bbox"]:
        scores["novel" if row["frequency"] == "r" else "base"] += [row["AP50"]] if row["AP50"] >= 0 else []
    return {part: float(np.mean(values)) for part, values in scores.items()}


def measure(seed: int, plan: Plan, start: Path, folder: Path) -> Outcome:
    """All steps with one seed; ``folder`` is absolute, as relative names are looked for below DATASET."""
    outcome, (first, second) = Outcome(), plan.steps
    with timed("pictures", outcome.seconds):
        task = write_data(seed, plan, folder)

    def run(kind: str, weight: Path, steps: int, before: int = 0) -> Path:
        out = folder / kind.replace(" ", "_")
        with timed(kind, outcome.seconds):
            train(kind, out, task, weight, seed, steps)
        period, last = -(-steps // POINTS), out / "model_final.pth"
        points = {before + step: out / name_of(step) for step in range(period, steps, period)}
        kept = {steps + before: last} if kind == "phase 1" else {**points, steps + before: last}
        outcome.scores[kind] = {step: score(kind, weights, task, out) for step, weights in kept.items()}
        return last

    run("BoxSup", start, first + second)
    teacher = run("phase 1", start, first)
    with timed("boxes for names", outcome.seconds):
        found = label(teacher, task, folder / "labels")
    outcome.labels = fitting(found, seed)
    for kind in SETS:
        run(kind, teacher, second, before=first)
    return outcome


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note how much time of a processor something takes."""
    start = time.process_time()
    yield
    seconds[name] = round(time.process_time() - start, 1)


def as_table(outcomes: Mapping[int, Outcome]) -> str:
    """The last scores of every training for each seed, the share of boxes that fit, and the means."""
    rows = [
        [*(outcome.last(kind)[part] for kind in CONFIGS for part in PARTS), *(outcome.labels[part] for part in PARTS)]
        for outcome in outcomes.values()
    ]
    seconds = [sum(outcome.seconds.values()) for outcome in outcomes.values()]
    printed: list[list[object]] = [
        [seed, *row, round(spent)] for seed, row, spent in zip(outcomes, rows, seconds, strict=True)
    ]
    printed.append(["mean", *np.mean(rows, axis=0).tolist(), round(float(np.mean(seconds)))])
    header = [f"{kind}: {part}" for kind in (*CONFIGS, "boxes that fit") for part in PARTS]
    return table(["seed", *header, "CPU seconds"], printed)


def draw(outcomes: Mapping[int, Outcome], path: Path) -> None:
    """AP50 of novel and of base classes over the steps, means over the seeds."""
    panels: dict[str, dict[str, Points]] = {}
    for part in PARTS:
        curves = panels[f"AP50 of {part} classes over the steps, mean of {len(outcomes)} seeds"] = {}
        for kind in ("BoxSup", *SETS):
            steps = next(iter(outcomes.values())).scores[kind]
            name = kind if kind == "BoxSup" else f"DECOLA, {kind}"
            curves[name] = [
                (step, float(np.mean([outcome.scores[kind][step][part] for outcome in outcomes.values()])))
                for step in steps
            ]
    draw_panels(path, panels)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many (default %(default)s)")
    parser.add_argument("--first-seed", type=int, default=1, metavar="N", help="default %(default)s")
    steps = Plan().steps
    parser.add_argument(
        "--steps",
        type=int,
        nargs=2,
        default=steps,
        metavar="N",
        help=f"of phase 1 and 2 (default {steps[0]} {steps[1]})",
    )
    parser.add_argument("--boxed", type=int, default=Plan.boxed, metavar="N", help="pictures (default %(default)s)")
    parser.add_argument("--named", type=int, default=Plan.named, metavar="N", help="pictures (default %(default)s)")
    parser.add_argument("--tests", type=int, default=Plan.tests, metavar="N", help="pictures (default %(default)s)")
    parser.add_argument(
        "--start",
        default="",
        metavar="FILE",
        help="encoders.safetensors of an earlier run (default: made, a quarter of an hour more)",
    )
    parser.add_argument("--start-steps", type=int, default=2000, metavar="N", help="(default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("OUTPUT/decola_drawn"), help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    if args.output.is_dir() and any(args.output.iterdir()):
        raise ConfigError(f"--output {str(args.output)!r} is not empty: choose another folder")
    setup_logging()
    out = args.output.resolve()
    out.mkdir(parents=True, exist_ok=True)
    plan = Plan(tuple(args.steps), args.boxed, args.named, args.tests)
    start = make_start(args.start, args.start_steps, out)
    outcomes: dict[int, Outcome] = {}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        outcomes[seed] = measure(seed, plan, start, out / str(seed))
        rows = {seed: asdict(outcome) for seed, outcome in outcomes.items()}
        (out / "numbers.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        draw(outcomes, out / "curves.png")
        print(as_table(outcomes), flush=True)


def _word(name: str) -> str:
    """A class as LVIS writes it."""
    return name.replace(" ", "_")


if __name__ == "__main__":
    sys.exit(cli.run(main))
