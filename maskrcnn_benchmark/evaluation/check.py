"""COCO annotations and results, checked and put into the one form that every evaluation engine reads alike.

The engines differ on odd input, and most of them do so silently: an annotation with id 0 is never matched, annotations
that share an id are merged, a result for an unknown picture or with a score that is no number is accepted by some. So
all of that is decided here: what cannot be meant is refused, what can be completed is completed, with a note.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.columns import Results

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
ImageId = int | str
SHOWN = 5


@dataclass
class GroundTruth:
    """Annotations whose picture ids are whole numbers, whose annotation ids count from 1, with all fields there."""

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]  # ascending ids
    number: dict[ImageId, int]  # picture id in the file -> id used here
    notes: list[str] = field(default_factory=list)

    def as_coco(self) -> dict[str, Any]:
        """A fresh COCO dict: engines write into what they are given."""
        lists = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        return {"info": {}, "licenses": [], **{key: [dict(row) for row in rows] for key, rows in lists.items()}}

    @property
    def image_ids(self) -> list[ImageId]:
        """As in the file, ascending: the order of the data set."""
        return sorted(self.number, key=self.number.__getitem__)


def read_coco(source: Row | str | Path) -> tuple[Row, str]:
    """(COCO dict, what to call it in messages) of a file, or of a dict already read.

    Raises:
        DataError: the file is missing, or is not a JSON object.
    """
    if isinstance(source, Mapping):
        return source, "annotations"
    try:
        data = json.loads(Path(source).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{source}: no such annotation file") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{source}: not valid JSON ({error}); copy or download it again") from None
    if not isinstance(data, dict):
        raise DataError(f"{source}: holds a {type(data).__name__}, not COCO annotations; is it a results file?")
    return data, str(source)


def with_shapes(coco: Row, where: str, iou_types: Sequence[str]) -> list[str]:
    """Those of several iou types that the annotations have shapes for: without any outline masks are not scored, and
    that is told."""
    rows = coco.get("annotations")
    if (
        len(iou_types) < 2
        or not isinstance(rows, list)
        or any(isinstance(r, Mapping) and r.get("segmentation") for r in rows)
    ):
        return list(iou_types)
    logger.warning("%s: no object has a segmentation: masks are not scored", where)
    return [kind for kind in iou_types if kind != "segm"]


def check_ground_truth(
    coco: Row,
    where: str = "annotations",
    iou_type: str = "bbox",
    categories: Sequence[Row] | None = None,
    crowds: bool = True,
) -> GroundTruth:
    """Check COCO annotations and complete them.

    Args:
        coco: What an annotation file holds; left as it is.
        where: Its name, for messages.
        iou_type: "bbox" or "segm": the shape of an object that counts.
        categories: Category rows that count, when not all of the file's; annotations of others are left out, noted.
        crowds: Whether the format knows crowds; if not, every annotation is one object.

    Raises:
        DataError: ids that are doubled or lead nowhere, shapes that are none.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(coco.get(key), list):
            raise DataError(f'{where}: no "{key}" list; COCO annotations have images, annotations and categories')
    numbers = _number_pictures([image.get("id") for image in coco["images"]], where)
    images = [{**image, "id": numbers[image["id"]]} for image in coco["images"]]
    rows = [dict(row) for row in (coco["categories"] if categories is None else categories)]
    counted = _category_ids(rows, where)
    known = counted | {row.get("id") for row in coco["categories"]}
    unused = "segmentation" if iou_type == "bbox" else None  # most of the memory
    annotations = []
    for index, source in enumerate(coco["annotations"]):
        place = f"{where}: annotations[{index}] (id {source.get('id')})"
        if source.get("image_id") not in numbers:
            raise DataError(f"{place}: image_id {source.get('image_id')!r} is not in images")
        if source.get("category_id") not in known:
            raise DataError(f"{place}: category_id {source.get('category_id')!r} is not in categories")
        if source["category_id"] in counted:
            _check_shape(source, iou_type, place)
            row = {key: value for key, value in source.items() if key != unused}
            annotations.append(row | {"image_id": numbers[source["image_id"]]} | ({} if crowds else {"iscrowd": 0}))
    truth = GroundTruth(images, annotations, sorted(rows, key=lambda row: row["id"]), numbers)
    if left_out := len(coco["annotations"]) - len(annotations):
        truth.notes.append(f"{left_out} annotations of categories that are not evaluated: left out")
    _number_annotations(truth, where)
    _complete(truth, iou_type)
    return truth


