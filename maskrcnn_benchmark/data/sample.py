"""What every data set gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from maskrcnn_benchmark.data.pictures import Size
from maskrcnn_benchmark.structures import ImageMeta, Target


@dataclass(frozen=True)
class Sample:
    """One picture, before any transform."""

    image: Image.Image  # RGB
    meta: ImageMeta  # size and orig_size are those of ``image``
    target: Target | None = None
    note: str = ""  # what is odd about the picture


class PictureSet(Protocol):
    """A data set that a loader can plan for before it reads a picture."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def file(self, index: int) -> Path: ...

    def size(self, index: int) -> Size | None:
        """(h, w) if it is known without opening the file."""
        ...


class TrainPictures(PictureSet, Protocol):
    """A data set to train on."""

    annotations: Path  # for messages
    notes: list[str]  # what was mended or left out

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int h, w; 0 where the annotations do not tell."""
        ...
