"""Pictures for a report: what was asked in words, what was found, and whether it was right."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from maskrcnn_benchmark.api import Found, Predictor
from maskrcnn_benchmark.data.drawn import NEVER_SEEN, NEW_SHAPE, Written
from maskrcnn_benchmark.data.drawn.caption_forms import NAMES
from maskrcnn_benchmark.data.pictures import open_picture
from maskrcnn_benchmark.demo.draw import colour_of, draw, draw_boxes
from maskrcnn_benchmark.demo.sets import EXAMPLES, RETAINED
from maskrcnn_benchmark.structures.boxes import giou, iou

LARGER = 2  # times, so that the names at small boxes can be read
MIN_SCORE = 0.3  # of a box that is shown, as of `mrb detect`
HIT = 0.5  # overlap with the right box
SHOWN = 6  # pictures of a kind
EACH = 2  # referring expressions of a kind
PAIRS = 4  # pictures before and after

NEW, ABSENT = "new", "not there"  # marks of words

Row = dict[str, Any]


@dataclass(frozen=True)
class Word:
    """Something that was asked for.

    Attributes:
        text: What.
        colour: Of its boxes.
        mark: :data:`NEW` where it was never in training, :data:`ABSENT` where it is not in the picture, or nothing.
    """

    text: str
    colour: str
    mark: str = ""


@dataclass(frozen=True)
class Shown:
    """A picture with the boxes that were found.

    Attributes:
        image: With boxes, names and scores.
        words: What was asked for.
        verdict: How that fits what is in the picture.
        right: Everything is as it should be.
        file: The picture on disk, without boxes.
        phrase: Of a sentence that was asked for, the words that name the thing itself.
    """

    image: Image.Image
    words: tuple[Word, ...]
    verdict: str
    right: bool
    file: Path
    phrase: str = ""


@dataclass(frozen=True)
class Gallery:
    """The pictures of a report.

    Attributes:
        seen: Asked for the pairs in them, and for one thing that is not.
        never_seen: Asked for the pairs in them that training never had.
        expressions: Asked for one thing.
        examples: What the new shape was learned from.
        pairs: Asked for the new shape, before and after.
    """

    seen: list[Shown]
    never_seen: list[Shown]
    expressions: list[Shown]
    examples: list[Shown]
    pairs: list[tuple[Shown, Shown]]


@dataclass(frozen=True)
class Asked:
    """A picture, what to ask it for, and the right boxes of each name."""

    file: Path
    names: tuple[str, ...]
    truth: dict[str, Tensor]  # (N, 4) x1, y1, x2, y2

    def show(self, predictor: Predictor, new: Collection[str] = ()) -> Shown:
        """Ask; ``new`` are the names that were never in training."""
        found = predictor.set_image(self.file).predict(self.names, min_score=MIN_SCORE)
        hits, missed, wrong = compare(found, self.names, self.truth)
        verdict = f"{hits} of {hits + missed} found" + (f", {wrong} wrong" if wrong else "")
        return Shown(enlarged(found), self._words(new), verdict, not missed and not wrong, self.file)

    def show_truth(self) -> Shown:
        """The right boxes."""
        boxes = [(name, (LARGER * box).tolist()) for name, rows in self.truth.items() for box in rows]
        colours = [colour_of(self.names.index(name)) for name, _ in boxes]
        image = draw_boxes(
            larger(open_picture(self.file)), [box for _, box in boxes], [(n, "") for n, _ in boxes], colours
        )
        return Shown(image, self._words(()), f"{len(boxes)} annotated", True, self.file)

    def _words(self, new: Collection[str]) -> tuple[Word, ...]:
        marks = [NEW if name in new else "" if name in self.truth else ABSENT for name in self.names]
        return tuple(
            Word(name, colour_of(index), mark) for index, (name, mark) in enumerate(zip(self.names, marks, strict=True))
        )


def make_gallery(before: Predictor, after: Predictor, drawn: Mapping[str, Written], seed: int) -> Gallery:
    """The first pictures of each set.

    Args:
        before: Of the detector.
        after: Of the same after the fine-tuning.
        drawn: From :func:`~maskrcnn_benchmark.demo.sets.draw_sets`.
        seed: Of the choice of absent names.
    """
    files = {name: written.annotations for name, written in drawn.items()}
    seen = islice(questions(files[RETAINED], seed, absent=1), SHOWN)
    never_seen = islice(questions(files["never_seen"], seed), SHOWN)
    arrows = list(islice(questions(files[NEW_SHAPE], seed, only=NEW_SHAPE), PAIRS))
    return Gallery(
        seen=[asked.show(before) for asked in seen],
        never_seen=[asked.show(before, NEVER_SEEN) for asked in never_seen],
        expressions=show_expressions(before, drawn["expressions"]),
        examples=[asked.show_truth() for asked in questions(files[EXAMPLES], seed)],
        pairs=[(asked.show(before, (NEW_SHAPE,)), asked.show(after, (NEW_SHAPE,))) for asked in arrows],
    )


def compare(found: Found, names: Sequence[str], truth: dict[str, Tensor]) -> tuple[int, int, int]:
    """(right boxes found, right boxes missed, other boxes that were found).

    The best boxes choose first; each takes the right box of its name that it overlaps most, by an IoU of at least 0.5.
    """
    free = {name: list(range(len(boxes))) for name, boxes in truth.items()}
    wrong = 0
    for box, label in zip(found.boxes, found.labels.tolist(), strict=True):
        name = names[label - 1]
        left = free.get(name, [])
        overlap = iou(box[None], truth[name][left])[0].tolist() if left else []
        best = max(range(len(left)), key=overlap.__getitem__, default=None)
        if best is None or overlap[best] < HIT:
            wrong += 1
        else:
            left.pop(best)
    missed = sum(map(len, free.values()))
    return sum(map(len, truth.values())) - missed, missed, wrong


def enlarged(found: Found) -> Image.Image:
    """The picture with its boxes, larger than it is."""
    assert found.picture is not None
    return draw(larger(found.picture), replace(found, boxes=found.boxes * LARGER))


def larger(picture: Image.Image) -> Image.Image:
    return picture.resize((picture.width * LARGER, picture.height * LARGER), Image.Resampling.LANCZOS)


def questions(annotations: Path, seed: int, absent: int = 0, only: str = "") -> Iterator[Asked]:
    """Each picture of a COCO file with the names of what is annotated in it, and ``absent`` names of what is not.

    Pictures in which nothing is annotated are left out; with ``only`` a name, all that is of another one counts as
    nothing.
    """
    data = json.loads(annotations.read_text(encoding="utf-8"))
    names = {row["id"]: row["name"] for row in data["categories"]}
    boxes: dict[int, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for row in data["annotations"]:
        if only in ("", names[row["category_id"]]):
            boxes[row["image_id"]][names[row["category_id"]]].append(_corners(row))
    for image in data["images"]:
        there = boxes[image["id"]]
        if there:
            others = [name for name in names.values() if name not in there]
            more = Random(f"{seed} {image['id']}").sample(others, min(absent, len(others)))
            truth = {name: torch.tensor(rows, dtype=torch.float32) for name, rows in there.items()}
            yield Asked(annotations.parent / image["file_name"], (*there, *more), truth)


def show_expressions(predictor: Predictor, drawn: Written) -> list[Shown]:
    """The best box of the first referring expressions of each kind."""
    data = json.loads(drawn.annotations.read_text(encoding="utf-8"))
    things = {row["image_id"]: row for row in data["annotations"]}
    images = Path(drawn.entry["img_dir"])
    chosen = [
        row for name in NAMES.values() for row in islice((r for r in data["images"] if r["dataset_name"] == name), EACH)
    ]
    return [_expression(predictor, row, images / row["file_name"], things[row["id"]]) for row in chosen]


def _expression(predictor: Predictor, row: Row, file: Path, thing: Row) -> Shown:
    """Asked as it is scored: for the words that name the thing, in their sentence."""
    begin, end = thing["tokens_positive"][0]
    phrase, truth = row["caption"][begin:end], torch.tensor([_corners(thing)], dtype=torch.float32)
    found = predictor.set_image(file).predict(caption=row["caption"], phrases=[phrase], top=1)
    right = len(found) > 0 and float(giou(found.boxes, truth)[0, 0]) >= HIT
    verdict = "right" if right else "the wrong thing" if len(found) else "nothing found"
    return Shown(enlarged(found), (Word(row["caption"], colour_of(0)),), verdict, right, file, phrase)


def _corners(row: Row) -> list[float]:
    x, y, width, height = row["bbox"]
    return [x, y, x + width, y + height]
