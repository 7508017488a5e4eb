"""Files of boxes: what is written is read again, by the original's rules too; what is damaged or evil is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_benchmark.data.box_files import BoxTable, read_boxes, write_coco, write_npz, write_pth
from maskrcnn_benchmark.data.datasets.coco_grounding import CocoGrounding
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.structures.bounding_box import BoxList
from tests.unit.dap_files import NAMES, pixels, sizes, table

COUNTS = ([1, 3, 0, 2, 4], [2, 2, 2], [0, 0], [1])


def same(first: BoxTable, second: BoxTable, *fields: str) -> bool:
    return all(np.array_equal(getattr(first, field), getattr(second, field)) for field in ("first", "boxes", *fields))


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_what_is_written_is_read_again(tmp_path: Path, counts: list[int]) -> None:
    made = table(len(counts), counts)
    write_npz(tmp_path / "a.npz", made)
    assert same(read_boxes(tmp_path / "a.npz"), made, "scores")
    write_npz(tmp_path / "b.npz", replace(made, scores=None))
    assert read_boxes(tmp_path / "b.npz").scores is None
    write_pth(tmp_path / "a.pth", made)
    assert same(read_boxes(tmp_path / "a.pth"), made, "scores", "labels", "sizes")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.pth", "b.npz"]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_the_npz_form_is_the_originals(tmp_path: Path, counts: list[int]) -> None:
    made = table(len(counts), counts)
    write_npz(tmp_path / "a.npz", made)
    with np.load(tmp_path / "a.npz", allow_pickle=True) as stored:
        rows = stored[stored.files[0]]
        assert (stored.files, rows.dtype, rows.shape) == (["boxes", "scores"], object, (len(counts),))
        for index in range(len(counts)):
            assert rows[index].dtype == np.float32
            assert np.array_equal(rows[index].reshape(-1, 4), made.boxes[made.rows(index)])


def test_the_pth_form_is_the_originals(tmp_path: Path) -> None:
    made = table(3)
    write_pth(tmp_path / "a.pth", made)
    rows = torch.load(tmp_path / "a.pth", weights_only=False)
    for index, row in enumerate(rows):
        assert (type(row), row.mode, row.size) == (BoxList, "xyxy", sizes(3)[index][::-1])
        assert row.bbox.dtype == torch.float32
        assert row.extra_fields["labels"].dtype == torch.int32
        assert set(row.extra_fields["labels"].tolist()) == {index % 3}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_npz_files_of_any_age(tmp_path: Path, protocol: int) -> None:
    """Old numpy wrote other protocols; equally many boxes everywhere became one array of objects."""
    rows = np.empty(2, dtype=object)
    rows[:] = [np.ones((1, 4), np.float32), np.zeros((2, 4), np.float64)]
    for name, value in (("rows", rows), ("one", np.array([np.full((2, 4), 0.1, np.float32)] * 3, dtype=object))):
        stream = io.BytesIO()
        header = {"descr": "|O", "fortran_order": False, "shape": value.shape}
        np.lib.format.write_array_header_1_0(stream, header)
        content = pickle.dumps(value, protocol=protocol)
        if protocol < 4:  # later ones store the lengths of names
            content = content.replace(b"numpy._core", b"numpy.core")
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w") as archive:
            archive.writestr("boxes.npy", stream.getvalue() + content)
    found = read_boxes(tmp_path / "rows.npz")
    assert (found.first.tolist(), found.boxes.dtype) == ([0, 1, 3], np.float32)
    found = read_boxes(tmp_path / "one.npz")
    assert found.first.tolist() == [0, 2, 4, 6]
    assert (found.boxes == np.float32(0.1)).all()


class Evil:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    rows = np.empty(1, dtype=object)
    rows[0] = Evil(tmp_path / "mark")
    np.savez(tmp_path / "a.npz", boxes=rows)
    torch.save([Evil(tmp_path / "mark")], tmp_path / "a.pth")
    with pytest.raises(DataError, match=r"a.npz: boxes.*(posix|nt|os)\.system"):
        read_boxes(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"a.pth.*(posix|nt|os)\.system"):
        read_boxes(tmp_path / "a.pth")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("ending", ["npz", "pth"])
def test_a_file_that_is_cut_short(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    {"npz": write_npz, "pth": write_pth}[ending](path, table(5))
    whole = path.read_bytes()
    for length in (0, 3, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=path.name):
            read_boxes(path)


def test_what_is_no_boxes(tmp_path: Path) -> None:
    rows = np.empty(2, dtype=object)
    rows[:] = [np.ones((1, 4), np.float32), None]
    np.savez(tmp_path / "none.npz", boxes=rows)
    rows[1] = np.ones(3, np.float32)
    np.savez(tmp_path / "three.npz", boxes=rows)
    rows[1] = np.array([[1, 2, np.nan, 4]], np.float32)
    np.savez(tmp_path / "nan.npz", boxes=rows)
    rows[1] = np.array([["a", "b", "c", "d"]])
    np.savez(tmp_path / "text.npz", boxes=rows)
    np.savez(tmp_path / "empty.npz")
    torch.save({"boxes": 1}, tmp_path / "dict.pth")
    torch.save([BoxList(torch.ones(1, 4), (3, 4)), 7], tmp_path / "seven.pth")
    torch.save([BoxList(torch.ones(1, 4), (3, 4), "cxcywh")], tmp_path / "mode.pth")
    one = BoxList(torch.ones(1, 4), (3, 4), labels=torch.ones(1))
    torch.save([one, BoxList(torch.ones(1, 4), (3, 4))], tmp_path / "some.pth")
    told = {
        "none.npz": "boxes of picture 2 .of 2.: None",
        "three.npz": "boxes of picture 2 .of 2.",
        "nan.npz": "a box of picture 2 .of 2. is .1.0, 2.0, nan, 4.0., not finite",
        "text.npz": "boxes",
        "empty.npz": "no arrays",
        "dict.pth": "holds a dict, not a list",
        "seven.pth": "picture 2 .of 2. is no whole BoxList",
        "mode.pth": "cxcywh",
        "some.pth": "1 of 2 pictures have labels",
        "away.npz": "no such file",
        "a.txt": "ends in .npz or .pth",
    }
    for name, words in told.items():
        with pytest.raises(DataError, match=f"{name}.*{words}"):
            read_boxes(tmp_path / name)


def test_files_of_older_torch_and_tensors_that_share_memory(tmp_path: Path) -> None:
    made = table(3)
    write_pth(tmp_path / "new.pth", made)
    rows = torch.load(tmp_path / "new.pth", weights_only=False)
    torch.save(rows, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_boxes(tmp_path / "old.pth"), made, "scores", "labels", "sizes")
    columns = torch.from_numpy(made.boxes).T.contiguous()  # a box is a column, so that its numbers are not neighbours
    for index, row in enumerate(rows):
        row.bbox = columns.T[made.rows(index)]
        row.extra_fields["scores"] = row.extra_fields["scores"].double()
    torch.save(rows, tmp_path / "shared.pth")
    assert same(read_boxes(tmp_path / "shared.pth"), made, "scores", "labels", "sizes")


def test_boxes_with_widths_become_corners(tmp_path: Path) -> None:
    torch.save([BoxList(torch.tensor([[3.0, 4, 5, 6]]), (30, 40), "xywh")], tmp_path / "a.pth")
    assert read_boxes(tmp_path / "a.pth").boxes.tolist() == [[3, 4, 7, 9]]


def test_coco_of_boxes_is_read_as_the_same_boxes(tmp_path: Path) -> None:
    made = table(4)
    files = [f"{number}.png" for number in range(4)]
    for number, size in enumerate(sizes(4)):
        Image.fromarray(pixels(number, size)).save(tmp_path / files[number])
    write_coco(tmp_path / "a.json", made, files, NAMES)
    tree = json.loads((tmp_path / "a.json").read_text())
    assert [row["score"] for row in tree["annotations"]] == pytest.approx(made.scores)
    dataset = CocoGrounding(tmp_path, tmp_path / "a.json")
    assert tuple(dataset.names.values()) == NAMES
    for index in range(4):
        target = dataset[index].target
        assert target is not None
        assert target.boxes.numpy() == pytest.approx(made.boxes[made.rows(index)], abs=1e-4)
        assert set(target.labels.tolist()) == {index % 3 + 1}
