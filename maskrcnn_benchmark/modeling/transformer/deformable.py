"""The transformer of Deformable DETR (Zhu et al., ICLR 2021, https://github.com/fundamentalvision/Deformable-DETR), in
two stages and with boxes refined from layer to layer, as DECOLA (https://github.com/janghyuncho/DECOLA) has it.

Names are the released ones. Boxes and points are shares of the padded picture's sides where cells are read, and of the
picture itself everywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_benchmark.layers.ops import ms_deform_attn
from maskrcnn_benchmark.layers.recompute import recomputed

Shapes = tuple[tuple[int, int], ...]  # (H, W) of each level

ROWS = 4096  # cells or queries that go through a layer at a time where nothing is learnt: they stay in a CPU's caches
POINTS = 4  # samples per level and head


@dataclass(frozen=True)
class Memory:
    """S cells of B pictures, level after level, row by row."""

    cells: Tensor  # (B, S, D)
    padding: Tensor  # (B, S) bool, True = padding
    valid: Tensor  # (B, L, 2) share of each level's width and height that is the picture's
    shapes: Shapes


@dataclass(frozen=True)
class Queries:
    """G groups of M queries; those of a group see each other."""

    content: Tensor  # (B, G, M, D)
    positions: Tensor  # (B, G, M, D)
    boxes: Tensor  # (B, G, M, 4) cx, cy, w, h


class DeformableAttention(nn.Module):
    """Each query reads a few points of each level, where it wants.

    Args:
        width: Of queries and cells.
        heads: Of the attention.
        levels: Of the memory.
    """

    def __init__(self, width: int, heads: int, levels: int) -> None:
        super().__init__()
        self.heads, self.levels = heads, levels
        self.sampling_offsets = nn.Linear(width, heads * levels * POINTS * 2)
        self.attention_weights = nn.Linear(width, heads * levels * POINTS)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The heads look in as many directions, their points one step farther each."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        step = torch.arange(1, POINTS + 1).view(POINTS, 1)
        points = (direction[:, None, None] * step).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(points.flatten())
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def values(self, cells: Tensor, padding: Tensor) -> Tensor:
        """What there is to read: (B, S, D), (B, S) -> (B, S, heads, D / heads), 0 where there is padding."""
        values = self.value_proj(cells).masked_fill(padding[..., None], 0.0)
        return values.unflatten(-1, (self.heads, -1))

    def forward(self, query: Tensor, references: Tensor, values: Tensor, shapes: Shapes) -> Tensor:
        """Read around points or inside boxes.

        Args:
            query: (B, Q, D).
            references: (B, Q, L, 2) points x, y, or (B, Q, L, 4) boxes cx, cy, w, h, of the padded levels.
            values: See :meth:`values`.
            shapes: Of the levels.

        Returns:
            (B, Q, D).
        """
        place = (self.heads, self.levels, POINTS)
        offsets = self.sampling_offsets(query).unflatten(-1, (*place, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(-1).unflatten(-1, place[1:])
        spatial = torch.tensor(shapes, device=query.device)
        centre = references[:, :, None, :, None, :2]
        if references.shape[-1] == 2:
            locations = centre + offsets / spatial.flip(-1)[:, None]
        else:
            locations = centre + offsets * (references[:, :, None, :, None, 2:] * (0.5 / POINTS))
        cells = spatial.prod(-1)
        return self.output_proj(ms_deform_attn(values, spatial, cells.cumsum(0) - cells, locations, weights))


class FeedForward(nn.Module):
    """The second half of both kinds of layers: what they have in common."""

    def __init__(self, width: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, ffn)
        self.linear2 = nn.Linear(ffn, width)
        self.dropout = dropout

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.training else x

    def feed(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D), not yet beside its residual."""
        inner = self.linear1(x)
        return self.drop(self.linear2(self.drop(F.relu(inner, inplace=not torch.is_grad_enabled()))))


class EncoderLayer(FeedForward):
    """Cells read each other."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float, levels: int) -> None:
        super().__init__(width, ffn, dropout)
        self.self_attn = DeformableAttention(width, heads, levels)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, memory: Memory, positions: Tensor, references: Tensor) -> Tensor:
        """Cells, their positions (B, S, D) and places (B, S, L, 2) -> (B, S, D)."""
        values = self.self_attn.values(memory.cells, memory.padding)

        def rest(x: Tensor, position: Tensor, reference: Tensor) -> Tensor:
            read = self.self_attn(x + position, reference, values, memory.shapes)
            x = self.norm1(x + self.drop(read))
            return self.norm2(x + self.feed(x))

        return _in_parts(rest, memory.cells, positions, references)


class GroupAttention(nn.Module):
    """Attention among the queries of each group; parameters as in ``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """(B, G, M, D), (B, G, M, D) -> (B, G, M, D)."""
        width = x.shape[-1]
        places, contents = (part.split((2 * width, width)) for part in (self.in_proj_weight, self.in_proj_bias))
        query, key = F.linear(x + positions, places[0], contents[0]).chunk(2, dim=-1)
        value = F.linear(x, places[1], contents[1])
        query, key, value = (
            part.flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)
        )
        found = F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(found.transpose(1, 2).reshape(x.shape))


