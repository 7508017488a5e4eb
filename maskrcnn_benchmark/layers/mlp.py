"""A stack of linear layers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        width: Of the input.
        hidden: Of everything between the layers.
        out_width: Of the output.
        depth: How many layers.
    """

    def __init__(self, width: int, hidden: int, out_width: int, depth: int) -> None:
        super().__init__()
        widths = [width, *[hidden] * (depth - 1), out_width]
        self.layers = nn.ModuleList(map(nn.Linear, widths[:-1], widths[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., out_width)."""
        *inner, last = self.layers
        for layer in inner:
            x = F.relu(layer(x))
        return last(x)
