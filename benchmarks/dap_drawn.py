#!/usr/bin/env python3
"""DAP from beginning to end on drawn pictures, beside the same training that begins with the classifier: minutes.

    python benchmarks/dap_drawn.py --seeds 3
    python benchmarks/dap_drawn.py --seeds 1 --long --output OUTPUT/dap_drawn_long

For each seed, with other pictures and other first weights:

1. A narrow ResNet-50 learns the classes of pictures that have a class name and nothing else.
2. Its class activation maps give boxes.
3. A Faster R-CNN begins with the classifier and is trained on those boxes (detection-aware pre-training).
4. A Faster R-CNN is trained on a few pictures with real boxes: beginning with the classifier, and with the detector of
   step 3; and both again for as many steps as 3 and 4 take together. All are scored on other pictures.
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
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import Bottleneck, ResNet

from maskrcnn_benchmark import cli, mrb
from maskrcnn_benchmark.checkpoint.io import file_digest, save_weights
from maskrcnn_benchmark.data.box_files import read_boxes
from maskrcnn_benchmark.data.datasets.image_folder import ImageFolder
from maskrcnn_benchmark.data.drawn import FORMS, Split, World
from maskrcnn_benchmark.engine.distributed import World as Processes
from maskrcnn_benchmark.engine.log import setup_logging
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.evaluation.report import table
from maskrcnn_benchmark.modeling.cam.build import MEAN, STD, map_net
from maskrcnn_benchmark.pseudo_boxes import EVERY_LEVEL, Finder, Options, run
from maskrcnn_benchmark.structures.boxes import iou
from maskrcnn_benchmark.training import train_net

CLASSES = tuple(
    sorted(f"{c} {s}" for c in ("red", "green", "blue", "yellow") for s in ("circle", "square", "triangle"))
)
SIDES = (96, 128, 160, 192)  # of the pictures that the classifier learns from
CONFIGS = {"dap": "configs/base/dap_pretrain.yaml", "transfer": "configs/base/rcnn_coco.yaml"}
STARTS = ("classifier", "DAP", "classifier, longer", "DAP, longer")

NARROW: dict[str, Any] = {
    "MODEL": {
        "DEVICE": "cpu",
        "RESNETS": {
            "STEM_OUT_CHANNELS": 64,
            "RES2_OUT_CHANNELS": 64,
            "WIDTH_PER_GROUP": 16,
            "BACKBONE_OUT_CHANNELS": 64,
            "STRIDE_IN_1X1": False,
        },
        "RPN": {
            "ANCHOR_SIZES": [16, 32, 64, 128, 256],
            "PRE_NMS_TOP_N_TRAIN": 300,
            "PRE_NMS_TOP_N_TEST": 300,
            "FPN_POST_NMS_TOP_N_TRAIN": 800,
            "FPN_POST_NMS_TOP_N_TEST": 100,
        },
        "ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 64},
        "ROI_BOX_HEAD": {"MLP_HEAD_DIM": 256, "NUM_CLASSES": len(CLASSES) + 1},
    },
    "INPUT": {"TO_BGR255": False, "PIXEL_MEAN": list(MEAN), "PIXEL_STD": list(STD)},
    "DATALOADER": {"NUM_WORKERS": 0},
    "SOLVER": {
        "OPTIMIZER": "ADAMW",
        "BASE_LR": 0.001,
        "IMS_PER_BATCH": 8,
        "MAX_EPOCH": 0,
        "STEPS": [0.8],
        "WARMUP_ITERS": 20,
        "CLIP_GRADIENTS": {"ENABLED": True, "CLIP_VALUE": 5.0},
        "CHECKPOINT_PERIOD": 100000,
        "TEST_PERIOD": 0,
        "LOG_PERIOD": 20,
    },
}
"""Both trainings of the detector, besides :data:`CONFIGS`."""


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    side: int = 128  # of the pictures, pixels
    named: int = 12  # pictures with a class name, of each class
    epochs: int = 8  # of the classifier
    scales: tuple[int, ...] = (128, 256)  # at which it looks for boxes
    dap_steps: int = 40
    shots: int = 10  # pictures with boxes, of each class
    steps: int = 40  # with those
    tests: int = 40  # pictures


LONG = Plan(named=30, epochs=15, scales=(192, 384), dap_steps=150, steps=100, tests=100)


@dataclass(frozen=True)
class Outcome:
    """Of one seed; what is measured lies between 0 and 1."""

    accuracy: float  # of the classifier, on pictures that it has not seen
    overlap: float  # IoU of a thing with the pseudo box that fits it best, mean
    chance: float  # the same with the boxes of other pictures
    scores: dict[str, dict[str, float]]  # start -> AP, AP50
    seconds: dict[str, float] = field(default_factory=dict)  # of a processor, for each step


class Block(Bottleneck):
    """A bottleneck with a quarter of the channels at its end."""

    expansion = 1


def make_classifier() -> ResNet:
    """A ResNet-50 in torchvision's layout, with a quarter of the channels in its blocks."""
    return ResNet(Block, [3, 4, 6, 3], len(CLASSES), zero_init_residual=True, width_per_group=16)


