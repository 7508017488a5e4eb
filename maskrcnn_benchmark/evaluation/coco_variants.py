"""COCO's scores by other rules: all classes as one, and those that a detector has seen apart from those it has not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from maskrcnn_benchmark.data.datasets.json_index import mdetr_lists
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.check import Row
from maskrcnn_benchmark.evaluation.coco import CocoEvaluator
from maskrcnn_benchmark.evaluation.report import table
from maskrcnn_benchmark.structures import Detections

SPLIT = Path(__file__).with_name("coco_zeroshot.yaml")


class CocoAgnosticEvaluator(CocoEvaluator):
    """Boxes count whatever they are called, as MDETR evaluates grounding data (COCO's ``useCats = 0``).

    At most 100 boxes of a picture count, over all classes. MDETR's boxes do not hold their last pixel. There,
    detections are called 1 and looked for by the categories of the file, so that everything is 0 where none of these
    is called 1; here, labels need only be those that ``label_to_category`` knows.

    Args:
        annotations: COCO annotation file, or what it holds.
        label_to_category: Labels that detections may have -> any category id; others are left out, counted.
        engine: See :class:`CocoEvaluator`.
    """

    main = "AP50"  # MDETR keeps the checkpoint that is best by it

    def __init__(self, annotations: Row | str | Path, label_to_category: Mapping[int, int], *, engine: str = "auto"):
        super().__init__(annotations, label_to_category, engine=engine, plus_one=False, use_cats=False)

    def card(self) -> dict[str, Any]:
        return super().card() | {"protocol": {"name": "coco_agnostic"}}


class CaptionBoxesEvaluator(CocoAgnosticEvaluator):
    """All boxes of a caption, whatever phrase they are of: the "AP" (AP50) of MDETR's pre-training.

    A "picture" is a caption. Where a detector says of boxes that the caption names them at all, with the label 0, they
    count, and those of its phrases do not; else all count, whatever their label is. At most 100 of a caption do.

    Args:
        annotations: MDETR JSON.
        engine: See :class:`CocoEvaluator`.
    """

    def __init__(self, annotations: str | Path, *, engine: str = "auto"):
        super().__init__(annotations, {0: 1}, engine=engine)

    def update(self, detections: Sequence[Detections]) -> None:
        """See :meth:`CocoEvaluator.update`."""
        for found in detections:
            chosen = found[found.labels == 0] if (found.labels == 0).any() else found
            super().update([replace(chosen, labels=torch.zeros_like(chosen.labels))])

    def _read(self, annotations: Row | str | Path) -> tuple[Row, str]:
        assert not isinstance(annotations, Mapping)
        data = mdetr_lists(Path(annotations))
        rows = [{**row, "category_id": 1} for row in data["annotations"]]
        return {**data, "annotations": rows, "categories": [{"id": 1, "name": "object"}]}, str(annotations)

    def card(self) -> dict[str, Any]:
        return super().card() | {"protocol": {"name": "caption_boxes"}}


class CocoZeroShotEvaluator(CocoEvaluator):
    """COCO's scores, with AP50 of the 48 classes that a detector was trained on and of the 17 it was not.

    The split is that of Bansal et al. (https://arxiv.org/abs/1804.04340) as Detic and DECOLA have it; classes in
    neither part count in the other numbers. detectron2's boxes do not hold their last pixel.

    Args:
        annotations: COCO annotation file, or what it holds; its categories are known by name.
        label_to_category: Label of the detections -> category id.
        categories: Category rows that count; default: all of the file.
        engine: See :class:`CocoEvaluator`.

    Raises:
        DataError: the file has none of the classes of a part.
    """

    main = "AP50-unseen"

    def __init__(
        self,
        annotations: Row | str | Path,
        label_to_category: Mapping[int, int],
        *,
        categories: Sequence[Row] | None = None,
        engine: str = "auto",
    ):
        super().__init__(annotations, label_to_category, categories=categories, engine=engine, plus_one=False)
        there = set(self.names.values())
        for part, names in zero_shot_split().items():
            if not there & set(names):
                raise DataError(f"{self.where}: has none of the {len(names)} {part} classes of COCO ({names[0]}, ...)")

    def summary(self) -> dict[str, float]:
        """The twelve COCO numbers, AP50-seen and AP50-unseen; -1: no ground truth."""
        scores = {row["name"]: row["AP50"] for row in self.per_category()}
        parts = {}
        for part, names in zero_shot_split().items():
            measured = [scores[name] for name in names if scores.get(name, -1) >= 0]
            parts[f"AP50-{part}"] = sum(measured) / len(measured) if measured else -1.0
        return super().summary() | parts

    def table(self) -> str:
        """The numbers for people, those of the two parts first."""
        numbers = self.summary()
        parts = {name: value for name, value in numbers.items() if name.startswith("AP50-")}
        return "\n".join([table(["zero-shot", *parts], [["all", *parts.values()]]), super().table()])

    def card(self) -> dict[str, Any]:
        return super().card() | {"protocol": {"name": "coco_zeroshot"}}


@cache
def zero_shot_split() -> dict[str, tuple[str, ...]]:
    """ "seen" and "unseen" -> class names."""
    return {part: tuple(names) for part, names in yaml.safe_load(SPLIT.read_text(encoding="utf-8")).items()}
