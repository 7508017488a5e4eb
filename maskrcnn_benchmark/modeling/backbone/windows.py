"""How maps of tokens are cut into the (shifted) windows of Swin Transformer, and put together again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

APART = -100.0  # added to the score of two tokens that only the cyclic shift has brought together


@dataclass(frozen=True)
class WindowGroup:
    """Windows ``begin`` to ``end`` (exclusive), all with the same mask."""

    begin: int
    end: int
    mask: Tensor | None  # (N, N) float32, 0 or APART; None: nothing is masked


@dataclass(frozen=True)
class WindowLayout:
    """B maps of H x W tokens, flattened to B * H * W rows, as windows of N tokens.

    A shift makes masks, but only of four kinds: of windows inside, at the bottom, at the right, and of the corner.
    Windows are ordered by kind, so that a mask is (N, N) and never repeated for each window.
    """

    gather: Tensor  # (windows * N,) int64, the row of the token at each place; B * H * W where there is padding
    scatter: Tensor  # (B * H * W,) int64, the place of each row
    padded: bool  # whether any place is padding
    groups: tuple[WindowGroup, ...]


@lru_cache(maxsize=64)
def window_layout(batch: int, height: int, width: int, window: int, shift: int, device: torch.device) -> WindowLayout:
    """The layout of maps (batch, height, width), padded at the bottom and the right to whole windows, then rolled.

    A map smaller than the window is padded too: window and shift stay as they are, as in the detection code of Swin.
    """
    # Kept between calls, so a tensor made here must also serve a later backward pass.
    with torch.inference_mode(False), torch.no_grad():
        count = height * width
        tokens = torch.arange(count).view(height, width)
        tokens = F.pad(tokens, (0, -width % window, 0, -height % window), value=-1)
        places = _cut(tokens.roll((-shift, -shift), (0, 1)), window)
        rows = tokens.shape[0] // window
        order, groups = _group(rows, len(places) // rows, window, shift)
        images = torch.arange(batch)[:, None, None] * count
        parts, ends = [], [0]
        for windows in places[order].split([number for number, _ in groups]):
            parts.append(torch.where(windows < 0, batch * count, windows + images).flatten())
            ends.append(ends[-1] + batch * len(windows))
        gather = torch.cat(parts)
        real = gather < batch * count
        scatter = torch.empty(batch * count, dtype=torch.int64)
        scatter[gather[real]] = torch.arange(len(gather))[real]
        return WindowLayout(
            gather.to(device),
            scatter.to(device),
            not bool(real.all()),
            tuple(
                WindowGroup(begin, end, None if mask is None else mask.to(device))
                for begin, end, (_, mask) in zip(ends, ends[1:], groups, strict=False)
            ),
        )


def _cut(grid: Tensor, window: int) -> Tensor:
    """(H, W), whole windows -> (windows, N), row by row."""
    rows, columns = grid.shape[0] // window, grid.shape[1] // window
    return grid.view(rows, window, columns, window).transpose(1, 2).reshape(rows * columns, window**2)


def _group(rows: int, columns: int, window: int, shift: int) -> tuple[Tensor, list[tuple[int, Tensor | None]]]:
    """Order of the windows by kind of mask, and (how many windows, mask) of each kind that occurs."""
    if shift == 0:
        return torch.arange(rows * columns), [(rows * columns, None)]
    last = torch.zeros(rows, columns, dtype=torch.int64)
    last[-1] += 2
    last[:, -1] += 1
    last = last.flatten()
    order = last.argsort(stable=True)
    # In the last window of a row or column, the tail of length `shift` came from the other end of the map.
    wrapped = (torch.arange(window) >= window - shift).long()
    groups: list[tuple[int, Tensor | None]] = []
    for kind, number in zip(*(x.tolist() for x in last[order].unique_consecutive(return_counts=True)), strict=True):
        region = 2 * (kind // 2) * wrapped[:, None] + (kind % 2) * wrapped
        region = region.flatten()
        mask = (region[:, None] != region).float() * APART
        groups.append((number, mask if kind else None))
    return order, groups
