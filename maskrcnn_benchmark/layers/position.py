"""Encodings of places in a feature map."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from maskrcnn_benchmark.errors import ConfigError


class SinePosition(nn.Module):
    """Sines and cosines of the place in the picture, as in DETR (https://arxiv.org/abs/2005.12872); nothing is learnt.

    Rows and columns count from 0 to 2 pi over the picture itself, whatever is padded.

    Args:
        width: Of the encoding: its first half is of the rows, its second half of the columns.
        temperature: Ratio of the longest wave to the shortest.
        back: By how many cells places are shifted back: 0 counts from 1, as DETR does, 0.5 takes the middle of cells,
            as Deformable DETR does.
    """

    def __init__(self, width: int, temperature: float = 10000.0, back: float = 0.0) -> None:
        super().__init__()
        self.per_axis, self.temperature, self.back = width // 2, temperature, back

    def forward(self, mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, H, W) bool, True where there is padding -> (B, width, H, W)."""
        rows, columns = (self._waves(mask, dim) for dim in (1, 2))
        return torch.cat((rows, columns), dim=3).permute(0, 3, 1, 2).to(dtype)

    def _waves(self, mask: Tensor, dim: int) -> Tensor:
        place = (~mask).cumsum(dim, dtype=torch.float32)
        last = place.narrow(dim, place.shape[dim] - 1, 1)
        angle = (place - self.back) / (last + 1e-6) * (2 * math.pi)
        number = torch.arange(self.per_axis, dtype=torch.float32, device=mask.device)
        wave = angle[..., None] / self.temperature ** (2 * number.div(2, rounding_mode="floor") / self.per_axis)
        return torch.stack((wave[..., 0::2].sin(), wave[..., 1::2].cos()), dim=4).flatten(3)


class LearnedPosition(nn.Module):
    """A learnt vector for each column and for each row of a map, wherever the picture ends in it.

    Args:
        width: Of the encoding: its first half is of the columns, its second half of the rows.
        places: Most rows, and most columns, that a map may have.
    """

    def __init__(self, width: int, places: int = 50) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(places, width // 2)
        self.col_embed = nn.Embedding(places, width // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, H, W) -> (B, width, H, W).

        Raises:
            ConfigError: the map has more rows or columns than there are vectors.
        """
        batch, height, width = mask.shape
        places = self.row_embed.num_embeddings
        if max(height, width) > places:
            raise ConfigError(
                f"a map of {height} x {width} cells, but learnt positions end at {places}: use smaller pictures, or "
                "positions that are not learnt (MODEL.MDETR.POS_EMBED sine)"
            )
        columns = self.col_embed.weight[:width].t()[:, None].expand(-1, height, -1)
        rows = self.row_embed.weight[:height].t()[:, :, None].expand(-1, -1, width)
        return torch.cat((columns, rows)).to(dtype).expand(batch, -1, -1, -1)
