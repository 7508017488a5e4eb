"""COCO's and MDETR's JSON files, checked and laid out as flat arrays, for training."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_benchmark.data.check import (
    Row,
    as_lists,
    box_array,
    inside,
    positions,
    problems_of,
    read_json,
    refuse,
    sizes_of,
)
from maskrcnn_benchmark.data.datasets.shapes import bad_shapes, too_flat
from maskrcnn_benchmark.data.index import Arrays, Index, cached, first_rows, pack, pack_value

logger = logging.getLogger(__name__)

VERSION = 1  # raise when the arrays change
EXTRA = ("dataset_name", "sentence_id", "original_img_id", "original_id", "task_id", "tokens_positive_eval")
"""Keys of an MDETR picture that travel with it."""


def coco_index(path: Path) -> Index:
    """A detection file: pictures by ascending id, and their boxes with crowds.

    N pictures, M boxes in the order of the pictures:

    ``ids`` (N,) int64 or texts; ``files`` texts; ``sizes`` (N, 2) int32 h, w, 0 where not given; ``first`` (N + 1,);
    ``solid`` (N,) bool, some box is more than one pixel wide and high; ``boxes`` (M, 4) float32 x, y, w, h as in the
    file; ``crowd`` (M,) bool; ``category`` (M,) int32, index into the value ``categories``; the value ``notes``.

    Raises:
        DataError: the file is missing or broken.
    """
    return cached("coco", [path], VERSION, lambda: _coco(path))


def mdetr_index(path: Path) -> Index:
    """A grounding file: as :func:`coco_index` for boxes and pictures, where a picture is one caption of a picture.

    In addition ``captions``, ``sources`` (``data_source``) and ``extra`` (JSON) texts; ``span_first`` (M + 1,) and
    ``spans`` (S, 2) int32, the characters [begin, end) that each box owns. ``category`` is the id itself.

    Raises:
        DataError: the file is missing or broken.
    """
    return cached("mdetr", [path], VERSION, lambda: _mdetr(path))


def masks_index(path: Path) -> Index:
    """The masks of a grounding file: ``shapes`` texts, the ``segmentation`` of each box of :func:`mdetr_index` as JSON.

    The value ``notes`` tells what was left out.

    Raises:
        DataError: the file is missing or broken, or a box has no mask, or one of another size than its picture.
    """
    return cached("mdetr-masks", [path], VERSION, lambda: _masks(path))


def _coco(path: Path) -> Arrays:
    data = as_lists(read_json(path), path)
    images, annotations, categories = data["images"], data["annotations"], data["categories"]
    for row in images:
        if not row.get("file_name") and isinstance(row.get("coco_url"), str):  # LVIS
            row["file_name"] = "/".join(row["coco_url"].split("/")[-2:])
    refuse(path, problems_of(images, annotations, categories))
    arrays, order = _pictures(images, annotations)
    category = positions(annotations, "category_id", categories).astype(np.int32)
    rows = [{"id": row["id"], "name": row["name"]} for row in categories]
    return arrays | {"category": category[order]} | pack_value("categories", rows)


def _mdetr(path: Path) -> Arrays:
    data = mdetr_lists(path)
    images, annotations = data["images"], data["annotations"]
    refuse(path, chain(problems_of(images, annotations, None), bad_captions(images, annotations)))
    arrays, order = _pictures(images, annotations)
    images = sorted(images, key=lambda row: row["id"])
    spans = [annotations[index]["tokens_positive"] for index in order]
    category = np.array([_label(annotations[index]) for index in order], dtype=np.int32)
    flat = np.array([span for row in spans for span in row], dtype=np.int32).reshape(-1, 2)
    arrays |= {"category": category, "spans": flat, "span_first": first_rows([len(row) for row in spans])}
    arrays |= pack("captions", [row["caption"] for row in images])
    arrays |= pack("sources", [str(row.get("data_source", "")) for row in images])
    return arrays | pack("extra", [json.dumps({key: row[key] for key in EXTRA if key in row}) for row in images])


def _masks(path: Path) -> Arrays:
    data = mdetr_lists(path)
    images, annotations = data["images"], data["annotations"]
    refuse(path, chain(problems_of(images, annotations, None), bad_shapes(images, annotations)))
    order = np.argsort(positions(annotations, "image_id", sorted(images, key=lambda row: row["id"])), kind="stable")
    flat = too_flat(annotations)
    notes = [f"{flat} polygons have less than three corners: left out of the masks"] if flat else []
    shapes = [json.dumps(annotations[index]["segmentation"]) for index in order]
    return pack("shapes", shapes) | pack_value("notes", notes)


def mdetr_lists(path: Path) -> dict[str, list[Row]]:
    """The lists of a grounding file, as they are; but sizes are numbers, which Flickr30k's have in quotes.

    Raises:
        DataError: the file is missing, or has no such lists.
    """
    data = read_json(path)
    if isinstance(data, dict):
        data.setdefault("categories", [])  # not used
    data = as_lists(data, path)
    for row in data["annotations"]:
        if "tokens" in row:  # another name for it
            row["tokens_positive"] = row.pop("tokens")
    for row in data["images"]:
        row |= {side: int(row[side]) for side in ("width", "height") if _is_digits(row.get(side))}
    return data


def _pictures(images: list[Row], annotations: list[Row]) -> tuple[Arrays, np.ndarray]:
    """What both have in common, and the order (M,) of the annotations in it."""
    images = sorted(images, key=lambda row: row["id"])
    picture = positions(annotations, "image_id", images)
    boxes = box_array([row["bbox"] for row in annotations])
    notes: list[str] = []
    sizes = sizes_of(images)
    inside(boxes, sizes[picture], [row.get("id") for row in annotations], notes)
    order = np.argsort(picture, kind="stable")
    solid = np.zeros(len(images), dtype=bool)
    solid[picture[(boxes[:, 2:] > 1).all(axis=1)]] = True
    arrays: Arrays = {
        "sizes": np.where(np.isfinite(sizes), sizes, 0)[:, ::-1].astype(np.int32),
        "first": first_rows(np.bincount(picture, minlength=len(images))),
        "solid": solid,
        "boxes": boxes[order].astype(np.float32),
        "crowd": np.array([bool(row.get("iscrowd", 0)) for row in annotations], dtype=bool)[order],
    }
    ids = [row["id"] for row in images]
    arrays |= pack("ids", ids) if isinstance(ids[0], str) else {"ids": np.array(ids, dtype=np.int64)}
    return arrays | pack("files", [row["file_name"] for row in images]) | pack_value("notes", notes), order


def _is_digits(value: object) -> bool:
    """A whole number in quotes."""
    return isinstance(value, str) and value.isascii() and value.isdigit()


def _label(row: Row) -> int:
    """The category of a grounding box, 1 for all of them in most files."""
    label = row.get("category_id")
    return label if type(label) is int and label > 0 else 1


def bad_captions(images: list[Row], annotations: list[Row]) -> Iterator[str]:
    """Captions that are missing, and spans that do not fit theirs."""
    lengths: dict[str, int] = {}
    for index, row in enumerate(images):
        caption = row.get("caption")
        if isinstance(caption, str) and caption.strip():
            lengths[str(row.get("id"))] = len(caption)
        else:
            yield f"images[{index}] (id {row.get('id')!r}): no caption; grounding data have one for each picture"
    for index, row in enumerate(annotations):
        length = lengths.get(str(row.get("image_id")))
        if length is not None:
            yield from _bad_spans(row, f"annotations[{index}]", length)


def _bad_spans(row: Mapping[str, Any], place: str, length: int) -> Iterator[str]:
    spans = row.get("tokens_positive")
    if not isinstance(spans, list):
        yield f"{place} (id {row.get('id')!r}): no tokens_positive, the characters of the caption that name the box"
        return
    for number, span in enumerate(spans):
        where = f"{place}.tokens_positive[{number}]"
        if not (isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)):
            yield f"{where} = {span!r} is not two whole numbers [begin, end)"
        elif not 0 <= span[0] <= span[1] <= length:
            yield f"{where} = {span} but the caption has {length} characters"
