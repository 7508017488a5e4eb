"""What names of DAP's ImageNet-1k can ask for: a copy of the pictures in memory, boxes whose labels count from one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskrcnn_benchmark.data import memory_copy
from maskrcnn_benchmark.data.box_files import write_pth
from maskrcnn_benchmark.data.datasets.imagenet_binary import ImageNetBinary
from maskrcnn_benchmark.data.memory_copy import in_memory
from maskrcnn_benchmark.errors import DataError
from tests.unit.dap_files import table, write_binary


def test_pictures_from_a_copy_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one to ask finds the copy of the first; a changed file is copied again."""
    folder, memory = write_binary(tmp_path / "in"), tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(memory_copy, "PLACE", memory)
    plain, fast = ImageNetBinary(folder), ImageNetBinary(folder, memory=True)
    assert [np.array_equal(plain.picture(i), fast.picture(i)) for i in range(6)] == [True] * 6
    (copy,) = memory.glob("*.binary")
    made = copy.stat().st_mtime_ns
    assert (in_memory(folder / "train.binary"), copy.stat().st_mtime_ns) == (copy, made)
    (folder / "train.binary").write_bytes(b"other")
    assert in_memory(folder / "train.binary").read_bytes() == b"other"
    with pytest.raises(DataError, match=r"cannot be copied to memory, .*away is no folder.*leave 'down' out"):
        in_memory(folder / "train.binary", tmp_path / "away")


def test_labels_of_a_box_file_may_count_from_one(tmp_path: Path) -> None:
    boxes = table(6)
    assert boxes.labels is not None
    folder = write_binary(tmp_path)
    write_pth(folder / "train.pseudo.pth", replace(boxes, labels=boxes.labels + 1))
    write_pth(folder / "train.pseudo0.pth", boxes)
    found = ImageNetBinary(folder, boxes="train.pseudo.pth", first_label=1)
    assert [found[i].target.labels.tolist() for i in range(3)] == [[1], [2, 2], [3, 3, 3]]
    with pytest.raises(DataError, match="picture 1: a label is below 1; they count from 1"):
        ImageNetBinary(folder, boxes="train.pseudo0.pth", first_label=1)
