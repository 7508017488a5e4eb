"""The ground truth of PhraseCut: VGPhraseCut_v0, whose tasks are phrases with the polygons of what they are about."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from maskrcnn_benchmark.data.check import read_json, refuse
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.phrasecut_subsets import PhraseStructure, Ranks

Mask = npt.NDArray[np.bool_]  # (h, w)
Point = Sequence[float]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class PhraseTask:
    """A phrase of a picture, and what it is about."""

    task_id: str
    image_id: int
    phrase: str
    size: tuple[int, int]  # (h, w) of the picture
    boxes: npt.NDArray[np.float64]  # (M, 4) x, y, w, h of the M instances, at least one
    polygons: Sequence[Sequence[Point]]  # of all instances together; points are x, y
    structure: PhraseStructure
    from_coco: bool

    def mask(self) -> Mask:
        """(h, w): all polygons, with their outlines, by whole pixels; one of a single point is none."""
        picture = Image.new("L", (self.size[1], self.size[0]))
        draw = ImageDraw.Draw(picture)
        for polygon in self.polygons:
            if len(polygon) > 1:
                draw.polygon([(int(x), int(y)) for x, y in polygon], fill=1, outline=1)
        return np.asarray(picture) > 0


@dataclass(frozen=True)
class PhraseTasks:
    """The tasks of a split, in the order of the file."""

    where: str  # the file, for messages
    tasks: tuple[PhraseTask, ...]
    ranks: Ranks
    sha256: str  # of the three files


def read_tasks(folder: str | Path, split: str) -> PhraseTasks:
    """Read a split of VGPhraseCut_v0.

    Args:
        folder: With ``refer_<split>.json``, ``image_data_split.json`` and ``name_att_rel_count.json``.
        split: "train", "val", "test" or "miniv".

    Raises:
        DataError: a file is missing or cannot be understood.
    """
    folder = Path(folder)
    where = folder / f"refer_{split}.json"
    if not where.is_file():
        there = ", ".join(sorted(other.name for other in folder.glob("refer_*.json"))) or "none"
        raise DataError(f"{where}: no such file of phrases (there: {there}); give the folder VGPhraseCut_v0")
    rows = _rows(where)
    pictures = {row.get("image_id"): row for row in _rows(folder / "image_data_split.json")}
    refuse(where, _problems(rows, pictures))
    files = [where, folder / "image_data_split.json", folder / "name_att_rel_count.json"]
    ranks = _ranks(files[-1])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return PhraseTasks(str(where), tuple(_task(row, pictures[row["image_id"]]) for row in rows), ranks, digest)


def _rows(path: Path) -> list[Row]:
    data = read_json(path)
    if not isinstance(data, list) or not data or not all(isinstance(row, dict) for row in data):
        raise DataError(f"{path}: holds {data!r:.40}, not a list of JSON objects")
    return data


def _ranks(path: Path) -> Ranks:
    data = read_json(path)
    try:
        names, attributes = ([str(row[0]) for row in data[key]] for key in ("cat", "att"))
    except (TypeError, KeyError, IndexError):
        raise DataError(f'{path}: no lists "cat" and "att" of [word, count], the most frequent first') from None
    return Ranks(names, attributes)


def _problems(rows: Sequence[Row], pictures: Mapping[Any, Row]) -> Iterator[str]:
    seen = set()
    for index, row in enumerate(rows):
        task, picture = row.get("task_id"), pictures.get(row.get("image_id"))
        place = f"[{index}] (task_id {task!r})"
        if not isinstance(task, str) or task in seen:
            yield f"{place}: task_id is {'there twice' if task in seen else 'no text'}"
        seen.add(task)
        if picture is None:
            yield f"{place}: image_id {row.get('image_id')!r} is not in image_data_split.json"
        elif not all(type(picture.get(side)) is int and picture[side] > 0 for side in ("width", "height")):
            yield f"{place}: image_data_split.json gives no width and height of picture {row['image_id']!r}"
        structure = row.get("phrase_structure")
        if not isinstance(structure, dict) or not isinstance(structure.get("name"), str):
            yield f"{place}: no phrase_structure with a name"
        if not _are_boxes(row.get("instance_boxes")):
            yield f"{place}: instance_boxes is {row.get('instance_boxes')!r:.60}, not boxes [x, y, w, h], at least one"
        if not _are_polygons(row.get("Polygons")):
            yield f"{place}: Polygons is {row.get('Polygons')!r:.60}, not for each instance lists of points [x, y]"


def _are_boxes(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_are_numbers(box, 4) for box in value)


def _are_polygons(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(part, list)
        and all(isinstance(loop, list) and all(_are_numbers(xy, 2) for xy in loop) for loop in part)
        for part in value
    )


def _are_numbers(value: object, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(number) in (int, float) for number in value)


def _task(row: Row, picture: Row) -> PhraseTask:
    structure = row["phrase_structure"]
    return PhraseTask(
        task_id=row["task_id"],
        image_id=row["image_id"],
        phrase=str(row.get("phrase", "")),
        size=(picture["height"], picture["width"]),
        boxes=np.array(row["instance_boxes"], np.float64),
        polygons=[polygon for instance in row["Polygons"] for polygon in instance],
        structure=PhraseStructure(
            name=structure["name"],
            attributes=tuple(structure.get("attributes") or ()),
            relations=len(structure.get("relation_descriptions") or ()),
            kind=str(structure.get("type", "")),
        ),
        from_coco=bool(picture.get("coco_id")),
    )
