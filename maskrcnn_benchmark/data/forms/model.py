"""What all forms of detection data have in common, and what is wrong with some of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskrcnn_benchmark.data.pictures import Size

Box = tuple[float, float, float, float]  # x1, y1, x2, y2

ERROR, WARNING, NOTE = "error", "warning", "note"
"""Training or evaluation stops at it; something is mended or left out; worth knowing."""

ALL = "all"  # name of a split where the data have none
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong or odd.

    Attributes:
        level: :data:`ERROR`, :data:`WARNING` or :data:`NOTE`.
        file: The file that has it.
        field: Where in the file: "annotations[3] (id 7)", "object 2 (RBC)", "line 4"; "" for the whole of it.
        text: What it is.
        remedy: What to do, or what is done about it.
        kind: The same for all problems that differ in their place alone.
    """

    level: str
    file: str
    field: str
    text: str
    remedy: str
    kind: str = ""

    def __str__(self) -> str:
        where = f"{self.file}: {self.field}" if self.field else self.file
        return f"{self.level}: {where}: {self.text}; {self.remedy}"


class Problems(list[Problem]):
    """All problems, in the order in which they were found."""

    def add(self, level: str, file: object, field: str, text: str, remedy: str, kind: str = "") -> None:
        self.append(Problem(level, str(file), field, text, remedy, kind or text))

    def count(self, level: object) -> int:
        """How many are of a level."""
        return sum(problem.level == level for problem in self)

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self if problem.level == ERROR]


@dataclass(frozen=True)
class Thing:
    """An annotated object.

    Attributes:
        name: Of its class.
        box: x1, y1, x2, y2 in pixels of the picture; (0, 0) is its upper left corner, and x2 = x1 + width.
        place: Where its file has it, for messages.
        segmentation: As COCO writes it: a list of polygons, or a run-length code; None: there is none.
        area: Of the mask, in pixels, where it is given.
        crowd: The box is around a crowd of things.
        difficult: As in PASCAL VOC: not counted in evaluations.
        truncated: As in PASCAL VOC: only a part of the thing is in the picture.
    """

    name: str
    box: Box
    place: str = ""
    segmentation: Any = None
    area: float | None = None
    crowd: bool = False
    difficult: bool = False
    truncated: bool = False

    @property
    def width(self) -> float:
        return self.box[2] - self.box[0]

    @property
    def height(self) -> float:
        return self.box[3] - self.box[1]

    @property
    def has_area(self) -> bool:
        return self.width > 0 and self.height > 0

    @property
    def polygons(self) -> list[list[float]]:
        """x, y, x, y, ... each; none when there is no mask or it is a run-length code."""
        return self.segmentation if isinstance(self.segmentation, list) else []


@dataclass(frozen=True)
class Picture:
    """A picture and what is annotated in it.

    Attributes:
        file: Where it lies, or would have to.
        name: What the annotations call it.
        size: (h, w) by the annotations, or else by the picture; None: unknown.
        things: In the order of the file.
        source: The annotation file.
        told: The size is from the annotations.
    """

    file: Path
    name: str
    size: Size | None
    things: tuple[Thing, ...]
    source: Path
    told: bool = True


@dataclass
class DataSet:
    """Pictures of each split, and the classes in their order."""

    form: str
    root: Path
    splits: dict[str, list[Picture]] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)  # what reading could not take into this model -> how often

    @property
    def pictures(self) -> Iterator[Picture]:
        for pictures in self.splits.values():
            yield from pictures

    def counts(self) -> dict[str, dict[str, tuple[int, int]]]:
        """{class: {split: (boxes, pictures with it)}}, classes without a box too."""
        table = {name: dict.fromkeys(self.splits, (0, 0)) for name in self.classes}
        for split, pictures in self.splits.items():
            boxes = Counter(thing.name for picture in pictures for thing in picture.things)
            shown = Counter(name for picture in pictures for name in {thing.name for thing in picture.things})
            for name, count in boxes.items():
                table.setdefault(name, dict.fromkeys(self.splits, (0, 0)))[split] = (count, shown[name])
        return table


@dataclass(frozen=True)
class Part:
    """The files of one split.

    Attributes:
        split: "train", "val", "test", or another name.
        files: Annotation files; of YOLO, the pictures.
        folders: Where pictures are looked for.
        data: What the one JSON file holds, where it has been read already.
    """

    split: str
    files: tuple[Path, ...]
    folders: tuple[Path, ...] = ()
    data: Any = None


@dataclass(frozen=True)
class Layout:
    """What a folder or file was found to be.

    Attributes:
        form: "coco", "lvis", "mdetr", "voc", "yolo" or "labelme".
        root: The folder that was named, or that of the file.
        parts: Its splits.
        others: Further annotation files of a split, that are checked, and not used.
        classes: Names in their order, where a file tells.
        roboflow: It is an export of Roboflow.
    """

    form: str
    root: Path
    parts: tuple[Part, ...]
    others: tuple[Part, ...] = ()
    classes: tuple[str, ...] = ()
    roboflow: bool = False

    def __str__(self) -> str:
        names = {"coco": "COCO", "lvis": "LVIS", "mdetr": "MDETR", "voc": "PASCAL VOC", "yolo": "YOLO"}
        kind = names.get(self.form, "LabelMe") + (" (Roboflow export)" if self.roboflow else "")
        return f"{kind}: {', '.join(part.split for part in self.parts)}"


def in_order(splits: Sequence[str]) -> list[str]:
    """Names of splits: train, val and test first."""
    first = ("train", "val", "test")
    return [name for name in first if name in splits] + sorted(set(splits) - set(first))
