"""Detections of a set as they come in: each picture once, kept in arrays, in the order of the data set at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.check import ImageId
from maskrcnn_benchmark.evaluation.columns import Columns, Results
from maskrcnn_benchmark.structures import Detections

SHOWN = 5
WAITING = 1 << 20  # boxes that are kept, at least, before the surplus over a limit is thrown away


class Collector:
    """Detections of the pictures of a set.

    Args:
        numbers: Picture id -> 1, 2, ... in the order of the data set.
        where: What the annotations are called in messages.
        label_to_category: Label of the detections -> category id; detections with other labels are left out, counted.
        limit: Best detections to keep for each label over the whole set, as they come in, so that memory is bounded by
            the number of labels. Of equal scores, the picture that is earlier in the data set counts. None: all.
    """

    def __init__(
        self,
        numbers: Mapping[ImageId, int],
        where: str,
        label_to_category: Mapping[int, int],
        limit: int | None = None,
    ):
        self.numbers, self.where, self.limit = numbers, where, limit
        order = sorted(label_to_category)
        self._labels = np.array(order, np.int64)
        self._categories = np.array([label_to_category[label] for label in order], np.int64)
        self._floor = np.full(len(order), -np.inf)  # scores below cannot be among the best of their label
        self._sizes = np.zeros((len(numbers) + 1, 2), np.int64)
        self._seen = np.zeros(len(numbers) + 1, bool)
        self._parts: list[Columns] = []
        self._waiting, self._kept = 0, 0
        self.unknown_labels = 0

    def add(self, found: Detections) -> None:
        """Keep what was found in one picture.

        Raises:
            DataError: it is not in the set, or has been added before, or a box or score is no number.
        """
        image_id = found.meta.image_id
        if image_id not in self.numbers:
            raise DataError(f"picture {image_id!r} ({found.meta.file}) was scored but is not in {self.where}")
        number = self.numbers[image_id]
        if self._seen[number]:
            raise DataError(f"picture {image_id!r} ({found.meta.file}) was scored twice; each may count once")
        part = Columns.of(found, number)
        for name, values in (("score", part.scores), ("box", part.boxes)):
            if not np.isfinite(values).all():
                raise DataError(f"picture {image_id!r} ({found.meta.file}): a {name} is not a finite number")
        self._seen[number], self._sizes[number] = True, found.meta.orig_size
        place, known = self._places(part.labels)
        self.unknown_labels += len(part) - int(known.sum())
        keep = known & (part.scores >= self._floor[place])
        self._parts.append(part if keep.all() else part[keep])
        self._waiting += len(self._parts[-1])
        if self.limit is not None and self._waiting > max(WAITING, self._kept // 4):
            self._merge()

    def _places(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) index into the known labels, and whether the label is one of them."""
        place = np.searchsorted(self._labels, labels).clip(max=len(self._labels) - 1)
        return place, self._labels[place] == labels

    def _merge(self) -> Columns:
        """All that counts in one piece, in the order of the pictures."""
        columns = Columns.cat(self._parts) if self._parts else Columns.empty()
        order = np.argsort(columns.picture, kind="stable")
        columns = columns[order]
        if self.limit is not None:
            columns = columns[self._best(columns, self.limit)]
        self._parts, self._kept, self._waiting = [columns], len(columns), 0
        return columns

    def _best(self, columns: Columns, limit: int) -> np.ndarray:
        """(N,) bool: the best of each label, the earlier one of equals."""
        place, _ = self._places(columns.labels)
        order = np.lexsort((-columns.scores, place))  # stable
        count = np.bincount(place, minlength=len(self._labels))
        first = np.cumsum(count) - count
        rank = np.arange(len(columns)) - first[place[order]]
        full = count >= limit
        self._floor[full] = columns.scores[order][first[full] + limit - 1]
        keep = np.zeros(len(columns), bool)
        keep[order[rank < limit]] = True
        return keep

    def __len__(self) -> int:
        """How many detections are held at present."""
        return sum(map(len, self._parts))

    @property
    def pictures(self) -> int:
        """How many have been added."""
        return int(self._seen.sum())

    def columns(self) -> Columns:
        """Every detection, by picture in the order of the data set and then by score.

        Raises:
            DataError: a picture of the set has not been added.
        """
        missing = [image_id for image_id, number in self.numbers.items() if not self._seen[number]]
        if missing:
            names = ", ".join(map(repr, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
            raise DataError(
                f"{self.pictures} pictures scored, but {self.where} has {len(self.numbers)}: no result is "
                f"reported for a part of a set (without detections: picture {names}); mend or remove those pictures"
            )
        return self._parts[0] if len(self._parts) == 1 and not self._waiting else self._merge()

    def results(self, plus_one: bool) -> Results:
        """The same for an engine.

        Raises:
            DataError: a picture of the set has not been added.
        """
        columns = self.columns()
        place, _ = self._places(columns.labels)
        picture, scores = columns.picture.astype(np.int64), columns.scores.astype(np.float64)
        return Results(picture, self._categories[place], columns.xywh(plus_one), scores, columns.masks)

    def predictions(self) -> list[dict[str, Any]]:
        """One plain dict a picture, in the order of the data set, whose tensors are parts of common ones.

        Raises:
            DataError: a picture of the set has not been added.
        """
        columns = self.columns()
        first = np.searchsorted(columns.picture, np.arange(1, len(self.numbers) + 2)).tolist()
        boxes, scores = torch.from_numpy(columns.boxes), torch.from_numpy(columns.scores)
        labels = torch.from_numpy(columns.labels.astype(np.int64))
        rows = []
        for image_id, number in self.numbers.items():
            mine = slice(first[number - 1], first[number])
            height, width = self._sizes[number].tolist()
            row = {"image_id": image_id, "height": height, "width": width}
            row |= {"boxes": boxes[mine], "scores": scores[mine], "labels": labels[mine]}
            masks = columns.masks[mine].tolist()
            rows.append(row if all(mask is None for mask in masks) else row | {"masks": masks})
        return rows