def read_pictures(pictures: ImageFolder) -> tuple[Tensor, Tensor]:
    """(N, 3, h, w) uint8 and classes (N,) from 0."""
    pixels = [torch.from_numpy(np.array(pictures.picture(number))) for number in range(len(pictures))]
    labels = [pictures.label(number) - 1 for number in range(len(pictures))]
    return torch.stack(pixels).permute(0, 3, 1, 2), torch.tensor(labels)


def normalise(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((pixels / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def learn_classes(net: nn.Module, pixels: Tensor, labels: Tensor, epochs: int) -> None:
    """Train a classifier, on pictures of changing size, half of them mirrored."""
    batches = -(-len(labels) // 32)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.003, total_steps=epochs * batches)
    net.train().to(memory_format=torch.channels_last)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).chunk(batches):
            batch = normalise(pixels[rows])
            batch = torch.cat((batch[::2], batch[1::2].flip(-1)))
            side = SIDES[int(torch.randint(len(SIDES), ()))]
            outputs = net(functional.interpolate(batch, (side, side), mode="bilinear", antialias=True))
            loss = functional.cross_entropy(outputs, torch.cat((labels[rows][::2], labels[rows][1::2])))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()


@torch.inference_mode()
def accuracy(net: nn.Module, seed: int, plan: Plan) -> float:
    """Share of pictures that a classifier is right about; they are of another split than those that it learnt from."""
    world = World(seed, Split.SEEN, (plan.side, plan.side), CLASSES)
    right = 0
    for label, name in enumerate(CLASSES):
        pictures = np.stack([world.of_class(name, number).pixels for number in range(1, 11)])
        pixels = normalise(torch.from_numpy(pictures).permute(0, 3, 1, 2))
        right += int((net(pixels).argmax(1) == label).sum())
    return right / (10 * len(CLASSES))


def find_boxes(net: ResNet, weight: Path, pictures: ImageFolder, out: Path, plan: Plan) -> None:
    """What ``mrb pseudo-boxes`` does, with a network that torchvision has no name for."""
    name, scales = "narrow ResNet-50", plan.scales
    options = Options(name, str(weight), "cpu", batch=8, workers=0, pictures=24, coco=True, scales=scales)
    finder = Finder(map_net(net, name), options, file_digest(weight), Processes())
    out.mkdir(parents=True)
    run(pictures, out / "cam", finder, EVERY_LEVEL, classes=range(len(CLASSES)))


def overlaps(boxes: Path, pictures: ImageFolder, world: World) -> tuple[float, float]:
    """How well the boxes fit the things of their pictures, and how well those of other pictures do: means."""
    found = read_boxes(boxes)
    mine: list[float] = []
    others: list[float] = []
    for number in range(0, len(found), max(1, len(found) // 120)):
        file = Path(pictures.key(number))
        things = torch.tensor(
            [item.box for item in world.of_class(file.parent.name.replace("_", " "), int(file.stem)).items]
        )
        things = things.float() - torch.tensor([0, 0, 1, 1])
        for row, best in ((number, mine), ((number + len(found) // 2) % len(found), others)):
            best += iou(things, torch.from_numpy(found.boxes[found.rows(row)]), plus_one=True).amax(1).tolist()
    return float(np.mean(mine)), float(np.mean(others))


def train(kind: str, out: Path, weight: Path, seed: int, steps: int, side: int, entries: Mapping[str, Any]) -> None:
    """Train the detector on the entry "train", and score it on "test" where there is such.

    Args:
        kind: Of :data:`CONFIGS`.
        out: Folder for all that the training writes.
        weight: To begin with.
        seed: Of the training.
        steps: Of the training.
        side: Of the pictures.
        entries: Of the data sets.
    """
    sizes = {"MIN_SIZE_TRAIN": [side * part // 4 for part in (3, 4, 5)], "MIN_SIZE_TEST": side}
    sizes |= {"MAX_SIZE_TRAIN": 2 * side, "MAX_SIZE_TEST": 2 * side}
    sets = {"REGISTER": dict(entries), "TRAIN": ["train"], "TEST": [name for name in entries if name == "test"]}
    tree = {**NARROW, "DATASETS": sets, "INPUT": {**NARROW["INPUT"], **sizes}}
    tree["SOLVER"] = {**NARROW["SOLVER"], "MAX_ITER": steps, "SEED": seed}
    tree["MODEL"] = {**NARROW["MODEL"], "WEIGHT": str(weight)}
    task = out.with_suffix(".yaml")
    task.write_text(yaml.safe_dump(tree), encoding="utf-8")
    train_net(CONFIGS[kind], str(task), output=str(out), test="test" in entries)


def measure(seed: int, plan: Plan, folder: Path) -> Outcome:
    """All four steps with one seed; ``folder`` is absolute, as relative names are looked for below DATASET."""
    torch.manual_seed(seed)
    size, seconds = (plan.side, plan.side), dict[str, float]()
    world, named = World(seed, Split.TRAIN, size, CLASSES), folder / "named"
    with timed("pictures", seconds):
        FORMS["labels"](named, world, plan.named * len(CLASSES))
        pool = FORMS["coco"](folder / "pool", World(seed + 1000, Split.TRAIN, size, CLASSES), 20 * plan.shots)
        tests = FORMS["coco"](folder / "tests", World(seed, Split.SEEN, size, CLASSES), plan.tests)
        few = folder / "few.json"
        split = ["data", "split", str(pool.annotations), str(few), "--per-class", str(plan.shots), "--seed", str(seed)]
        if mrb.main(split):
            raise ConfigError(f"{pool.annotations}: cannot be split")
    listed, weight = named / "image_info.json", folder / "classifier.pth"
    pictures = ImageFolder(named, listed)
    with timed("classifier", seconds):
        net = make_classifier()
        learn_classes(net, *read_pictures(pictures), plan.epochs)
        save_weights(net.state_dict(), weight)
    right = accuracy(net, seed, plan)
    with timed("boxes", seconds):
        find_boxes(net, weight, pictures, folder / "boxes", plan)
    overlap, chance = overlaps(folder / "boxes" / "camnms8xyxy.npz", pictures, world)
    boxes = str(folder / "boxes" / "camnms8xyxy.json")
    entry = {"kind": "image_labels", "img_dir": str(named), "ann_file": str(listed), "boxes": boxes}
    with timed("DAP", seconds):
        train("dap", folder / "dap", weight, seed, plan.dap_steps, plan.side, {"train": entry})
    known = {"train": {**pool.entry, "ann_file": str(few)}, "test": tests.entry}
    scores, longer = {}, plan.dap_steps + plan.steps
    detector = folder / "dap" / "model_final.pth"
    starts = ((weight, plan.steps), (detector, plan.steps), (weight, longer), (detector, longer))
    for start, (weights, steps) in zip(STARTS, starts, strict=True):
        out = folder / f"transfer_{start.replace(', ', '_')}"
        with timed(f"transfer, {start}", seconds):
            train("transfer", out, weights, seed, steps, plan.side, known)
        found = json.loads((out / "inference" / "test" / "results.json").read_text(encoding="utf-8"))["metrics"]
        scores[start] = {name: found[name] for name in ("AP", "AP50")}
    return Outcome(right, overlap, chance, scores, seconds)


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note how much time of a processor something takes."""
    start = time.process_time()
    yield
    seconds[name] = round(time.process_time() - start, 1)


def as_table(outcomes: Mapping[int, Outcome]) -> str:
    """AP and AP50 of all starts for each seed, and their means."""
    columns = [(start, name) for start in STARTS for name in ("AP", "AP50")]
    rows = [[outcome.scores[start][name] for start, name in columns] for outcome in outcomes.values()]
    steps = {seed: sum(outcome.seconds.values()) for seed, outcome in outcomes.items()}
    printed: list[list[object]] = [
        [seed, *row, outcome.accuracy, outcome.overlap, outcome.chance, round(steps[seed])]
        for (seed, outcome), row in zip(outcomes.items(), rows, strict=True)
    ]
    quality = np.mean([(out.accuracy, out.overlap, out.chance) for out in outcomes.values()], axis=0).tolist()
    printed.append(["mean", *np.mean(rows, axis=0).tolist(), *quality, round(sum(steps.values()) / len(steps))])
    header = [f"{start}: {name}" for start, name in columns]
    return table(["seed", *header, "accuracy", "IoU of boxes", "by chance", "CPU seconds"], printed)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many (default %(default)s)")
    parser.add_argument("--first-seed", type=int, default=1, metavar="N", help="default %(default)s")
    parser.add_argument("--long", action="store_true", help="more pictures and steps, about four times the time")
    parser.add_argument("--output", type=Path, default=Path("OUTPUT/dap_drawn"), help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    if args.output.is_dir() and any(args.output.iterdir()):
        raise ConfigError(f"--output {str(args.output)!r} is not empty: choose another folder")
    setup_logging()
    outcomes = {}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        outcomes[seed] = measure(seed, LONG if args.long else Plan(), args.output.resolve() / str(seed))
        rows = {seed: asdict(outcome) for seed, outcome in outcomes.items()}
        (args.output / "numbers.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        print(as_table(outcomes), flush=True)


if __name__ == "__main__":
    sys.exit(cli.run(main))
