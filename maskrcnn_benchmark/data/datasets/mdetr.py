"""Captions with boxes in MDETR's JSON: Flickr30k, mixed grounding, referring expressions.

An "image" of such a file is one caption of a picture; see https://github.com/ashkamath/mdetr.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from maskrcnn_benchmark.data.datasets.indexed import IndexedPictures
from maskrcnn_benchmark.data.datasets.json_index import mdetr_index
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.structures import ImageMeta, Prompt, Target
from maskrcnn_benchmark.structures.prompt import Span
from maskrcnn_benchmark.text.prompts import grounding_prompt


class MdetrDataset(IndexedPictures):
    """Captions, and boxes with the characters of the caption that name them.

    Args:
        images: Folder of the pictures.
        annotations: MDETR JSON.
        name: What the data set is called.
        vg_images: Folder of the pictures whose ``data_source`` is not "coco"; None: they are in ``images``.
        every: Also the captions without a box of more than one pixel, which there is nothing to train on in.

    Raises:
        DataError: the file is missing or broken, or has nothing to train on.
    """

    def __init__(
        self, images: Path, annotations: Path, name: str = "", vg_images: Path | None = None, every: bool = False
    ):
        index = mdetr_index(Path(annotations))
        super().__init__(name or Path(annotations).stem, images, annotations, index, every)
        self.vg_folder = vg_images if vg_images != self.folder else None
        if self.vg_folder is not None:
            without = next((i for i in range(len(self)) if not self._source(i)), None)
            if without is not None:
                raise DataError(
                    f'{annotations}: images (id {self.image_id(without)!r}): no data_source, "coco" or "vg", which '
                    f"tells whether the picture is in {self.folder} or in {self.vg_folder}"
                )

    def file(self, index: int) -> Path:
        folder = self.folder if self.vg_folder is None or self._source(index) == "coco" else self.vg_folder
        return folder / self._index.text("files", int(self._rows[index]))

    def caption(self, index: int) -> str:
        return self._index.text("captions", int(self._rows[index]))

    def spans(self, index: int) -> list[list[Span]]:
        """For each box of the file, those that are left out of the target too: the characters that name it."""
        return self._spans(self.boxes_of(int(self._rows[index])))

    def _source(self, index: int) -> str:
        return self._index.text("sources", int(self._rows[index]))

    def _target(self, row: int, meta: ImageMeta) -> Target:
        mine = self.boxes_of(row)
        boxes, keep = self._visible_boxes(mine, meta.orig_size)
        labels = torch.from_numpy(self._index["category"][mine].astype("int64"))
        return Target(boxes, labels[keep], meta, prompt=self._prompt(row, mine, keep.tolist()))

    def _prompt(self, row: int, mine: slice, keep: list[bool]) -> Prompt:
        """The caption; box ``i`` of the target is entity ``i`` of the prompt."""
        spans = [spans for spans, kept in zip(self._spans(mine), keep, strict=True) if kept]
        return grounding_prompt(self._index.text("captions", row), spans)

    def _spans(self, boxes: slice) -> list[list[Span]]:
        first = self._index["span_first"]
        return [
            [(begin, end) for begin, end in self._index["spans"][first[box] : first[box + 1]].tolist()]
            for box in range(boxes.start, boxes.stop)
        ]

    def _extra(self, row: int) -> dict[str, object]:
        extra: dict[str, object] = json.loads(self._index.text("extra", row))
        return extra
