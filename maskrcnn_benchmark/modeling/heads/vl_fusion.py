"""Deep fusion of GLIP (Li et al., CVPR 2022): pictures and words attend to each other before every DyHead block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LIMIT = 50000.0  # scores are clamped to +-LIMIT, as in training with half precision


class BiAttention(nn.Module):
    """Two-way cross-attention over one score matrix: its rows serve the picture, its columns the text.

    Linear maps of the picture's side (queries, values, output) are applied to the text's side instead, which is much
    shorter: ``(v Wq) k' = v (k Wq')'`` and ``A (v Wv) = (A v) Wv``. Heads follow one another, so that only one matrix
    (B, N, L) is alive at a time outside training.
    """

    def __init__(self, image_dim: int, text_dim: int, embed_dim: int = 2048, heads: int = 8, dropout: float = 0.1):
        super().__init__()
        self.heads, self.head_dim, self.dropout = heads, embed_dim // heads, dropout
        self.v_proj = nn.Linear(image_dim, embed_dim)
        self.l_proj = nn.Linear(text_dim, embed_dim)
        self.values_v_proj = nn.Linear(image_dim, embed_dim)
        self.values_l_proj = nn.Linear(text_dim, embed_dim)
        self.out_v_proj = nn.Linear(embed_dim, image_dim)
        self.out_l_proj = nn.Linear(embed_dim, text_dim)
        for linear in self.children():
            assert isinstance(linear, nn.Linear)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Args: image (B, N, V), text (B, L, T), mask (B, L) with 1 at tokens. Returns what to add to each."""
        keys = self.l_proj(text) * self.head_dim**-0.5
        values = self.values_l_proj(text)
        padding = mask[:, None, :] == 0  # (B, 1, L)
        image_delta: Tensor = self.out_v_proj.bias
        text_delta: Tensor = self.out_l_proj.bias
        for head in range(self.heads):
            part = slice(head * self.head_dim, (head + 1) * self.head_dim)
            scores = self._scores(image, keys[..., part], part)
            to_text = self._weights(scores, dim=1).transpose(1, 2)  # (B, L, N); padding asks too, nobody listens
            to_image = self._weights(scores.masked_fill_(padding, -torch.inf), dim=2)  # (B, N, L)
            answers = F.linear(values[..., part], self.out_v_proj.weight[:, part])  # (B, L, V)
            image_delta = torch.baddbmm(image_delta, to_image, answers)
            seen = F.linear(to_text @ image, self.values_v_proj.weight[part])
            seen = seen + to_text.sum(-1, keepdim=True) * self.values_v_proj.bias[part]
            text_delta = text_delta + F.linear(seen, self.out_l_proj.weight[:, part])
        return image_delta, text_delta

    def _scores(self, image: Tensor, keys: Tensor, part: slice) -> Tensor:
        """(B, N, L) products of the picture's queries and the (B, L, d) keys of one head."""
        bias = (keys @ self.v_proj.bias[part])[:, None, :]
        folded = keys @ self.v_proj.weight[part]  # (B, L, V)
        return torch.baddbmm(bias, image, folded.transpose(1, 2)).clamp_(-LIMIT, LIMIT)

    def _weights(self, scores: Tensor, dim: int) -> Tensor:
        return F.dropout(scores.softmax(dim), self.dropout, self.training)


class BiAttentionBlock(nn.Module):
    """Normalise, attend both ways, add. The sums start from the *normalised* inputs, as released weights expect."""

    def __init__(self, image_dim: int, text_dim: int, layer_scale: float):
        super().__init__()
        self.layer_norm_v = nn.LayerNorm(image_dim)
        self.layer_norm_l = nn.LayerNorm(text_dim)
        self.attn = BiAttention(image_dim, text_dim)
        self.gamma_v = nn.Parameter(torch.full((image_dim,), layer_scale))
        self.gamma_l = nn.Parameter(torch.full((text_dim,), layer_scale))

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, V) and (B, L, T), mask (B, L), to tensors of the same shapes."""
        image, text = self.layer_norm_v(image), self.layer_norm_l(text)
        image_delta, text_delta = self.attn(image, text, mask)
        return torch.addcmul(image, image_delta, self.gamma_v), torch.addcmul(text, text_delta, self.gamma_l)


class VLFuse(nn.Module):
    """Fuses text with all pyramid levels at once, as one long sequence of positions."""

    def __init__(self, image_dim: int, text_dim: int, layer_scale: float):
        super().__init__()
        self.b_attn = BiAttentionBlock(image_dim, text_dim, layer_scale)

    def forward(self, features: Sequence[Tensor], hidden: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
        """Levels (B, C, H_l, W_l), text (B, L, T) and mask (B, L), to levels and text of the same shapes."""
        shapes = [feature.shape[-2:] for feature in features]
        flat = torch.cat([feature.flatten(2) for feature in features], dim=2).transpose(1, 2)
        fused, hidden = self.b_attn(flat, hidden, mask)
        levels = fused.transpose(1, 2).split([h * w for h, w in shapes], dim=2)
        return [level.unflatten(2, shape).contiguous() for level, shape in zip(levels, shapes, strict=True)], hidden
