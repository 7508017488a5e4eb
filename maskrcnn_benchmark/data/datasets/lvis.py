"""LVIS annotations (v0.5 and v1): COCO's, in which pictures have an address instead of a file name."""

from __future__ import annotations

from pathlib import Path

from maskrcnn_benchmark.data.check import CocoAnnotations, as_lists, check_annotations, read_json
from maskrcnn_benchmark.data.datasets.coco import CocoDataset


class LvisDataset(CocoDataset):
    """Every picture of an LVIS file, by ascending id, with its boxes.

    Labels are the category ids of the file, in ascending order. The two last parts of a picture's ``coco_url`` say
    where it lies below ``images``, the folder that holds ``train2017`` and ``val2017``: the ``file_name`` of v0.5 is
    that of another edition, and v1 has none. A picture without an address needs a ``file_name``.

    For the arguments, see :class:`CocoDataset`.
    """

    def _read(self, annotations: Path) -> CocoAnnotations:
        data = as_lists(read_json(annotations), annotations)
        for row in data["images"]:
            if isinstance(row.get("coco_url"), str):
                row["file_name"] = "/".join(row["coco_url"].split("/")[-2:])
        if all(type(row.get("id")) is int for row in data["categories"]):
            data["categories"].sort(key=lambda row: row["id"])
        return check_annotations(data, annotations)

    @property
    def label_to_category(self) -> dict[int, int]:
        """Label -> category id of the file: the same."""
        return {category: category for category, _ in self.categories}

    @property
    def prompt_categories(self) -> list[tuple[int, str]]:
        """(label, name) of what to look for."""
        return list(self.categories)
