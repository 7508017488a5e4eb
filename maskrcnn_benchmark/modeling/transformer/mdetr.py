"""The transformer of MDETR (Kamath et al., ICCV 2021, https://github.com/ashkamath/mdetr).

Picture and text go through one encoder together; queries look at all that comes out. Names are the released ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_benchmark.modeling.heads.word_heads import FeatureResizer
from maskrcnn_benchmark.text.encoder import PooledTextEncoder


@dataclass(frozen=True)
class TextFeatures:
    """Text of P prompts, each alone."""

    tokens: Tensor  # (P, T, D)
    padding: Tensor  # (P, T) bool, True = padding
    pooled: Tensor | None = None  # (P, H), of the text encoder's width; only where a loss asks for it


@dataclass(frozen=True)
class Memory:
    """Picture and text after they have seen each other: S places, those of the text last."""

    places: Tensor  # (B, S, D)
    padding: Tensor  # (B, S) bool, True = padding
    positions: Tensor  # (B, S, D), 0 for text
    cells: slice  # the places of the picture

    @property
    def text(self) -> Tensor:
        """(B, T, D)."""
        return self.places[:, self.cells.stop :]

    @property
    def summary(self) -> Tensor:
        """(B, D), of the place before the picture."""
        return self.places[:, 0]


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each followed by its sum with the input and a norm."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(width, ffn)
        self.linear2 = nn.Linear(ffn, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, padding: Tensor, positions: Tensor) -> Tensor:
        """(B, S, D), (B, S) bool, (B, S, D) -> (B, S, D)."""
        query = x + positions
        attended, _ = self.self_attn(query, query, x, key_padding_mask=padding, need_weights=False)
        x = self.norm1(x + self.dropout(attended))
        inner = self.linear2(self.dropout(F.relu(self.linear1(x))))
        return self.norm2(x + self.dropout(inner))


class DecoderLayer(nn.Module):
    """Queries look at each other, then at picture and text."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.cross_attn_image = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(width, ffn)
        self.linear2 = nn.Linear(ffn, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, queries: Tensor, keys: Tensor, memory: Memory) -> Tensor:
        """(B, Q, D), (B, Q, D), memory with positions (B, S, D) -> (B, Q, D)."""
        query = x + queries
        attended, _ = self.self_attn(query, query, x, need_weights=False)
        x = self.norm1(x + self.dropout(attended))
        attended, _ = self.cross_attn_image(
            x + queries, keys, memory.places, key_padding_mask=memory.padding, need_weights=False
        )
        x = self.norm3(x + self.dropout(attended))
        inner = self.linear2(self.dropout(F.relu(self.linear1(x))))
        return self.norm4(x + self.dropout(inner))


class Encoder(nn.Module):
    """A stack of layers."""

    def __init__(self, depth: int, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads, ffn, dropout) for _ in range(depth))

    def forward(self, x: Tensor, padding: Tensor, positions: Tensor) -> Tensor:
        """(B, S, D), (B, S) bool, (B, S, D) -> (B, S, D)."""
        for layer in self.layers:
            x = layer(x, padding, positions)
        return x


class Decoder(nn.Module):
    """A stack of layers; what each gives is normalised for predictions, not for the next layer."""

    def __init__(self, depth: int, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, ffn, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, memory: Memory) -> Tensor:
        """(B, Q, D) -> (N, B, Q, D), of the N layers."""
        x, keys, states = torch.zeros_like(queries), memory.places + memory.positions, []
        for layer in self.layers:
            x = layer(x, queries, keys, memory)
            states.append(x)
        return self.norm(torch.stack(states))


class Transformer(nn.Module):
    """Text encoder, joint encoder and decoder.

    Args:
        text_encoder: RoBERTa.
        width: Of everything but the text encoder.
        heads: Of each attention.
        encoder_layers: Of the joint encoder.
        decoder_layers: Of the decoder.
        ffn: Width inside the feed-forward parts.
        dropout: In training.
        summary: Whether a learnt vector goes before the picture, to gather what there is in it.
    """

    def __init__(
        self,
        text_encoder: PooledTextEncoder,
        width: int = 256,
        heads: int = 8,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        ffn: int = 2048,
        dropout: float = 0.1,
        summary: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(encoder_layers, width, heads, ffn, dropout)
        self.decoder = Decoder(decoder_layers, width, heads, ffn, dropout)
        self.CLS = nn.Embedding(1, width) if summary else None
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.text_encoder = text_encoder
        self.resizer = FeatureResizer(text_encoder.config.hidden, width)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> TextFeatures:
        """(P, T) ids and mask, 1 = token."""
        hidden = self.text_encoder(input_ids, attention_mask)
        pooled = None if self.CLS is None else self.text_encoder.pool(hidden)
        return TextFeatures(self.resizer(hidden), attention_mask != 1, pooled)

    def encode(self, cells: Tensor, padding: Tensor, positions: Tensor, text: TextFeatures) -> Memory:
        """Let pictures and text see each other.

        Args:
            cells: (B, D, H, W).
            padding: (B, H, W) bool, True = padding.
            positions: (B, D, H, W).
            text: Of one prompt for all pictures, or of B prompts.
        """
        batch, width = cells.shape[:2]
        tokens, text_padding = text.tokens.expand(batch, -1, -1), text.padding.expand(batch, -1)
        before = cells.new_zeros(batch, 0, width) if self.CLS is None else self.CLS.weight.expand(batch, 1, -1)
        inside, here = cells.flatten(2).transpose(1, 2), positions.flatten(2).transpose(1, 2)
        first = before.shape[1]
        x = torch.cat((before, inside, tokens), dim=1)
        padding = torch.cat((padding.new_zeros(batch, first), padding.flatten(1), text_padding), dim=1)
        positions = torch.cat((torch.zeros_like(before), here, torch.zeros_like(tokens)), dim=1)
        return Memory(self.encoder(x, padding, positions), padding, positions, slice(first, first + inside.shape[1]))
