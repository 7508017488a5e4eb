"""One place that decides where messages go: the terminal, and ``log.txt`` in the output folder."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

PACKAGE = "maskrcnn_benchmark"
OWN_PICTURES = ("data.train_loader", "data.loader", "engine.evaluate")
"""Modules whose warnings are about pictures that only the process that warns has read."""


class _LineFormatter(logging.Formatter):
    """Plain text for information, the level in front of anything worse."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return message if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {message}"


def setup_logging(folder: Path | None = None) -> logging.Logger:
    """Send the package's messages to stderr and, when ``folder`` is given, to ``folder/log.txt`` with times.

    Calling it again replaces what an earlier call set up.
    """
    logger = logging.getLogger(PACKAGE)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO)
    for module in OWN_PICTURES:
        logging.getLogger(f"{PACKAGE}.{module}").setLevel(logging.NOTSET)
    logger.propagate = False
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(_LineFormatter("%(message)s"))
    logger.addHandler(terminal)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(folder / "log.txt", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(file)
    return logger


def say_what_others_cannot() -> None:
    """For all processes but the first: it says what is the same in all of them, the others what they alone know."""
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)
    for module in OWN_PICTURES:
        logging.getLogger(f"{PACKAGE}.{module}").setLevel(logging.WARNING)
