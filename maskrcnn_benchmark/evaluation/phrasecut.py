"""Segmentation of what a phrase names (PhraseCut): how well do the pixels and the boxes of all of it fit?"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from maskrcnn_benchmark import __version__
from maskrcnn_benchmark.data.catalog import Entry, find_path
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.columns import Floats, json_list, run_lengths
from maskrcnn_benchmark.evaluation.phrasecut_subsets import SUBSETS, subsets_of
from maskrcnn_benchmark.evaluation.phrasecut_tasks import Mask, PhraseTask, read_tasks
from maskrcnn_benchmark.evaluation.report import Content, table, write_files
from maskrcnn_benchmark.structures import Detections
from maskrcnn_benchmark.structures.boxes import xyxy_to_xywh

logger = logging.getLogger(__name__)

KEPT = 0.7  # detections with a higher score count, as in MDETR
LIMITS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of IoU, to be exceeded
SHOWN = 10


class PhraseCutEvaluator:
    """Takes what was found for each phrase, and keeps how much it shares with the ground truth.

    All detections with a score above 0.7 are the answer together: the union of their masks, and of their boxes.
    "mean_iou" is the mean over phrases, "cum_iou" the pixels shared in all phrases over those in either, "Pr@0.5" the
    share of phrases with an IoU above (not at) 0.5. What is published of MDETR are the numbers of the masks.

    Boxes are compared as in PhraseCut's own tools: painted by whole pixels, without the last one of their extent. Of a
    box that begins left of or above the picture hardly anything is painted there, so that it counts as a miss.

    Args:
        folder: VGPhraseCut_v0, see :func:`~maskrcnn_benchmark.evaluation.phrasecut_tasks.read_tasks`.
        split: "test", "miniv", "val" or "train".

    Raises:
        DataError: the folder is not what it should be.
    """

    def __init__(self, folder: str | Path, split: str):
        self._data = read_tasks(folder, split)
        self.where, self.split = self._data.where, split
        self.number = {task.task_id: index for index, task in enumerate(self._data.tasks)}
        count = len(self.number)
        self._done = np.zeros(count, bool)
        self._iou = {shape: np.zeros(count) for shape in ("mask", "box")}
        self._shared, self._either = np.zeros(count, np.int64), np.zeros(count, np.int64)  # pixels of masks
        self._in = np.zeros((count, len(SUBSETS)), bool)
        self._boxes: list[Floats | None] = [None] * count
        self._masks: list[dict[str, Any] | None] = [None] * count
        self._bare = ""  # a phrase that detections without masks were found for

    @classmethod
    def from_entry(cls, entry: Entry) -> PhraseCutEvaluator:
        """The evaluator of a catalog entry, whose keys ``original`` and ``split`` say where the ground truth is.

        Raises:
            DataError: one of them is missing, or the folder is not what it should be.
        """
        for key, what in (("original", "the folder VGPhraseCut_v0"), ("split", 'the phrases in it, such as "miniv"')):
            if not isinstance(entry.options.get(key), str):
                raise DataError(f"data set {entry.name!r}: no {key}: the evaluator 'phrasecut' needs {what}")
        return cls(find_path(entry.options["original"], f"data set {entry.name!r}: original"), entry.options["split"])

    @property
    def main(self) -> str:
        """The number that is published; of boxes where there are no masks."""
        return f"{self._shapes[0]}_mean_iou"

    @property
    def _shapes(self) -> tuple[str, ...]:
        return ("mask", "box") if any(mask is not None for mask in self._masks) else ("box",)

    def update(self, detections: Sequence[Detections]) -> None:
        """Add what was found for some phrases; ``meta.extra`` says which: ``task_id``.

        Raises:
            DataError: a phrase is not in the split, or has been added before, or a mask is not of its picture's size.
        """
        for found in detections:
            name = found.meta.extra.get("task_id")
            if name is None:
                raise DataError(f"caption {found.meta.image_id!r} ({found.meta.file}): no task_id of PhraseCut")
            kept = found[found.scores > KEPT]
            mask = None if kept.masks is None else kept.masks.any(dim=0).numpy()
            if mask is None and len(found):
                self._bare = self._bare or str(name)
            self.add(str(name), kept_boxes(found), mask)

    def add(self, task_id: str, boxes: npt.ArrayLike, mask: Mask | None) -> None:
        """Add the answer to one phrase.

        Args:
            task_id: Which one.
            boxes: (N, 4) x, y, w, h in pixels of the picture.
            mask: (h, w) of the picture, all that was found; None: nothing, or there are no masks.

        Raises:
            DataError: see :meth:`update`.
        """
        number = self.number.get(task_id)
        if number is None:
            raise DataError(f"phrase {task_id!r} was scored but is not in {self.where}")
        if self._done[number]:
            raise DataError(f"phrase {task_id!r} was scored twice; each may count once")
        task, answer = self._data.tasks[number], np.asarray(boxes, np.float64).reshape(-1, 4)
        if mask is not None and mask.shape != task.size:
            raise DataError(
                f"phrase {task_id!r}: the mask is {mask.shape[0]} x {mask.shape[1]} pixels (h x w), but "
                f"image_data_split.json says that picture {task.image_id} is {task.size[0]} x {task.size[1]}"
            )
        truth = task.mask()
        found = np.zeros_like(truth) if mask is None else mask
        shared, either = int((truth & found).sum()), int((truth | found).sum())
        self._shared[number], self._either[number] = shared, either
        self._iou["mask"][number] = shared / either if shared else 0.0
        self._iou["box"][number] = painted_iou(answer, task.boxes)
        self._boxes[number] = answer
        self._masks[number] = None if mask is None else run_lengths(torch.from_numpy(np.ascontiguousarray(mask)))
        self._in[number] = self._subsets(task, float(truth.mean()))
        self._done[number] = True

    def _subsets(self, task: PhraseTask, share: float) -> Mask:
        names = subsets_of(task.structure, self._data.ranks, len(task.boxes), share, task.from_coco)
        return np.array([name in names for name in SUBSETS])

    def scores(self) -> dict[str, dict[str, float]]:
        """Subset -> its numbers over the phrases that have been added; subsets without any are left out.

        "phrases", "mask_mean_iou", "mask_cum_iou", "mask_Pr@0.5" ... "mask_Pr@0.9" (where there are masks),
        "box_mean_iou", "box_Pr@0.5" ... "box_Pr@0.9"; 0..1 but for the first.

        Raises:
            DataError: some detections have masks and some have none.
        """
        if self._bare and self._shapes[0] == "mask":
            raise DataError(f"phrase {self._bare!r}: detections without masks, while others have them")
        chosen = {name: self._in[:, place] & self._done for place, name in enumerate(SUBSETS)}
        return {name: self._numbers(mine) for name, mine in chosen.items() if mine.any()}

    def _numbers(self, mine: Mask) -> dict[str, float]:
        numbers = {"phrases": float(mine.sum())}
        for shape in self._shapes:
            iou = self._iou[shape][mine]
            numbers[f"{shape}_mean_iou"] = float(iou.mean())
            if shape == "mask":
                numbers["mask_cum_iou"] = float(self._shared[mine].sum() / max(1, self._either[mine].sum()))
            numbers |= {f"{shape}_Pr@{limit}": float((iou > limit).mean()) for limit in LIMITS}
        return numbers

    def summary(self) -> dict[str, float]:
        """The numbers of :meth:`scores` of all phrases, then those of each subset ("c_coco/mask_mean_iou"), 0..1.

        Raises:
            DataError: a phrase of the split has not been added, or some detections have masks and some have none.
        """
        missing = [name for name, number in self.number.items() if not self._done[number]]
        if missing:
            shown = ", ".join(map(repr, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
            raise DataError(
                f"missing predictions for {len(missing)} of the {len(self.number)} phrases of {self.where}: {shown}"
            )
        return {
            key if subset == "all" else f"{subset}/{key}": value
            for subset, numbers in self.scores().items()
            for key, value in numbers.items()
            if key != "phrases"
        }

    def table(self) -> str:
        """Percentages: as MDETR's are published, then a row for each subset."""
        self.summary()
        scores, shapes = self.scores(), self._shapes
        shown = {"M-IoU": "mean_iou", **{f"Precision @{limit}": f"Pr@{limit}" for limit in (0.5, 0.7, 0.9)}}
        rows = [
            [f"{shape} ({self.split})", *(f"{100 * scores['all'][f'{shape}_{key}']:.1f}" for key in shown.values())]
            for shape in shapes
        ]
        keys = [f"{shape}_{key}" for shape in shapes for key in shown.values()]
        by_subset = [
            [name, int(numbers["phrases"]), *(f"{100 * numbers[key]:.1f}" for key in keys)]
            for name, numbers in scores.items()
        ]
        return "\n".join([table(["PhraseCut", *shown], rows), table(["subset", "phrases", *keys], by_subset)])

    def predictions(self) -> Iterator[dict[str, Any]]:
        """``{original_id, task_id, boxes, mask_rle, box_iou, mask_iou, intersection, union}`` in the order of the file.

        Boxes are x, y, w, h; the mask, where there are masks, is in COCO's run lengths.
        """
        for task, number in zip(self._data.tasks, self.number.values(), strict=True):
            boxes = self._boxes[number]
            if boxes is None:
                continue
            row: dict[str, Any] = {"original_id": task.image_id, "task_id": task.task_id, "boxes": boxes.tolist()}
            row["box_iou"] = float(self._iou["box"][number])
            if self._shapes[0] == "mask":
                row |= {"mask_rle": self._masks[number], "mask_iou": float(self._iou["mask"][number])}
                row |= {"intersection": int(self._shared[number]), "union": int(self._either[number])}
            yield row

    def write(self, folder: str | Path, card: Mapping[str, object] | None = None) -> None:
        """Write the result files, all or none, and log the table.

        ========================= ==================================================================================
        subsets.json              the numbers of each subset, see :meth:`scores`
        predictions.json          see :meth:`predictions`
        results.json              all numbers, counts, the digest of the ground truth, and what ``card`` adds
        ========================= ==================================================================================

        Raises:
            DataError: a phrase of the split has not been added.
        """
        results = self.card() | dict(card or {})
        files: dict[str, Content] = {
            "subsets.json": json.dumps(self.scores(), indent=2).encode(),
            "predictions.json": json_list(self.predictions()),
            "results.json": json.dumps(results, indent=2, ensure_ascii=False).encode(),
        }
        write_files(Path(folder), files)
        logger.info("%s\n%s", self.where, self.table())

    def card(self) -> dict[str, Any]:
        """Numbers, and what they were measured on and with."""
        metrics = self.summary()
        found = [len(boxes) for boxes in self._boxes if boxes is not None]
        return {
            "metrics": metrics,
            "counts": {
                "pictures": len({task.image_id for task in self._data.tasks}),
                "phrases": len(found),
                "phrases_without_boxes": found.count(0),
                "detections": sum(found),
            },
            "main": self.main,
            "protocol": {"name": "phrasecut", "measured": {"score": f"> {KEPT}", "Pr@t": "IoU > t"}},
            "engine": {"name": "phrasecut", "version": __version__},
            "notes": [],
            "annotations": {"file": self.where, "sha256": self._data.sha256},
        }


def kept_boxes(found: Detections) -> Floats:
    """(N, 4) x, y, w, h of the detections that are an answer; sides are taken in the precision of the boxes."""
    boxes: Floats = xyxy_to_xywh(found[found.scores > KEPT].boxes).double().numpy()
    return boxes


def painted_iou(found: Floats, truth: Floats) -> float:
    """IoU of two sets of boxes (N, 4), (M, 4) x, y, w, h, as areas of pixels; 0 where they share none.

    Painted are the pixels from x and y up to, without, x + w - 1 and y + h - 1, all of them cut to whole numbers.
    """
    corners = [np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - 1), axis=1) for boxes in (found, truth)]
    width, height = (int(side + 1) for side in np.concatenate(corners)[:, 2:].max(axis=0))
    one, other = (_painted(boxes, height, width) for boxes in corners)
    shared = int((one & other).sum())
    return shared / int((one | other).sum()) if shared else 0.0


def _painted(corners: Floats, height: int, width: int) -> Mask:
    canvas = np.zeros((height, width), bool)
    for x1, y1, x2, y2 in corners.tolist():
        canvas[int(y1) : int(y2), int(x1) : int(x2)] = True
    return canvas
