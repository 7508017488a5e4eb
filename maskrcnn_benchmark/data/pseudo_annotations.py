"""Detections of pictures that have names of classes only, made into annotations to train on.

What the three scripts of DECOLA do (https://github.com/janghyuncho/DECOLA, ``tools/``): predictions become annotations,
annotations of several input sizes become one file, and of boxes that overlap the best one stays.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskrcnn_benchmark.data.check import as_lists, read_json
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.layers.ops import nms
from maskrcnn_benchmark.structures.boxes import xywh_to_xyxy

logger = logging.getLogger(__name__)

IMAGE_INFO = "datasets/imagenet/annotations/imagenet_lvis_image_info.json"
FOLDER = "datasets/imagenet/pseudo_annotations/"
COMPARED = ("released", "xywh")
"""How boxes are compared: as the released tool does, which takes x, y, w, h for two corners; or as what they are."""

_OF_SIZE = re.compile(r"_minsize_(\d+)$")

Row = dict[str, Any]


def sized(path: Path, size: int) -> Path:
    """The file of one input size that belongs to a file of predictions: ``results_minsize_240.json``."""
    return path.with_name(f"{path.stem}_minsize_{size}{path.suffix}")


def predictions_for(path: Path, name: str) -> Path:
    """The file to convert to annotations called ``name``.

    DECOLA's loop over input sizes gives one path for every size. Where the file of the size in the name stands beside
    it, that one is meant.
    """
    size = _OF_SIZE.search(name)
    own = sized(path, int(size[1])) if size else path
    if own != path and own.is_file():
        logger.info("%s is there: it is taken for %s in place of %s", own, name, path.name)
        return own
    return path


def read_predictions(path: Path) -> list[Row]:
    """COCO results.

    Raises:
        DataError: the file is missing or is none, or a row lacks an id, a box x, y, w, h or a score.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds a {type(rows).__name__}, not a list of predictions (COCO results)")
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or not {"image_id", "category_id"} <= row.keys() or not _numbers(row):
            raise DataError(
                f"{path}: row {index} is {row!r:.80}: a prediction has image_id, category_id, bbox [x, y, w, h], score"
            )
    return rows


def _numbers(row: Row) -> bool:
    box = row.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(type(value) in (int, float) and math.isfinite(value) for value in (*box, row.get("score")))


def read_annotations(path: Path) -> Row:
    """An annotation file, with all that it holds.

    Raises:
        DataError: it is missing, or lacks images, annotations or categories.
    """
    return as_lists(read_json(path), path)


def convert(info: Row, predictions: Sequence[Row], where: Path) -> Row:
    """Predictions as annotations of the pictures that they are of.

    Args:
        info: Annotation file of these pictures; its own annotations give way.
        predictions: See :func:`read_predictions`.
        where: Their file.

    Raises:
        DataError: a picture or category of a prediction is not in ``info``.
    """
    for key, rows in (("image_id", info["images"]), ("category_id", info["categories"])):
        known = {row.get("id") for row in rows}
        unknown = next((index for index, row in enumerate(predictions) if row[key] not in known), None)
        if unknown is not None:
            raise DataError(
                f"{where}: row {unknown}: {key} {predictions[unknown][key]!r} is not in the annotation file "
                f"({len(known)} known): give the one that these predictions were made for (--annotation_path)"
            )
    return {**info, "annotations": [{**row, "id": number} for number, row in enumerate(predictions, 1)]}


def join(parts: Sequence[Row], files: Sequence[Path]) -> Row:
    """Annotations of the same pictures in one: by picture as they first come, in each by the order of the parts.

    Args:
        parts: What the files hold; pictures and categories are those of the first.
        files: Their names, for messages.

    Raises:
        DataError: a file has other pictures or categories than the first.
    """
    first = parts[0]
    for part, file in zip(parts, files, strict=True):
        for key in ("images", "categories"):
            if [row.get("id") for row in part[key]] != [row.get("id") for row in first[key]]:
                raise DataError(f"{file}: its {key} are not those of {files[0]}: convert both with one annotation file")
    grouped = _by_picture(row for part in parts for row in part["annotations"])
    rows = [row for mine in grouped.values() for row in mine]
    annotations = [{**row, "id": number} for number, row in enumerate(rows, 1)]
    return {"images": first["images"], "annotations": annotations, "categories": first["categories"]}


def deduplicate(data: Row, threshold: float, compared: str = "released") -> Row:
    """Of boxes of a picture that overlap, whatever their category, only the best stays; best first.

    Args:
        data: Annotations with scores, x, y, w, h.
        threshold: A box goes when its IoU with a better one is larger.
        compared: One of :data:`COMPARED`. "released": where w <= x or h <= y, a box has no area and always stays.

    Raises:
        ConfigError: ``threshold`` is not from 0 to 1, or ``compared`` is unknown.
        DataError: an annotation has no score or box.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"--iou_thres {threshold}: an IoU is between 0 and 1")
    if compared not in COMPARED:
        raise ConfigError(f"--boxes {compared!r}: choices are {', '.join(COMPARED)}")
    for index, row in enumerate(data["annotations"]):
        if not _numbers(row):
            raise DataError(
                f"annotations[{index}] is {row!r:.80}: bbox [x, y, w, h] and score are needed: were they made "
                "from predictions?"
            )
    kept: list[Row] = []
    for image, rows in _by_picture(data["annotations"]).items():
        boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float32)
        scores = torch.tensor([row["score"] for row in rows], dtype=torch.float32)
        corners = boxes if compared == "released" else xywh_to_xyxy(boxes)
        for place in _best(corners, scores, threshold).tolist():
            box, score, category = boxes[place].tolist(), float(scores[place]), rows[place]["category_id"]
            kept.append({"image_id": image, "category_id": category, "bbox": box, "score": score, "id": len(kept) + 1})
    return {**data, "annotations": kept}


def _best(corners: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """(M,) which of N boxes stay, best first; a box without area meets no other."""
    solid = (corners[:, 2:] > corners[:, :2]).all(1)
    index = solid.nonzero().flatten()
    kept = torch.cat([index[nms(corners[index], scores[index], threshold)], (~solid).nonzero().flatten()])
    kept = kept.sort().values
    return kept[scores[kept].argsort(descending=True, stable=True)]


def _by_picture(rows: Iterable[Row]) -> dict[Any, list[Row]]:
    grouped: dict[Any, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row["image_id"], []).append(row)
    return grouped


def write_json(path: Path, data: Any) -> None:
    """The file has its name only when it is whole.

    Raises:
        DataError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            json.dump(data, file)
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}): choose another place (--out_root)") from None
    finally:
        partial.unlink(missing_ok=True)
