"""Detections of many pictures as a few arrays: 36 bytes a box, where a row as a dict takes a thousand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_api
from torch import Tensor

from maskrcnn_benchmark.structures import Detections

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
ROWS = 10_000  # written at a time


@dataclass(frozen=True)
class Columns:
    """N detections."""

    picture: npt.NDArray[np.int32]  # (N,) number of the picture
    boxes: npt.NDArray[np.floating]  # (N, 4) xyxy in pixels of the picture, in the detector's own precision
    scores: npt.NDArray[np.floating]  # (N,)
    labels: npt.NDArray[np.int32]  # (N,)
    masks: npt.NDArray[np.object_]  # (N,) COCO's run lengths, None where there is no mask

    @classmethod
    def of(cls, found: Detections, picture: int) -> Columns:
        """Copies of one picture's detections; masks as run lengths."""
        masks = np.full(len(found), None)
        if found.masks is not None:
            masks[:] = [run_lengths(mask) for mask in found.masks]
        return cls(
            np.full(len(found), picture, np.int32),
            found.boxes.numpy().copy(),
            found.scores.numpy().copy(),
            found.labels.numpy().astype(np.int32),
            masks,
        )

    @classmethod
    def cat(cls, parts: Sequence[Columns]) -> Columns:
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        return cls(**{name: np.concatenate(column) for name, column in columns.items()})

    @classmethod
    def empty(cls) -> Columns:
        nothing = np.zeros(0, np.int32)
        return cls(nothing, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), nothing, np.full(0, None))

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, keep: npt.NDArray[Any] | slice) -> Columns:
        return Columns(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})

    def xywh(self, plus_one: bool) -> Floats:
        """(N, 4) x, y, w, h; the sides are taken in the precision of the boxes, as the reference does."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2] + self.boxes.dtype.type(plus_one)
        return np.concatenate((self.boxes[:, :2], sides), axis=1).astype(np.float64)


@dataclass(frozen=True)
class Results:
    """N results as an engine takes them."""

    picture: Ints  # (N,) ids of the pictures, from 1
    category: Ints  # (N,) category ids
    boxes: Floats  # (N, 4) x, y, w, h
    scores: Floats  # (N,)
    masks: npt.NDArray[np.object_]  # (N,) COCO's run lengths or polygons, None where there is none

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, keep: npt.NDArray[Any] | slice) -> Results:
        return Results(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})

    def table(self) -> Floats:
        """(N, 7): picture, x, y, w, h, score, category."""
        return np.column_stack((self.picture, self.boxes, self.scores, self.category)).astype(np.float64)

    def rows(self, iou_type: str, ids: Sequence[int | str] | None = None) -> Iterator[dict[str, Any]]:
        """In COCO's results format.

        Args:
            iou_type: "bbox" or "segm": the shape that a row has.
            ids: Picture ids to put in place of the numbers 1, 2, ...
        """
        for start in range(0, len(self), ROWS):
            part = self[start : start + ROWS]
            key, shapes = ("bbox", part.boxes.tolist()) if iou_type == "bbox" else ("segmentation", part.masks)
            columns = (part.picture.tolist(), part.category.tolist(), shapes, part.scores.tolist())
            for picture, category, shape, score in zip(*columns, strict=True):
                image_id = picture if ids is None else ids[picture - 1]
                yield {"image_id": image_id, "category_id": category, key: shape, "score": score}


def json_list(rows: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """What ``json.dumps`` makes of a list of rows, a row at a time."""
    yield b"["
    for index, row in enumerate(rows):
        yield (", " * (index > 0) + json.dumps(row)).encode()
    yield b"]"


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """COCO's run lengths of a mask (h, w)."""
    shape: dict[str, Any] = mask_api.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
    return {"size": [int(side) for side in shape["size"]], "counts": shape["counts"].decode()}
