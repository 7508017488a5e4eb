"""Masks in annotation files: COCO's polygons and run lengths, checked and decoded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_api

from maskrcnn_benchmark.data.pictures import Size
from maskrcnn_benchmark.errors import DataError

CORNERS = 3  # of a polygon that has an inside

Row = Mapping[str, Any]


def bad_shapes(images: Sequence[Row], annotations: Sequence[Row]) -> Iterator[str]:
    """Annotations whose ``segmentation`` is missing, or no mask, or one of another size than its picture."""
    sizes = {row.get("id"): (row.get("height"), row.get("width")) for row in images if _is_id(row.get("id"))}
    for index, row in enumerate(annotations):
        place, number = f"annotations[{index}] (id {row.get('id')!r})", row.get("image_id")
        if problem := _problem(row.get("segmentation"), sizes.get(number, (None, None)) if _is_id(number) else ()):
            yield f"{place}: {problem}"


def _is_id(value: object) -> bool:
    return type(value) in (int, str)


def _problem(shape: Any, size: Sequence[Any]) -> str:
    if shape is None:
        return "no segmentation; masks are trained from polygons or run lengths"
    if isinstance(shape, dict):
        given, counts = shape.get("size"), shape.get("counts")
        if not (isinstance(given, list) and len(given) == 2) or not isinstance(counts, (list, str)):
            return f"segmentation {shape!s:.60} has no size [h, w] and counts"
        if None not in size and list(size) != given:
            return f"the mask is {given[0]} x {given[1]} pixels (h x w), its picture is {size[0]} x {size[1]}"
        return ""
    if not isinstance(shape, list) or not all(map(_is_polygon, shape)):
        return f"segmentation {shape!s:.60} is neither polygons [[x, y, x, y, ...], ...] nor run lengths"
    return ""


def _is_polygon(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) % 2 == 0
        and all(type(number) in (int, float) and math.isfinite(number) for number in value)
    )


def too_flat(annotations: Sequence[Row]) -> int:
    """How many polygons have less than three corners, and so no inside."""
    shapes = [shape for row in annotations if isinstance(shape := row.get("segmentation"), list)]
    return sum(len(polygon) < 2 * CORNERS for shape in shapes for polygon in shape)


def decode(shape: Any, size: Size) -> npt.NDArray[np.bool_]:
    """The mask (h, w) of a ``segmentation`` that :func:`bad_shapes` has seen; the union of its polygons.

    Raises:
        DataError: it is of another size, or its run lengths are damaged.
    """
    if isinstance(shape, list):
        polygons = [polygon for polygon in shape if len(polygon) >= 2 * CORNERS]
        if not polygons:
            return np.zeros(size, bool)
        whole: npt.NDArray[np.bool_] = mask_api.decode(mask_api.frPyObjects(polygons, *size)).any(axis=2)
        return whole
    if tuple(shape["size"]) != size:
        raise DataError(
            f"a mask is {shape['size'][0]} x {shape['size'][1]} pixels (h x w), its picture is {size[0]} x {size[1]}"
        )
    try:
        runs = mask_api.frPyObjects(shape, *size) if isinstance(shape["counts"], list) else shape
        mask: npt.NDArray[np.bool_] = mask_api.decode(runs) > 0
    except (ValueError, TypeError) as error:
        raise DataError(f"the run lengths of a mask are damaged ({error})") from None
    return mask
