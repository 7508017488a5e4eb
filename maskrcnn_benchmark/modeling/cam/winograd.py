"""3x3 convolutions with a quarter of the products (Winograd's F(4x4, 3x3), https://arxiv.org/abs/1509.09308).

Where channels are many, the products of a convolution are nearly all of its time: tiles of 6x6 values become 36 numbers
of which each is multiplied with its own matrix, and these become 4x4 results: 36 products in the place of 144.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEAST = 256  # channels from which the products outweigh the changes of form
TILE, OUT = 6, 4  # sides of what a tile reads and gives

TO_TILES = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
OF_WEIGHTS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
FROM_TILES = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def suits(conv: nn.Conv2d) -> bool:
    """Whether a convolution can be done this way, and gains by it."""
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and min(conv.in_channels, conv.out_channels) >= LEAST


class WinogradConv(nn.Module):
    """relu(conv(x)), or relu(conv(x) + other), of a 3x3 convolution that :func:`suits`.

    From (B, C, H, W) to (B, D, H, W), float32 on a CPU.
    """

    weight: Tensor
    tiles: Tensor
    results: Tensor

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        change = torch.tensor(OF_WEIGHTS, dtype=torch.float64)
        weight = torch.einsum("ai,bj,dcij->abdc", change, change, conv.weight.detach().double())
        self.register_buffer("weight", weight.flatten(0, 1).float().contiguous())  # (36, D, C)
        for name, rows in (("tiles", TO_TILES), ("results", FROM_TILES)):
            matrix = torch.tensor(rows, dtype=torch.float32)
            self.register_buffer(name, torch.kron(matrix, matrix))  # (36, 36) and (16, 36)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        count, channels, height, width = x.shape
        rows, columns = -(-height // OUT), -(-width // OUT)
        padded = x.new_zeros(count, rows * OUT + 2, columns * OUT + 2, channels)
        padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
        picture, row, column, _ = padded.stride()
        cut = padded.as_strided(
            (TILE, TILE, count, rows, columns, channels), (row, column, picture, OUT * row, OUT * column, 1)
        )
        tiles = (self.tiles @ cut.reshape(TILE * TILE, -1)).view(TILE * TILE, -1, channels)
        linear = torch.ops.mkldnn._linear_pointwise  # twice as fast as torch.bmm on some processors
        products = torch.stack([linear(*pair, None, "none", [], None) for pair in zip(tiles, self.weight, strict=True)])
        result = (self.results @ products.flatten(1)).view(OUT, OUT, count, rows, columns, -1)
        out = result.permute(2, 3, 0, 4, 1, 5).reshape(count, rows * OUT, columns * OUT, -1)[:, :height, :width]
        out = (out if self.bias is None else out + self.bias).permute(0, 3, 1, 2)
        return (out if other is None else out + other).relu()