def _doubled(values: Iterable[Any]) -> str:
    return ", ".join(repr(value) for value, count in Counter(values).items() if count > 1) or ""


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number_pictures(ids: Sequence[Any], where: str) -> dict[ImageId, int]:
    """Picture id -> 1, 2, ... in the order in which the reference engine takes them; some engines take nothing else."""
    if not ids:
        raise DataError(f"{where}: images is empty; nothing to evaluate")
    texts = [isinstance(value, str) for value in ids]
    for index, value in enumerate(ids):
        if not (_is_whole(value) or texts[index]):
            raise DataError(f"{where}: images[{index}]: id {value!r} is neither a whole number nor text")
    if any(texts) and not all(texts):
        raise DataError(f"{where}: some picture ids are text, such as {ids[texts.index(True)]!r}, and some are numbers")
    if len(set(ids)) < len(ids):
        raise DataError(
            f"{where}: picture ids occur more than once: {_first(_doubled(ids))}; each picture needs its own"
        )
    return {value: number for number, value in enumerate(sorted(ids), start=1)}


def _first(names: str) -> str:
    parts = names.split(", ")
    return ", ".join(parts[:SHOWN]) + (", ..." if len(parts) > SHOWN else "")


def _category_ids(rows: Sequence[Row], where: str) -> set[int]:
    ids = [row.get("id") for row in rows]
    if not ids:
        raise DataError(f"{where}: categories is empty; nothing to evaluate")
    for index, value in enumerate(ids):
        if not _is_whole(value) or value < 0:  # type: ignore[operator]
            raise DataError(f"{where}: categories[{index}]: id {value!r} is not a whole number from 0 on")
    if len(set(ids)) < len(ids):
        raise DataError(
            f"{where}: category ids occur more than once: {_first(_doubled(ids))}; each class needs its own"
        )
    return set(ids)  # type: ignore[arg-type]


def _check_shape(row: Row, iou_type: str, place: str) -> None:
    if iou_type == "segm":
        if not row.get("segmentation"):
            raise DataError(f"{place}: no segmentation; evaluate boxes (bbox) instead")
        return
    box = row.get("bbox")
    if not _is_box(box):
        raise DataError(f"{place}: bbox {box!r} is not four numbers [x, y, width, height]")
    if box[2] < 0 or box[3] < 0:  # type: ignore[index]
        raise DataError(f"{place}: bbox {box} has a negative width or height; COCO wants [x, y, width, height]")


def _is_box(box: object) -> bool:
    return (
        isinstance(box, (list, tuple))
        and len(box) == 4
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in box)
    )


def _number_annotations(truth: GroundTruth, where: str) -> None:
    """Ids from 1, because the engines take 0 for "no match"; the order stays."""
    ids = [row.get("id") for row in truth.annotations]
    given = [value for value in ids if value is not None]
    if len(set(given)) < len(given):
        raise DataError(f"{where}: annotation ids occur more than once: {_first(_doubled(given))}; each needs its own")
    if all(_is_whole(value) and value > 0 for value in ids):  # type: ignore[operator]
        return
    for index, row in enumerate(truth.annotations):
        row["id"] = index + 1
    truth.notes.append("annotation ids are not all 1 or more: renumbered from 1, or some could never be matched")


