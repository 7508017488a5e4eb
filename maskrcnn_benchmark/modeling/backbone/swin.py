"""Swin Transformer (Liu et al., ICCV 2021, https://github.com/microsoft/Swin-Transformer), text where FIBER has it.

One class serves GLIP, FIBER and the Swin detectors of DECOLA. In FIBER ("Coarse-to-Fine Vision-Language Pre-training
with Fusion in the Backbone", https://github.com/microsoft/FIBER) the last blocks also attend to text. Parameter names
are those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from maskrcnn_benchmark.layers.drop_path import drop_path
from maskrcnn_benchmark.modeling.backbone.windows import window_layout

Size = tuple[int, int]  # (H, W) of a map of tokens
MLP_ROWS = 2048  # tokens that go through a feed-forward part at a time on a CPU: the wide layer stays in its caches


@dataclass(frozen=True)
class TextFusion:
    """Which blocks of a Swin attend to text, and how."""

    width: int  # of the text features
    first_blocks: Mapping[int, int]  # stage (from 0) -> the first of its blocks that attends; stages left out do not
    query_norm: bool  # a LayerNorm before the image's query, as in FUSION_VERSION v3


class TextMemory(NamedTuple):
    """What a block attends to: text of batch P, which is 1 or that of the pictures."""

    key: Tensor  # (P, heads, L, d)
    value: Tensor  # (P, heads, L, d)
    mask: Tensor  # (P, 1, 1, L), added to the scores


class Attended(NamedTuple):
    """The half of a block that no text has touched."""

    out: Tensor  # (B, HW, C), projected window attention
    query: Tensor | None  # (B, heads, HW, d) for text; None in blocks without it


class WindowAttention(nn.Module):
    """Attention inside windows, with a learnt bias for each relative position and optionally a look at text."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int, text: TextFusion | None = None) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", _relative_positions(window))
        if text is not None:
            self.qkv_text_i2t = nn.Linear(text.width, 2 * width)
            self.qkv_i2t = nn.Linear(width, width)
            self.proj_i2t = nn.Linear(width, width)
            self.alpha_i2t = nn.Parameter(torch.zeros(1))
            self.norm_i2t_i = nn.LayerNorm(width) if text.query_norm else nn.Identity()
        self.has_text = text is not None

    def forward(self, x: Tensor, size: Size, shift: int) -> Attended:
        """(B, HW, C), normalised. Padding is zero here, after the norm, and takes part as keys and values.

        All padding is one token: it goes through the projection once, and queries of padding are left out again before
        the output projection.
        """
        batch, count, width = x.shape
        layout = window_layout(batch, *size, self.window, shift, x.device)
        rows = x.flatten(0, 1)
        if layout.padded:
            rows = torch.cat([rows, rows.new_zeros(1, width)])
        qkv = self.qkv(rows).index_select(0, layout.gather)
        query, key, value = qkv.view(-1, self.window**2, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        bias, parts = self.position_bias(), []
        for group in layout.groups:
            part = slice(group.begin, group.end)
            mask = (bias if group.mask is None else bias + group.mask).to(query.dtype)
            parts.append(F.scaled_dot_product_attention(query[part], key[part], value[part], mask).transpose(1, 2))
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        out = self.proj(out.reshape(-1, width).index_select(0, layout.scatter)).view(batch, count, width)
        query = self._split(self.qkv_i2t(self.norm_i2t_i(out))) if self.has_text else None
        return Attended(out, query)

    def position_bias(self) -> Tensor:
        """(1, heads, N, N), added to the scores of a window's tokens."""
        bias = self.relative_position_bias_table.index_select(0, self.relative_position_index.flatten())
        return bias.t().reshape(1, self.heads, *self.relative_position_index.shape)

    def text_memory(self, text: Tensor, mask: Tensor) -> TextMemory:
        """Text (P, L, D) and its additive mask (P, 1, 1, L) as what :meth:`add_text` wants."""
        key, value = self.qkv_text_i2t(text).chunk(2, dim=-1)
        return TextMemory(self._split(key), self._split(value), mask)

    def add_text(self, attended: Attended, text: TextMemory) -> Tensor:
        """What the window attention gave plus, gated, what the text has to say to each token: (B or P, HW, C).

        Every token attends to the same text whatever its window, so windows do not matter here.
        """
        query, key, value = attended.query, text.key, text.value
        assert query is not None
        batch = max(len(query), len(key))
        query, key, value = (x.expand(batch, -1, -1, -1) for x in (query, key, value))
        found = F.scaled_dot_product_attention(query, key, value, text.mask.to(query.dtype))
        return attended.out + self.alpha_i2t * self.proj_i2t(found.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """The feed-forward part."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Attention in windows, then a feed-forward part; each behind a norm and beside a residual.

    Args:
        width: Channels C.
        heads: Attention heads.
        window: Side of a window, in tokens.
        shift: By how many tokens the windows are shifted.
        mlp_ratio: Width of the feed-forward part, in C.
        drop_path: Probability to leave a branch out, per picture, in training.
        text: Given, the block can attend to text.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        window: int,
        shift: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        text: TextFusion | None = None,
    ) -> None:
        super().__init__()
        self.shift, self.drop_path = shift, drop_path
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window, text)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, size: Size, text: TextMemory | None = None) -> Tensor:
        """Tokens (B, HW, C) -> (B, HW, C); (P, HW, C) where there are P texts for one picture."""
        return self.finish(x, self.attend(x, size), text)

    def attend(self, x: Tensor, size: Size) -> Attended:
        """The half that needs no text."""
        return self.attn(self.norm1(x), size, self.shift)

    def finish(self, x: Tensor, attended: Attended, text: TextMemory | None = None) -> Tensor:
        """The other half."""
        branch = attended.out if text is None else self.attn.add_text(attended, text)
        x = x + self._drop(branch)
        if torch.is_grad_enabled() or self.training or x.device.type != "cpu":
            return x + self._drop(self.mlp(self.norm2(x)))
        out = torch.empty_like(x)
        for rows, done in zip(*(t.flatten(0, 1).split(MLP_ROWS) for t in (x, out)), strict=True):
            torch.add(rows, self.mlp(self.norm2(rows)), out=done)
        return out

    def _drop(self, branch: Tensor) -> Tensor:
        return drop_path(branch, self.drop_path, self.training)


class PatchEmbed(nn.Module):
    """Patches of 4 x 4 pixels as tokens."""

    def __init__(self, width: int, patch: int = 4) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, width, patch, patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Size]:
        """(B, 3, H, W), padded to whole patches -> tokens (B, H/4 * W/4, C) and (H/4, W/4)."""
        right, bottom = (-side % self.patch for side in reversed(pixels.shape[-2:]))
        x = self.proj(F.pad(pixels, (0, right, 0, bottom)) if right or bottom else pixels)
        return self.norm(x.flatten(2).transpose(1, 2)), (x.shape[2], x.shape[3])


class PatchMerging(nn.Module):
    """Halves a map and doubles its channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor, size: Size) -> tuple[Tensor, Size]:
        """(B, HW, C) -> (B, H/2 * W/2, 2C) and (H/2, W/2), rounded up."""
        grid = x.unflatten(1, size)
        if size[0] % 2 or size[1] % 2:
            grid = F.pad(grid, (0, 0, 0, size[1] % 2, 0, size[0] % 2))
        batch, height, width, channels = grid.shape
        # Neighbours follow each other column by column: (0, 0), (1, 0), (0, 1), (1, 1).
        cells = grid.view(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 4, 2, 5)
        x = cells.reshape(batch, -1, 4 * channels)
        return self.reduction(self.norm(x)), (height // 2, width // 2)


class SwinStage(nn.Module):
    """Blocks of one width, every other one with shifted windows, and the way to the next stage."""

    blocks: list[SwinBlock]

    def __init__(self, blocks: Sequence[SwinBlock], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]  # for checkers, a list of what is in it
        if downsample is not None:
            self.downsample = downsample


class SwinTransformer(nn.Module):
    """The backbone; runs in one go, or stage by stage and block by block where others have a say in between.

    Args:
        embed_dim: Channels of the first stage; each next one has twice as many.
        depths: Blocks per stage.
        heads: Attention heads per stage.
        window: Side of a window, in tokens.
        mlp_ratio: Width of the feed-forward parts, in channels of their stage.
        drop_path: Of the last block; the first has 0, those between lie on a line.
        out_stages: Stages (from 0) whose output is normalised and returned.
        text: Which blocks attend to text.
        checkpointing: In training, compute the inside of blocks again in the backward pass instead of keeping it.
        freeze_at: See :meth:`freeze`.
    """

    layers: list[SwinStage]

    def __init__(
        self,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.2,
        out_stages: Sequence[int] = (1, 2, 3),
        text: TextFusion | None = None,
        checkpointing: bool = False,
        freeze_at: int = -1,
    ) -> None:
        super().__init__()
        self.out_stages, self.checkpointing, self.freeze_at = tuple(out_stages), checkpointing, freeze_at
        widths = [embed_dim * 2**i for i in range(len(depths))]
        self.channels = [widths[i] for i in self.out_stages]
        self.strides = [4 * 2**i for i in self.out_stages]
        self.patch_embed = PatchEmbed(embed_dim)
        rates = (drop_path * block / max(1, sum(depths) - 1) for block in range(sum(depths)))
        first_text = {} if text is None else text.first_blocks
        stages = []
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = [
                SwinBlock(
                    width,
                    heads[stage],
                    window,
                    shift=window // 2 if block % 2 else 0,
                    mlp_ratio=mlp_ratio,
                    drop_path=next(rates),
                    text=text if block >= first_text.get(stage, depth) else None,
                )
                for block in range(depth)
            ]
            stages.append(SwinStage(blocks, PatchMerging(width) if stage < len(depths) - 1 else None))
        self.layers = nn.ModuleList(stages)  # type: ignore[assignment]
        for stage in self.out_stages:
            self.add_module(f"norm{stage}", nn.LayerNorm(widths[stage]))
        self.freeze(freeze_at)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised pixels -> maps (B, C_i, H_i, W_i) of ``out_stages``."""
        x, size = self.patch_embed(pixels)
        maps = []
        for stage in range(self.out_stages[-1] + 1):
            x = self.run(stage, x, size)
            if stage in self.out_stages:
                maps.append(self.output(stage, x, size))
            if stage < self.out_stages[-1]:
                x, size = self.layers[stage].downsample(x, size)
        return maps

    def run(self, stage: int, x: Tensor, size: Size, start: int = 0, stop: int | None = None) -> Tensor:
        """Blocks ``start`` to ``stop`` (exclusive) of a stage, without text: (B, HW, C) -> (B, HW, C)."""
        for block in self.layers[stage].blocks[start:stop]:
            x = self.run_block(block, x, size)
        return x

    def run_block(self, block: SwinBlock, x: Tensor, size: Size, text: TextMemory | None = None) -> Tensor:
        """One block, with activation checkpointing where that is wanted."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, size, text, use_reentrant=False)
        return block(x, size, text)

    def output(self, stage: int, x: Tensor, size: Size) -> Tensor:
        """Tokens (B, HW, C) that leave a stage, normalised, as a map (B, C, H, W)."""
        return self.get_submodule(f"norm{stage}")(x).transpose(1, 2).unflatten(2, size)

    def freeze(self, freeze_at: int) -> None:
        """Keep parts as they are, also in later calls of :meth:`train`.

        Args:
            freeze_at: From 0 on the patch embedding; from 2 on also stages 0 to ``freeze_at - 2`` with their way out;
                -1 nothing. (As in ``MODEL.BACKBONE.FREEZE_CONV_BODY_AT``; 1 is the same as 0.)
        """
        self.freeze_at = freeze_at
        for part in self._frozen():
            part.requires_grad_(False)
            part.eval()

    def train(self, mode: bool = True) -> SwinTransformer:
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        return [self.patch_embed, *self.layers[: max(0, self.freeze_at - 1)]] if self.freeze_at >= 0 else []


def _relative_positions(window: int) -> Tensor:
    """(N, N) int64: row of the bias table for each pair of places in a window."""
    y, x = torch.arange(window**2) // window, torch.arange(window**2) % window
    rows, columns = (at[:, None] - at + window - 1 for at in (y, x))
    return rows * (2 * window - 1) + columns