class DecoderLayer(FeedForward):
    """Queries look at those of their group, then read the picture."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float, levels: int) -> None:
        super().__init__(width, ffn, dropout)
        self.cross_attn = DeformableAttention(width, heads, levels)
        self.norm1 = nn.LayerNorm(width)
        self.self_attn = GroupAttention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, queries: Queries, references: Tensor, values: Tensor, shapes: Shapes) -> Tensor:
        """What becomes of the contents.

        Args:
            queries: Whose boxes are not read here.
            references: (B, G * M, L, 4) their boxes, of the padded levels.
            values: What :class:`DeformableAttention` reads.
            shapes: Of the levels.

        Returns:
            (B, G, M, D).
        """
        x = queries.content
        x = self.norm2(x + self.drop(self.self_attn(x, queries.positions)))
        read = self.cross_attn((x + queries.positions).flatten(1, 2), references, values, shapes)
        x = self.norm1(x + self.drop(read.view(x.shape)))
        return self.norm3(x + self.feed(x))


class Layers(nn.Module):
    """Layers under the name that released files have for them."""

    layers: nn.ModuleList

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


@dataclass(frozen=True)
class Sizes:
    """Of a transformer."""

    width: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    ffn: int = 1024
    levels: int = 4
    dropout: float = 0.0


class Transformer(nn.Module):
    """Encoder, the features of candidates, queries made from them, and decoder.

    Args:
        sizes: See there.
        pixel_query: Queries know the feature of the cell they come from, besides its place.
        prompt_width: Given, queries know the embedding, of this width, of what they were made for.
        recompute: In training, compute the inside of layers again in the backward pass instead of keeping it.
    """

    def __init__(
        self, sizes: Sizes, pixel_query: bool = False, prompt_width: int | None = None, recompute: bool = False
    ) -> None:
        super().__init__()
        width = sizes.width
        shape = (width, sizes.heads, sizes.ffn, sizes.dropout, sizes.levels)
        self.recompute = recompute
        self.level_embed = nn.Parameter(torch.empty(sizes.levels, width).normal_())
        self.encoder = Layers([EncoderLayer(*shape) for _ in range(sizes.encoder_layers)])
        self.decoder = Layers([DecoderLayer(*shape) for _ in range(sizes.decoder_layers)])
        self.enc_output = nn.Linear(width, width)
        self.enc_output_norm = nn.LayerNorm(width)
        self.pos_trans = nn.Linear(2 * width, 2 * width)
        self.pos_trans_norm = nn.LayerNorm(2 * width)
        if pixel_query:
            self.pix_trans = nn.Linear(width, width)
            self.pix_trans_norm = nn.LayerNorm(width)
        if prompt_width is not None:
            self.prompt_trans = nn.Linear(prompt_width, width)
            self.prompt_trans_norm = nn.LayerNorm(width)
        self.pixel_query, self.prompt_query = pixel_query, prompt_width is not None

    def encode(self, maps: Sequence[Tensor], paddings: Sequence[Tensor], positions: Sequence[Tensor]) -> Memory:
        """Levels (B, D, H, W), padding (B, H, W) bool, and positions (B, D, H, W) -> memory."""
        shapes = tuple((x.shape[-2], x.shape[-1]) for x in maps)
        cells = _flat(maps)
        placed = _flat([x + level[:, None, None] for x, level in zip(positions, self.level_embed, strict=True)])
        padding = torch.cat([x.flatten(1) for x in paddings], dim=1)
        memory = Memory(cells, padding, valid_ratios(paddings, cells.dtype), shapes)
        references = encoder_references(memory)
        for layer in self.encoder.layers:
            memory = Memory(recomputed(layer, self.recompute)(memory, placed, references), *_rest(memory))
        return memory

    def candidates(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Features (B, S, D) of all cells, those that cannot be candidates from nothing, and boxes (B, S, 4) there.

        Boxes are logits of cx, cy, w, h; infinite where there can be no candidate.
        """
        boxes, usable = first_boxes(memory)
        cells = memory.cells.masked_fill(~usable[..., None], 0.0)
        return self.enc_output_norm(self.enc_output(cells)), boxes

    def queries(self, boxes: Tensor, features: Tensor, prompts: Tensor | None = None) -> Queries:
        """From candidates to queries; gradients go back no farther.

        Args:
            boxes: (B, G, M, 4) logits.
            features: (B, G, M, D) of the cells.
            prompts: (G, M, E), of what queries are made for; only where prompts are wanted.
        """
        boxes = boxes.detach().sigmoid()
        positions, content = self.pos_trans_norm(self.pos_trans(box_waves(boxes, features.shape[-1] // 2))).chunk(2, -1)
        if self.pixel_query:
            content = content + self.pix_trans_norm(self.pix_trans(features.detach()))
        if self.prompt_query:
            assert prompts is not None
            content = content + self.prompt_trans_norm(self.prompt_trans(prompts))
        return Queries(content, positions, boxes)

    def values(self, memory: Memory) -> list[Tensor]:
        """What each decoder layer reads of a memory."""
        layers = [layer for layer in self.decoder.layers if isinstance(layer, DecoderLayer)]
        return [layer.cross_attn.values(memory.cells, memory.padding) for layer in layers]

    def decode(
        self, queries: Queries, memory: Memory, values: Sequence[Tensor], heads: Iterable[nn.Module], look_twice: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Contents (B, G, M, D) after each layer, and boxes (B, G, M, 4).

        Args:
            queries: To begin with.
            memory: Of the pictures.
            values: See :meth:`values`.
            heads: For each layer, from contents to the change of the boxes' logits.
            look_twice: The loss of a layer's boxes also trains the head of the layer before ("look forward twice" in
                DINO, https://arxiv.org/abs/2203.03605).
        """
        scale = memory.valid.repeat(1, 1, 2)[:, None]
        base = queries.boxes
        for layer, head, value in zip(self.decoder.layers, heads, values, strict=True):
            references = queries.boxes.flatten(1, 2)[:, :, None] * scale
            content = recomputed(layer, self.recompute)(queries, references, value, memory.shapes)
            change = head(content)
            yield content, (change + inverse_sigmoid(base)).sigmoid()
            moved = (change + inverse_sigmoid(queries.boxes)).sigmoid()
            queries = Queries(content, queries.positions, moved.detach())
            base = moved if look_twice else queries.boxes


def valid_ratios(paddings: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """(B, H, W) bool per level -> (B, L, 2) shares of width and height that are the picture's."""
    across = [(~x[:, 0]).sum(1) / x.shape[2] for x in paddings]
    down = [(~x[:, :, 0]).sum(1) / x.shape[1] for x in paddings]
    return torch.stack((torch.stack(across, 1), torch.stack(down, 1)), dim=-1).to(dtype)


def encoder_references(memory: Memory) -> Tensor:
    """(B, S, L, 2): the centre of each cell, as a place in each of the padded levels."""
    places = []
    for level, (height, width) in enumerate(memory.shapes):
        size = memory.valid[:, level] * memory.valid.new_tensor([width, height])
        places.append(_centres(height, width, memory.valid) / size[:, None])
    return torch.cat(places, dim=1)[:, :, None] * memory.valid[:, None]


def first_boxes(memory: Memory) -> tuple[Tensor, Tensor]:
    """The box around each cell (B, S, 4), as logits, infinite where there is padding or it is too near to a border; and
    where it is not (B, S)."""
    boxes, begin = [], 0
    for level, (height, width) in enumerate(memory.shapes):
        padding = memory.padding[:, begin : begin + height * width].unflatten(1, (height, width))
        begin += height * width
        size = torch.stack(((~padding[:, 0]).sum(1), (~padding[:, :, 0]).sum(1)), dim=-1)
        centre = _centres(height, width, memory.valid) / size[:, None]
        boxes.append(torch.cat((centre, torch.full_like(centre, 0.05 * 2**level)), dim=-1))
    box = torch.cat(boxes, dim=1)
    usable = ((box > 0.01) & (box < 0.99)).all(-1) & ~memory.padding
    return (box / (1 - box)).log().masked_fill(~usable[..., None], torch.inf), usable


def box_waves(boxes: Tensor, width: int) -> Tensor:
    """(..., 4) shares -> (..., 4 * width) sines and cosines of each number in turn."""
    number = torch.arange(width, dtype=boxes.dtype, device=boxes.device)
    scale = 10000 ** (2 * number.div(2, rounding_mode="floor") / width)
    wave = boxes[..., None] * (2 * math.pi) / scale
    return torch.stack((wave[..., 0::2].sin(), wave[..., 1::2].cos()), dim=-1).flatten(-3)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logits of probabilities, which are taken to be ``eps`` away from 0 and 1 at least."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


def _centres(height: int, width: int, like: Tensor) -> Tensor:
    """(H * W, 2) x, y in cells."""
    y, x = (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5 for size in (height, width))
    return torch.stack((x.repeat(height), y.repeat_interleave(width)), dim=-1)


def _flat(maps: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)


def _rest(memory: Memory) -> tuple[Tensor, Tensor, Shapes]:
    return memory.padding, memory.valid, memory.shapes


def _in_parts(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """A function of rows, each of which is computed alone: (B, Q, ...) -> (B, Q, ...)."""
    if torch.is_grad_enabled() or tensors[0].device.type != "cpu" or tensors[0].shape[1] <= ROWS:
        return function(*tensors)
    return torch.cat([function(*part) for part in zip(*(x.split(ROWS, dim=1) for x in tensors), strict=True)], dim=1)
