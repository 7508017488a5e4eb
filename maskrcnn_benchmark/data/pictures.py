"""Picture files as people see them: upright, three colours of eight bits."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from maskrcnn_benchmark.errors import DataError

ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the stored picture upright."""

DAMAGED = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error, zlib.error)
"""What Pillow raises on damaged files, depending on the format."""

NO_PICTURE = "not a picture, or of a format that cannot be read"

Size = tuple[int, int]  # h, w


class PictureError(DataError):
    """A picture that cannot be used; ``reason`` says why without naming it."""

    def __init__(self, file: str | Path, reason: str, about: str = ""):
        super().__init__(f"{file}{about}: {reason}")
        self.file, self.reason = str(file), reason


def open_picture(path: str | Path) -> Image.Image:
    """Read a picture: RGB, upright by its EXIF orientation.

    Raises:
        DataError: the file is missing, or is no picture, or is damaged.
    """
    return read_picture(path)[0]


def read_picture(
    path: str | Path, size: Size | None = None, data: bytes | None = None, formats: tuple[str, ...] | None = None
) -> tuple[Image.Image, str]:
    """Read a picture that annotations may speak of.

    Annotators either saw the picture upright or as it is stored (the maskrcnn-benchmark lineage does not look at
    EXIF). The size in the annotations tells which: a picture is turned upright unless only its stored size fits.

    Args:
        path: The file.
        size: (h, w) that the annotations give; None: not known.
        data: The encoded picture, when it is no file of its own; ``path`` is then for messages only.
        formats: Pillow's names of the formats to read; None: all that it can.

    Returns:
        The RGB picture, and what is odd about it ("" when nothing is).

    Raises:
        PictureError: the file is missing, or is no picture, or is damaged.
    """
    try:
        with Image.open(path if data is None else BytesIO(data), formats=formats) as image:
            turn = UPRIGHT.get(_orientation(image))
            picture = to_rgb(image)
    except Image.DecompressionBombError as error:
        raise PictureError(path, f"too large to be read safely ({error})") from None
    except FileNotFoundError:
        raise PictureError(path, "missing") from None
    except (IsADirectoryError, PermissionError) as error:
        raise PictureError(path, f"cannot be read ({error.strerror})") from None
    except UnidentifiedImageError:
        empty = os.path.getsize(path) == 0 if data is None else not data
        raise PictureError(path, "the file is empty" if empty else NO_PICTURE) from None
    except DAMAGED as error:
        raise PictureError(path, f"damaged ({error})") from None
    if turn is None:
        return picture, _size_note(picture, size)
    upright = picture.transpose(turn)
    if size is None or _size(upright) == size or _size(picture) != size:
        return upright, _size_note(upright, size)
    return picture, "turned by its EXIF orientation, but annotated as it is stored: left as stored"


def header_size(path: str | Path) -> Size | None:
    """(h, w) of the upright picture, from the file's header; None when it cannot be read."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            height, width = _size(image)
            return (width, height) if _orientation(image) >= 5 else (height, width)
    except (Image.DecompressionBombError, *DAMAGED):
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any colour mode as RGB. What is transparent lies on white; 16 bits become 8 by their full range."""
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    if image.mode.startswith("I") or image.mode == "F":
        return _from_numbers(np.asarray(image)).convert("RGB")
    return image.convert("RGB")


def _from_numbers(values: np.ndarray) -> Image.Image:
    """Greyscale of more than eight bits: whole numbers to 255 stay, to 65535 are 16 bits, else the largest is white."""
    values = values.astype(np.float64)
    values[~np.isfinite(values)] = 0
    top = values.max(initial=0)
    if np.all(values == np.floor(values)):
        scale = 1.0 if top <= 255 else 257.0 if top <= 65535 else top / 255
    else:
        scale = 1.0 if 1 < top <= 255 else max(top, 1.0) / 255
    return Image.fromarray(np.clip(values / scale + 0.5, 0, 255).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (as it is stored) when there is none that can be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except DAMAGED:
        return 1


def _size(image: Image.Image) -> Size:
    return image.height, image.width


def _size_note(picture: Image.Image, size: Size | None) -> str:
    if size is None or _size(picture) == size:
        return ""
    return f"{picture.width}x{picture.height} pixels, but {size[1]}x{size[0]} by the annotations"
