"""Files that stay open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO


class Handle:
    """A file to read any part of. Each process opens it for itself: a shared one would have one position for all."""

    def __init__(self, path: Path):
        self.path = path
        self._file: IO[bytes] | None = None
        self._owner = 0

    def at(self, offset: int) -> IO[bytes]:
        """The open file, at a byte."""
        if self._file is None or self._owner != os.getpid():
            self._file, self._owner = open(self.path, "rb"), os.getpid()  # noqa: SIM115
        self._file.seek(offset)
        return self._file

    def __reduce__(self) -> tuple[type[Handle], tuple[Path]]:
        return Handle, (self.path,)