def _complete(truth: GroundTruth, iou_type: str) -> None:
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in truth.images}
    without: Counter[str] = Counter()
    for row in truth.annotations:
        if row.get("iscrowd") is None:
            row["iscrowd"] = 0
            without["iscrowd (taken as 0)"] += 1
        if row.get("area") is None:
            mask = iou_type == "segm"
            row["area"] = _mask_area(row, sizes[row["image_id"]]) if mask else float(row["bbox"][2] * row["bbox"][3])
            without[f"area (taken from the {'mask' if mask else 'box'})"] += 1
    truth.notes += [f"{count} annotations without {what}" for what, count in without.items()]


def _mask_area(row: Row, size: tuple[Any, Any]) -> float:
    shape = row["segmentation"]
    if isinstance(shape, list) or isinstance(shape.get("counts"), list):
        shape = mask_api.frPyObjects(shape, *size)
    return float(mask_api.area(mask_api.merge(shape) if isinstance(shape, list) else shape))


def check_results(rows: Sequence[Row], truth: GroundTruth, iou_type: str) -> tuple[Results, list[str]]:
    """Results that an engine can take, and notes; those of unknown categories are dropped, as the reference does.

    Args:
        rows: ``{image_id, category_id, bbox [x, y, w, h] | segmentation, score}`` each.
        truth: What they are scored against.
        iou_type: "bbox" or "segm".

    Raises:
        DataError: a row is of no known picture, or its score or shape is no number.
    """
    known = {row["id"] for row in truth.categories}
    key = "segmentation" if iou_type == "segm" else "bbox"
    kept, dropped = [], Counter[Any]()
    for index, row in enumerate(rows):
        place = f"results[{index}]"
        image, score = row.get("image_id"), row.get("score")
        if image not in truth.number:
            raise DataError(f"{place}: image_id {image!r} is not in the annotations{_other_type(image, truth)}")
        if not isinstance(score, (int, float)) or not math.isfinite(score):
            raise DataError(f"{place} (picture {image!r}): score {score!r} is not a finite number")
        if not (row.get(key) if iou_type == "segm" else _is_box(row.get(key))):
            raise DataError(f"{place} (picture {image!r}): {key} {row.get(key)!r} is no shape")
        if row.get("category_id") in known:
            kept.append(row)
        else:
            dropped[row.get("category_id")] += 1
    if 0 in dropped:
        raise DataError(f"{dropped[0]} results have category_id 0, which is no category: are the ids counted from 0?")
    masks = np.full(len(kept), None)
    masks[:] = [row.get("segmentation") for row in kept]
    results = Results(
        np.array([truth.number[row["image_id"]] for row in kept], np.int64),
        np.array([row["category_id"] for row in kept], np.int64),
        np.array([row.get("bbox") or [0, 0, 0, 0] for row in kept], np.float64).reshape(-1, 4),
        np.array([row["score"] for row in kept], np.float64),
        masks,
    )
    shown = _first(", ".join(map(str, dropped)))
    notes = [f"{dropped.total()} results of unknown categories dropped: ids {shown}"] if dropped else []
    return results, notes + check_columns(results, truth, iou_type)


def check_columns(results: Results, truth: GroundTruth, iou_type: str) -> list[str]:
    """Notes on results whose pictures and categories are known, and whose boxes and scores are numbers.

    Raises:
        DataError: masks are to be scored, and there is a result without.
    """
    if iou_type == "segm":
        bare = np.array([mask is None for mask in results.masks], bool)
        if bare.any():
            image = truth.image_ids[results.picture[bare.argmax()] - 1]
            raise DataError(f"picture {image!r} has no masks to evaluate: evaluate boxes (bbox) instead")
    notes = []
    if odd := int(((results.scores < 0) | (results.scores > 1)).sum()):
        notes.append(f"{odd} scores are outside 0..1")
    if not len(results):
        notes.append("no predictions: every number is 0, or -1 where there is no ground truth either")
    return notes


def _other_type(image: object, truth: GroundTruth) -> str:
    example = next(iter(truth.number))
    if isinstance(image, str) == isinstance(example, str):
        return ""
    return f" (ids there are {'text' if isinstance(example, str) else 'numbers'}, such as {example!r})"
