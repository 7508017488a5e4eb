"""Pictures in tar files, numbered through all of them, as in ImageNet-21k of Detic and DECOLA."""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path

import numpy as np

from maskrcnn_benchmark.data.handle import Handle
from maskrcnn_benchmark.data.index import first_rows
from maskrcnn_benchmark.errors import DataError

BLOCK = 512  # bytes; a member begins at a multiple of them, with a header of one
LONG_NAME = b"././@LongLink"  # header of a name that needs two blocks more
GZIP = b"\x1f\x8b"
GZIP_FORM = 31  # for zlib, which then heeds nothing behind the end


class TarPictures:
    """The members of several tar files, by one number.

    Args:
        files: In the order that the numbers follow.
        index: Folder with ``NAME_offsets.npy`` for ``NAME.tar``: in blocks, where each member begins and, last, where
            the file ends. A file without one is gone through once.

    Raises:
        DataError: a file is missing or is no tar file.
    """

    def __init__(self, files: list[Path], index: Path | None = None):
        if not files:
            raise DataError(f"{index}: there are no tar files")
        if missing := [file for file in files if not file.is_file()]:
            raise DataError(f"{missing[0]}: no such tar file ({len(missing)} of {len(files)} are missing)")
        self.files = files
        self._offsets = [_offsets(file, index) for file in files]
        self._handles = [Handle(file) for file in files]
        self._first = first_rows([len(rows) - 1 for rows in self._offsets])

    def __len__(self) -> int:
        return int(self._first[-1])

    def read(self, number: int) -> bytes:
        """The picture file of a number, unpacked where it is packed with gzip.

        Raises:
            OSError: the tar file cannot be read.
            zlib.error: what is packed is damaged.
        """
        place = int(np.searchsorted(self._first, number, side="right")) - 1
        begin, end = self._offsets[place][number - self._first[place] :][:2].tolist()
        data = self._handles[place].at(begin * BLOCK).read((end - begin) * BLOCK)
        data = data[(3 if data.startswith(LONG_NAME) else 1) * BLOCK :]
        return zlib.decompressobj(GZIP_FORM).decompress(data) if data.startswith(GZIP) else data


def tar_pictures(list_file: Path, index: Path | None = None) -> TarPictures:
    """The tar files that a list names: a NumPy array of paths, or text with one in each line, relative to itself.

    Raises:
        DataError: the list cannot be read, or a file of it is missing.
    """
    try:
        if list_file.suffix == ".npy":
            names = np.load(list_file, allow_pickle=False).tolist()
        else:
            names = [line.strip() for line in list_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{list_file}: cannot be read as a list of tar files ({error})") from None
    paths = [Path(str(name)) for name in names]
    return TarPictures([path if path.exists() else list_file.parent / path for path in paths], index)


def _offsets(file: Path, index: Path | None) -> np.ndarray:
    """(N + 1,) int64, in blocks."""
    stored = index / f"{file.stem}_offsets.npy" if index else None
    try:
        if stored is not None and stored.is_file():
            return np.load(stored, allow_pickle=False).astype(np.int64)
        with tarfile.open(file, "r:") as tar:
            members = [member for member in tar if member.isfile()]
    except (OSError, ValueError, tarfile.TarError) as error:
        raise DataError(f"{file}: cannot be read as a tar file ({error})") from None
    begins = [member.offset for member in members]
    last = members[-1] if members else None
    end = last.offset_data + -(-last.size // BLOCK) * BLOCK if last else 0
    return np.array([*begins, end], dtype=np.int64) // BLOCK
