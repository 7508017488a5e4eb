"""Pictures to COCO JSON: what a detector finds in them, as annotations to look through and to train on."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api
from tqdm import tqdm

from maskrcnn_benchmark.api import Predictor
from maskrcnn_benchmark.data.check import read_json
from maskrcnn_benchmark.data.pictures import PictureError, open_picture
from maskrcnn_benchmark.data.pseudo_annotations import write_json
from maskrcnn_benchmark.engine.inference import Model
from maskrcnn_benchmark.engine.shards import Found, PredictionStore, key_of
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.structures import Detections, ImageMeta
from maskrcnn_benchmark.structures.boxes import clip

logger = logging.getLogger(__name__)

SHOWN = 3  # pictures or names in a message

Row = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """What is asked of every picture.

    Attributes:
        labels: Names; None: all classes of a detector that knows a list.
        min_score: Leave out what scores lower.
        top: At most so many of a picture; None: any number.
    """

    labels: tuple[str, ...] | None
    min_score: float = 0.3
    top: int | None = 100


def label_pictures(model: Model, files: Sequence[Path], query: Query, out: Path) -> Row:
    """Label pictures and write ``out``; run again after an interruption, it goes on.

    Pictures that cannot be read are left out, told in the log and listed in the file ("info": "unreadable").

    Args:
        model: With its weights.
        files: The pictures.
        query: What to look for.
        out: A ``.json`` file. Where it is there, and is of the same pictures, question and weights, nothing is done.

    Returns:
        What the file holds.

    Raises:
        ConfigError: the file is there and is of something else.
        DataError: no picture can be read, or the file cannot be written.
        PromptError: the labels cannot be asked for.
    """
    key = _key(model, files, query)
    if out.exists():
        return _there(out, key)
    if model.vocabulary is not None and query.labels is not None:
        model.vocabulary.rows(query.labels)  # a name that it cannot be asked for shows before a folder is made
    store = PredictionStore(out.with_suffix(".parts"), key)
    store.drop_others()
    todo = [number for number in range(len(files)) if (number, 0) not in store]
    if len(todo) < len(files):
        logger.info(
            "an earlier run labelled %d of %d pictures; it goes on from there", len(files) - len(todo), len(files)
        )
    predictor = Predictor(model)
    try:
        for number in tqdm(todo, unit="picture", disable=None):
            store.add([Found(number, 0, _ask(predictor, files[number], query))])
    finally:
        store.flush()  # whatever happened, what has been found need not be found again
    store.refresh()
    labelled = _coco(model, files, query, store)
    write_json(out, labelled)
    store.remove()
    return labelled


def _key(model: Model, files: Sequence[Path], query: Query) -> str:
    seen = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return key_of([model.key, model.device.type, seen, query.labels, query.min_score, query.top])


def _there(out: Path, key: str) -> Row:
    data = read_json(out)
    info = data.get("info") if isinstance(data, dict) else None
    if not isinstance(info, dict) or info.get("key") != key:
        raise ConfigError(
            f"{out}: is there, and is of other pictures, labels or weights: take it away, or name another"
        )
    logger.info("%s is there: nothing to do", out)
    whole: Row = data
    return whole


def _ask(predictor: Predictor, file: Path, query: Query) -> Detections | None:
    """None: the picture cannot be read."""
    try:
        predictor.set_image(file)
    except PictureError as error:
        logger.warning("left out: %s", error)
        return None
    return predictor.predict(query.labels, min_score=query.min_score, top=query.top)


def _coco(model: Model, files: Sequence[Path], query: Query, store: PredictionStore) -> Row:
    names = query.labels or model.classes
    root = Path(os.path.commonpath([file.resolve().parent for file in files]))
    images: list[Row] = []
    annotations: list[Row] = []
    unreadable: dict[str, str] = {}
    flat = 0
    for number, file in enumerate(files):
        name = file.resolve().relative_to(root).as_posix()
        found = store.read(number, 1, lambda size, number=number: ImageMeta(number, size, size))  # type: ignore[misc]
        if found is None:
            unreadable[name] = _reason(file)
            continue
        height, width = found.meta.orig_size
        images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
        rows = list(_annotations(found))
        flat += len(found) - len(rows)
        annotations += [{"id": len(annotations) + i, "image_id": number + 1, **row} for i, row in enumerate(rows, 1)]
    if not images:
        store.remove()
        raise DataError(f"none of {len(files)} pictures can be read, such as {files[0]}: {_reason(files[0])}")
    categories = [{"id": label, "name": name} for label, name in enumerate(names, 1)]
    _tell(unreadable, flat, annotations, categories, len(files))
    info = {
        "description": "boxes found by a detector, not looked through",
        "pictures": str(root),
        "weights": model.weights.path.name,
        "weights_sha256": model.weights.digest,
        "min_score": query.min_score,
        "unreadable": unreadable,
        "key": store.key,
    }
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def _annotations(found: Detections) -> list[Row]:
    """Of a picture, inside it; a box that has no area there is none."""
    boxes = clip(found.boxes, found.meta.orig_size)
    rows = []
    for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        if x2 <= x1 or y2 <= y1:
            continue
        box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
        row: Row = {"category_id": int(found.labels[index]), "bbox": box, "area": round(box[2] * box[3], 2)}
        row |= {"iscrowd": 0, "score": round(float(found.scores[index]), 5)}
        if found.masks is not None:
            runs = mask_api.encode(np.asfortranarray(found.masks[index].numpy(), dtype=np.uint8))
            shape = {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")}
            row |= {"segmentation": shape, "area": float(mask_api.area(runs))}
        rows.append(row)
    return rows


def _reason(file: Path) -> str:
    try:
        open_picture(file)
    except PictureError as error:
        return error.reason
    return "could not be read when it was labelled"


def _tell(unreadable: Row, flat: int, annotations: Sequence[Row], categories: Sequence[Row], pictures: int) -> None:
    if unreadable:
        first, reason = next(iter(unreadable.items()))
        logger.warning(
            "%d of %d pictures cannot be read and are left out, such as %s: %s",
            len(unreadable),
            pictures,
            first,
            reason,
        )
    if flat:
        logger.warning("%d boxes lie outside of their picture and are left out", flat)
    count = Counter(row["category_id"] for row in annotations)
    if empty := [row["name"] for row in categories if not count[row["id"]]]:
        shown = ", ".join(empty[:SHOWN]) + (", ..." if len(empty) > SHOWN else "")
        logger.warning("%d of %d classes are found in no picture: %s", len(empty), len(categories), shown)
