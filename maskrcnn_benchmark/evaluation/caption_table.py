"""The table of MDETR's pre-training: AP50 of all boxes of captions, and how often the best box of a phrase is right."""

from __future__ import annotations

import re
from collections.abc import Mapping

from maskrcnn_benchmark.evaluation.report import table
from maskrcnn_benchmark.evaluation.together import BOXES

Numbers = Mapping[str, float]


def caption_columns(results: Mapping[str, Numbers]) -> dict[str, float]:
    """Column -> number, 0..1, as MDETR's authors put them: "gqa_val AP", "flickr30k_val R@1", "refcoco+ R@1".

    Args:
        results: Task -> its numbers; tasks that were not scored by captions give no column.
    """
    columns: dict[str, float] = {}
    for task, numbers in results.items():
        boxes = numbers.get(f"{BOXES}/AP50")
        if boxes is not None:
            columns[f"{task} AP"] = boxes
        if "Recall@1_all" in numbers:
            columns[f"{task} R@1"] = numbers["Recall@1_all"]
        for name, number in numbers.items():
            if found := re.fullmatch(r"(.+)/P@1", name):
                columns[f"{found[1]} R@1"] = number
        if "mask_mean_iou" in numbers:
            columns[f"{task} M-IoU"] = numbers["mask_mean_iou"]
    if not columns:
        return {}
    alone = {f"{task} AP": numbers["AP50"] for task, numbers in results.items() if next(iter(numbers), "") == "AP50"}
    return alone | columns


def caption_table(model: str, results: Mapping[str, Numbers]) -> str:
    """The columns in percent, for people; empty when there are none."""
    columns = caption_columns(results)
    return (
        table(["model", *columns], [[model, *(f"{100 * value:.1f}" for value in columns.values())]]) if columns else ""
    )
