"""The mask head of MDETR, "smallconv" (https://github.com/ashkamath/mdetr), under its released names.

Each query is treated by itself, so the head may run for some of the queries of a batch: K of them, whose pictures are
given as ``owner`` (K,).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BoxAttention(nn.Module):
    """Where in the picture each head of a query looks.

    Args:
        width: Of queries and cells.
        heads: How many attentions.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.k_linear = nn.Linear(width, width)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, cells: Tensor, padding: Tensor, owner: Tensor) -> Tensor:
        """(K, D), (B, H * W, D), (B, H * W) bool -> (K, heads, H * W), which sum to 1 over the cells of each head."""
        query = self.q_linear(queries).unflatten(1, (self.heads, -1))
        keys = self.k_linear(cells).unflatten(2, (self.heads, -1))[owner]
        logits = torch.einsum("khd,kshd->khs", query * query.shape[-1] ** -0.5, keys)
        return logits.masked_fill(padding[owner][:, None], -torch.inf).softmax(-1)


class MaskHead(nn.Module):
    """From attention maps and features of four resolutions to a mask of the finest one.

    Args:
        width: Of the cells; its quotients by 2 to 16 are the widths inside.
        heads: Attention maps of each query.
        channels: Of the features at strides 16, 8 and 4.
    """

    def __init__(self, width: int, heads: int, channels: Sequence[int]) -> None:
        super().__init__()
        widths = [width + heads, width + heads, *(width // 2**step for step in range(1, 5))]
        for number, (before, after) in enumerate(pairwise(widths), start=1):
            self.add_module(f"lay{number}", nn.Conv2d(before, after, 3, padding=1))
            self.add_module(f"gn{number}", nn.GroupNorm(8, after))
        self.out_lay = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for number, (before, after) in enumerate(zip(channels, widths[2:5], strict=True), start=1):
            self.add_module(f"adapter{number}", nn.Conv2d(before, after, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, cells: Tensor, attention: Tensor, maps: Sequence[Tensor], owner: Tensor) -> Tensor:
        """Logits of masks.

        Args:
            cells: (B, D, H, W).
            attention: (K, heads, H, W).
            maps: At strides 16, 8 and 4, (B, C_l, H_l, W_l).
            owner: (K,) picture of each query.

        Returns:
            (K, H_4, W_4), of the finest map.
        """
        x = torch.cat((cells[owner], attention), dim=1)
        for number in (1, 2):
            x = self._block(number, x)
        for number, finer in enumerate(maps, start=1):
            x = F.interpolate(x, size=finer.shape[-2:], mode="nearest")
            x = self._block(number + 2, self.get_submodule(f"adapter{number}")(finer)[owner] + x)
        return self.out_lay(x).squeeze(1)

    def _block(self, number: int, x: Tensor) -> Tensor:
        return F.relu(self.get_submodule(f"gn{number}")(self.get_submodule(f"lay{number}")(x)))
