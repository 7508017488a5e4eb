"""One run at a time in an output folder."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maskrcnn_benchmark.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

NAME = "run.lock"


@contextmanager
def lock(folder: Path, option: str = "OUTPUT_DIR") -> Iterator[None]:
    """Hold a folder. The system lets go of it when this process ends, however it ends: no lock is ever stale.

    The lock belongs to the process and not to those that it starts, so that workers which outlive a killed run for some
    seconds do not keep the next one out. Where the file system knows no locks, a warning is all there is.

    Raises:
        ConfigError: another run holds it.
    """
    with (folder / NAME).open("a+", encoding="utf-8") as file:
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise ConfigError(
                    f"{option} {str(folder)!r} is in use by another run ({_holder(file.read())}): wait for it, or "
                    f"choose another {option}"
                ) from None
            logger.warning("%s cannot be locked (%s): see that no other run writes there", folder, error.strerror)
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "machine": socket.gethostname()}))
        file.flush()
        yield


def _holder(text: str) -> str:
    try:
        row = json.loads(text)
        return f"process {row['process']} on {row['machine']}"
    except (ValueError, KeyError, TypeError):
        return "which did not say who it is"
