"""PNG files without packing, because every library packs in its own way: the same pixels are the same bytes."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

BLOCK = 65535  # bytes that a block which is not packed can hold


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """(h, w, 3) RGB as a file."""
    height, width, _ = pixels.shape
    lines = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # a line begins with its filter: none
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", header), _chunk(b"IDAT", _stored(lines.tobytes())), _chunk(b"IEND", b""))
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _stored(data: bytes) -> bytes:
    """A zlib stream of blocks that are copies."""
    blocks = [b"\x78\x01"]
    for start in range(0, len(data), BLOCK):
        part = data[start : start + BLOCK]
        last = start + BLOCK >= len(data)
        blocks += [struct.pack("<BHH", last, len(part), len(part) ^ 0xFFFF), part]
    return b"".join((*blocks, struct.pack(">I", zlib.adler32(data))))
