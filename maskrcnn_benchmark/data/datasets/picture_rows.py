"""What an annotation file says about its pictures, in little memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskrcnn_benchmark.data.datasets.categories import Row
from maskrcnn_benchmark.data.index import first_rows
from maskrcnn_benchmark.data.pictures import Size

INTEGERS = range(-(2**63), 2**63)  # that an array holds


class PictureRows:
    """Id, file name and size of N pictures, in a few arrays, which the processes that read them share.

    Args:
        rows: ``images`` of COCO JSON.
    """

    def __init__(self, rows: Sequence[Row]):
        ids = [row["id"] for row in rows]
        plain = all(type(number) is int and number in INTEGERS for number in ids)
        self._ids: Any = np.array(ids, dtype=np.int64) if plain else ids
        names = [row["file_name"].encode("utf-8", "surrogateescape") for row in rows]
        self._names, self._first = b"".join(names), first_rows([len(name) for name in names])
        sizes = [
            (0, 0) if None in (row.get("height"), row.get("width")) else (row["height"], row["width"]) for row in rows
        ]
        self.sizes = np.array(sizes, dtype=np.int64).reshape(-1, 2)
        """(N, 2) h, w; 0 where the file does not tell."""

    def __len__(self) -> int:
        return len(self.sizes)

    def image_id(self, index: int) -> Any:
        """Of the file."""
        found = self._ids[index]
        return int(found) if isinstance(found, np.integer) else found

    def name(self, index: int) -> str:
        """Of the picture's file, below the folder of all pictures."""
        place = range(len(self))[index]
        return self._names[self._first[place] : self._first[place + 1]].decode("utf-8", "surrogateescape")

    def size(self, index: int) -> Size | None:
        """(h, w); None: the file does not tell."""
        height, width = self.sizes[index].tolist()
        return (height, width) if height else None
