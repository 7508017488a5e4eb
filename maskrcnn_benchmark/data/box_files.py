"""Files of boxes without pictures, as DAP's scripts write them (https://github.com/mikuhatsune/dap), and as COCO JSON.

``.npz``   for ImageNet-1k: key ``boxes``, an object array of N arrays (k, 4); optional key ``scores`` of N arrays (k,).
``.pth``   for ImageNet-22k: a list of N :class:`BoxList` with scores and with labels from 0.

Boxes are x1, y1, x2, y2 in pixels of the picture on disk, the last pixel inside. Both forms are pickles; they are read
by an allow-list, so that nothing in them is run.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from maskrcnn_benchmark.checkpoint.unpickle import Dtype, load_torch
from maskrcnn_benchmark.data.index import first_rows
from maskrcnn_benchmark.errors import DataError, WeightsError
from maskrcnn_benchmark.structures.bounding_box import BoxList
from maskrcnn_benchmark.structures.boxes import xywh_to_xyxy, xyxy_to_xywh

STORAGES = {
    **{"Float": "<f4", "Double": "<f8", "Half": "<f2"},
    **{"Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?"},
}
"""Numbers that torch stores, by the name that its files have for them."""
AGAIN = "copy it again, or make it anew with tools/compute_box_imagenet1k.py or tools/compute_box_imagenet22k.py"


@dataclass(frozen=True)
class BoxTable:
    """Boxes of N pictures as flat arrays; those of picture ``i`` are rows ``first[i]`` to ``first[i + 1]``.

    Attributes:
        first: (N + 1,) int64.
        boxes: (M, 4) float32 x1, y1, x2, y2, pixels of the picture on disk, the last one inside.
        scores: (M,) float32, where there are such.
        labels: (M,) int64 from 0, where there are such.
        sizes: (N, 2) int32 h, w of the pictures that the pixels are of, where they are known.
    """

    first: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray | None = None
    labels: np.ndarray | None = None
    sizes: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        boxes: Sequence[np.ndarray],
        scores: Sequence[np.ndarray] | None = None,
        labels: Sequence[np.ndarray] | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> BoxTable:
        """From one array for each picture: boxes (k, 4), scores (k,), labels (k,) from 0; sizes are (h, w)."""
        rows = [np.asarray(row, dtype=np.float32).reshape(-1, 4) for row in boxes]
        return cls(
            first_rows([len(row) for row in rows]),
            np.concatenate([np.zeros((0, 4), np.float32), *rows]),
            None if scores is None else np.concatenate([np.zeros(0, np.float32), *scores]).astype(np.float32),
            None if labels is None else np.concatenate([np.zeros(0, np.int64), *labels]).astype(np.int64),
            None if sizes is None else np.array(sizes, dtype=np.int32).reshape(-1, 2),
        )

    def __len__(self) -> int:
        return len(self.first) - 1

    def rows(self, index: int) -> slice:
        """Where the boxes of a picture are."""
        return slice(int(self.first[index]), int(self.first[index + 1]))


def read_boxes(path: Path) -> BoxTable:
    """A ``.npz`` or ``.pth`` file of boxes.

    Raises:
        DataError: it is missing or damaged, names something else than boxes, or a box is no four finite numbers.
    """
    readers: dict[str, Callable[[Path], BoxTable]] = {".npz": _read_npz, ".pth": _read_pth}
    if path.suffix not in readers:
        raise DataError(f"{path}: a file of boxes ends in {' or '.join(readers)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file of boxes; {AGAIN}")
    table = readers[path.suffix](path)
    broken = np.flatnonzero(~np.isfinite(table.boxes).all(axis=1))
    if len(broken):
        picture = int(np.searchsorted(table.first, broken[0], side="right")) - 1
        shown = table.boxes[broken[0]].tolist()
        raise DataError(f"{path}: a box of picture {picture + 1} (of {len(table)}) is {shown}, not finite; {AGAIN}")
    return table


def write_npz(path: Path, table: BoxTable) -> None:
    """The ``.npz`` form, with scores where there are such; labels and sizes have no place in it."""
    columns = {"boxes": table.boxes} | ({} if table.scores is None else {"scores": table.scores})
    arrays: dict[str, Any] = {}
    for name, values in columns.items():
        arrays[name] = np.empty(len(table), dtype=object)  # np.array(list) makes one array when all are equally long
        for index in range(len(table)):
            arrays[name][index] = values[table.rows(index)]
    with _whole(path) as file:
        np.savez(file, **arrays)


def write_pth(path: Path, table: BoxTable) -> None:
    """The ``.pth`` form.

    Raises:
        ValueError: sizes are missing, which this form needs.
    """
    if table.sizes is None:
        raise ValueError("BoxTable.sizes: the .pth form needs the size of every picture")
    rows = []
    for index, (height, width) in enumerate(table.sizes.tolist()):
        mine, extra = table.rows(index), {}
        if table.scores is not None:
            extra["scores"] = torch.from_numpy(table.scores[mine].copy())  # torch.save stores all that a view is of
        if table.labels is not None:
            extra["labels"] = torch.from_numpy(table.labels[mine].astype(np.int32))
        rows.append(BoxList(torch.from_numpy(table.boxes[mine].copy()), (width, height), "xyxy", **extra))
    with _whole(path) as file:
        torch.save(rows, file)


def write_coco(path: Path, table: BoxTable, files: Sequence[str], names: Sequence[str]) -> None:
    """COCO JSON: picture ``i`` has the id ``i + 1``, class ``k`` the id ``k + 1``; a box has its score, if any.

    Args:
        path: The file.
        table: With sizes and labels.
        files: (N,) of the pictures, below the folder that will be given as ``img_dir``.
        names: Of the classes, in the order of the labels.

    Raises:
        ValueError: sizes or labels are missing, or the numbers of pictures differ.
    """
    if table.sizes is None or table.labels is None or len(files) != len(table):
        raise ValueError(f"COCO needs size and file of each of the {len(table)} pictures, and labels of the boxes")
    categories = [{"id": label, "name": name, "supercategory": ""} for label, name in enumerate(names, 1)]
    with _whole(path) as file:
        file.write(f'{{"info": {{}}, "categories": {json.dumps(categories)},\n"images": [\n'.encode())
        images = zip(files, table.sizes.tolist(), strict=True)
        _write_rows(
            file,
            (
                {"id": number, "file_name": name, "height": height, "width": width}
                for number, (name, (height, width)) in enumerate(images, 1)
            ),
        )
        file.write(b'\n],\n"annotations": [\n')
        _write_rows(file, _annotations(table, table.labels))
        file.write(b"\n]}\n")


def _annotations(table: BoxTable, labels: np.ndarray) -> Iterator[Mapping[str, object]]:
    picture = np.repeat(np.arange(1, len(table) + 1), np.diff(table.first)).tolist()
    for row, image_id in enumerate(picture):
        box = xyxy_to_xywh(torch.from_numpy(table.boxes[row].astype(np.float64)), plus_one=True).tolist()
        said = {} if table.scores is None else {"score": float(table.scores[row])}
        shape = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        yield {"id": row + 1, "image_id": image_id, "category_id": int(labels[row]) + 1, **shape, **said}


def _write_rows(file: IO[bytes], rows: Iterator[Mapping[str, object]]) -> None:
    for number, row in enumerate(rows):
        file.write((",\n" * (number > 0) + json.dumps(row)).encode())


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that has its name once it is complete."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


class _Array:
    """Takes the place of a numpy array in a pickle: of numbers, or of further arrays."""

    def __init__(self) -> None:
        self.value: np.ndarray | list[Any] = []
        self.shape: tuple[int, ...] = (0,)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, dtype, fortran, data = state
        if isinstance(data, list):
            self.value = data
        else:
            self.value = np.frombuffer(data, dtype.numpy()).reshape(self.shape, order="F" if fortran else "C")


def _array(*_: object) -> _Array:
    return _Array()


def _from_buffer(data: bytes, dtype: Dtype, shape: tuple[int, ...], order: str, *_: object) -> _Array:
    """How protocol 5 stores numbers."""
    array = _Array()
    array.value = np.frombuffer(data, dtype.numpy()).reshape(shape, order="F" if order == "F" else "C")
    return array


def _latin(text: str, encoding: str) -> bytes:
    """How protocols before 3 store bytes."""
    return text.encode("latin1")


def _tensor(storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> Any:
    """How torch stores a tensor; numpy refuses one that reaches beyond its storage."""
    if storage.size == 0:
        return storage.reshape(shape)
    side = storage.itemsize
    return np.ndarray(shape, storage.dtype, storage, offset * side, [side * stride for stride in strides])


class _Unpickler(pickle.Unpickler):
    """Knows numpy arrays, as stand-ins, and nothing else."""

    NAMES: Mapping[str, Any] = {
        "numpy.ndarray": _Array,
        "numpy.dtype": Dtype,
        "_codecs.encode": _latin,
        **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
        **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    }

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.NAMES:
            raise pickle.UnpicklingError(f"reading it would run {module}.{name}, which no boxes need")
        return self.NAMES[f"{module}.{name}"]


def _read_npz(path: Path) -> BoxTable:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            if not members:
                raise DataError(f"{path}: holds no arrays; it should have one called boxes")
            boxes = _column(archive, members[0], path, 4)  # the first one, whatever it is called
            scores = _column(archive, "scores.npy", path, 1) if "scores.npy" in members[1:] else None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise DataError(f"{path}: not a whole .npz file ({error}); {AGAIN}") from None
    table = BoxTable.of(boxes)
    if scores is None:
        return table
    if [len(row) for row in scores] != np.diff(table.first).tolist():
        raise DataError(f"{path}: scores are not one for each box of each picture; {AGAIN}")
    return BoxTable.of(boxes, [row.reshape(-1) for row in scores])


def _column(archive: zipfile.ZipFile, member: str, path: Path, width: int) -> list[np.ndarray]:
    """For each picture an array (k, width)."""
    place = f"{path}: {member.removesuffix('.npy')}"
    try:
        with archive.open(member) as file:
            rows = _rows(file)
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise DataError(f"{place} cannot be read as arrays of numbers ({error}); {AGAIN}") from None
    found = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(np.asarray(row, dtype=np.float32).reshape(-1, width))
        except (ValueError, TypeError):
            raise DataError(
                f"{place} of picture {number} (of {len(rows)}): {row!r:.60} is no array (k, {width}); {AGAIN}"
            ) from None
    return found


def _rows(file: IO[bytes]) -> list[Any]:
    """The rows of a ``.npy`` stream, of numbers or of arrays."""
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = header(file)
    if not dtype.hasobject:
        values = np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran else "C")
        return list(values) if values.ndim else [values]
    found = _Unpickler(file).load()
    if not isinstance(found, _Array):
        raise ValueError(f"{type(found).__name__} in place of an array")
    rows = [item.value if isinstance(item, _Array) else item for item in found.value]
    if len(found.shape) == 1:
        return rows
    return list(np.array(rows, dtype=np.float32).reshape(found.shape))  # equally many boxes everywhere became one array


class _Stored(_Unpickler):
    """The list of BoxList in a zip file of ``torch.save``, with tensors as numpy arrays: views of the file.

    ``torch.load`` does the same in Python, operation by operation: a minute for the pictures of one TSV file.
    """

    NAMES: Mapping[str, Any] = {
        **_Unpickler.NAMES,
        f"{BoxList.__module__}.{BoxList.__qualname__}": BoxList,
        "collections.OrderedDict": OrderedDict,
        "torch._utils._rebuild_tensor_v2": _tensor,
        **{f"torch.{kind}Storage": np.dtype(code) for kind, code in STORAGES.items()},
    }

    def __init__(self, path: Path):
        self.data = np.memmap(path, np.uint8, "r")
        with zipfile.ZipFile(path) as archive:
            rows = archive.infolist()
            head = next(row.filename for row in rows if row.filename.endswith("data.pkl"))
            folder = head.removesuffix("data.pkl")
            self.headers = {row.filename.removeprefix(f"{folder}data/"): row.header_offset for row in rows}
            if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
                raise ValueError("its numbers are stored with the largest byte first")
            super().__init__(io.BytesIO(archive.read(head)))

    def persistent_load(self, pid: tuple[Any, ...]) -> np.ndarray:
        _, dtype, key, _, count = pid
        if not count:
            return np.zeros(0, dtype)
        end = self.headers[key] + 30  # of the header's fixed part, whose last two numbers say what follows it
        name, padding = struct.unpack("<HH", self.data[end - 4 : end].tobytes())
        return np.frombuffer(self.data, dtype, count, end + name + padding)


def _read_pth(path: Path) -> BoxTable:
    rows = _pth_rows(path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds a {type(rows).__name__}, not a list of BoxList; {AGAIN}")
    boxes, sizes = [], []
    extra: dict[str, list[np.ndarray]] = {"scores": [], "labels": []}
    for number, row in enumerate(rows, 1):
        try:
            boxes.append(_corners(row))
            sizes.append((int(row.size[1]), int(row.size[0])))
            for field, values in extra.items():
                if field in row.extra_fields:
                    values.append(np.asarray(row.extra_fields[field]).reshape(len(boxes[-1])))
        except (AttributeError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise DataError(f"{path}: picture {number} (of {len(rows)}) is no whole BoxList ({error})") from None
    for field, values in extra.items():
        if len(values) not in (0, len(rows)):
            raise DataError(f"{path}: {len(values)} of {len(rows)} pictures have {field}; all or none should; {AGAIN}")
    scores, labels = (values or None for values in extra.values())
    return BoxTable.of(boxes, scores, labels, sizes)


def _pth_rows(path: Path) -> Any:
    """What is in a file of ``torch.save``."""
    if zipfile.is_zipfile(path):
        try:
            return _Stored(path).load()
        except Exception as error:  # what a damaged file makes the reader raise is of every kind
            raise DataError(f"{path}: no boxes can be read ({type(error).__name__}: {error}); {AGAIN}") from None
    try:
        with torch.serialization.safe_globals([BoxList]):
            return load_torch(path)  # before torch 1.6, or damaged
    except WeightsError as error:
        raise DataError(f"no boxes can be read: {error}") from None


def _corners(row: BoxList) -> np.ndarray:
    """(k, 4) xyxy."""
    if row.mode not in ("xyxy", "xywh"):
        raise ValueError(f"mode {row.mode!r}")
    boxes = np.asarray(row.bbox, np.float32).reshape(-1, 4)
    return boxes if row.mode == "xyxy" else xywh_to_xyxy(torch.tensor(boxes), plus_one=True).numpy()
