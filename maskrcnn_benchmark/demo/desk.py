"""Encoded pictures and the one thread that asks the network, for a server that many requests come to."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar

from PIL import Image

from maskrcnn_benchmark.api import Found, Predictor
from maskrcnn_benchmark.data.pictures import DAMAGED, NO_PICTURE, PictureError, read_picture
from maskrcnn_benchmark.engine.inference import Model
from maskrcnn_benchmark.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What is taken: pictures that browsers show too, and none whose reader starts other programs."""

MIB = 1024 * 1024

T = TypeVar("T")


class Refused(UserError):
    """A request that is not answered, with its HTTP status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What a server takes and keeps."""

    upload: int = 20 * MIB  # bytes of a picture file
    pixels: int = 50_000_000  # of a picture
    memory: int = 1024 * MIB  # bytes of encoded pictures; the latest is kept in any case
    waiting: int = 64  # requests


@dataclass(frozen=True)
class Kept:
    """A picture that can be asked for things."""

    key: str
    file: str  # name that the uploader gave it
    size: tuple[int, int]  # (h, w) of the upright picture
    predictor: Predictor


class Desk:
    """Answers requests one after the other, in the order in which they came; the event loop never waits for one."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="network")
        self._waiting = 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()  # the latest used is last; only the thread touches it

    async def add(self, data: bytes, file: str) -> Kept:
        """Encode a picture file and keep it.

        Raises:
            PictureError: it is no picture of :data:`FORMATS`, is damaged or has too many pixels.
            Refused: too many requests wait.
        """
        return await self._in_turn(self._add, data, file)

    async def find(self, key: str, query: Mapping[str, Any]) -> tuple[Kept, Found]:
        """Ask a picture; ``query`` holds arguments of :meth:`Predictor.predict`.

        Raises:
            PromptError: the words make no prompt.
            Refused: the picture is not kept any more (404), or too many requests wait (503).
        """
        return await self._in_turn(self._find, key, query)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    async def _in_turn(self, work: Callable[..., T], *args: Any) -> T:
        if self._waiting >= self.limits.waiting:
            raise Refused(503, f"busy: {self._waiting} requests are waiting already; try again in a moment")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
        finally:
            self._waiting -= 1

    def _add(self, data: bytes, file: str) -> Kept:
        picture = decode(data, file, self.limits.pixels)
        kept = Kept(secrets.token_urlsafe(16), file, (picture.height, picture.width), Predictor(self.model))
        kept.predictor.set_image(picture)
        self._kept[kept.key] = kept
        self._forget()
        return kept

    def _find(self, key: str, query: Mapping[str, Any]) -> tuple[Kept, Found]:
        if key not in self._kept:
            raise Refused(404, "this picture is not kept any more: choose it again")
        self._kept.move_to_end(key)
        kept = self._kept[key]
        found = kept.predictor.predict(**query)
        self._forget()
        return kept, found

    def _forget(self) -> None:
        """Let go of the pictures that were not asked for longest, down to the memory limit."""
        sizes = {key: kept.predictor.nbytes for key, kept in self._kept.items()}
        while len(self._kept) > 1 and sum(sizes.values()) > self.limits.memory:
            sizes.pop(self._kept.popitem(last=False)[0])


def decode(data: bytes, file: str, pixels: int) -> Image.Image:
    """The upright RGB picture of an upload; its format and size are checked before a pixel is read.

    Raises:
        PictureError: it is no picture of :data:`FORMATS`, is damaged or has more than ``pixels`` pixels.
    """
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except (Image.DecompressionBombError, *DAMAGED):
        reason = f"{NO_PICTURE}: use {', '.join(FORMATS)}" if data else "the file is empty"
        raise PictureError(file, reason) from None
    if width * height > pixels:
        raise PictureError(file, f"{width}x{height} pixels, more than {pixels / 1e6:g} million: make it smaller")
    return read_picture(file, data=data, formats=FORMATS)[0]
