"""BERT and RoBERTa under the parameter names of their released checkpoints.

With ``TextConfig.image_dims`` some layers also look at image tokens, as the fused RoBERTa of FIBER does
("Coarse-to-Fine Vision-Language Pre-training with Fusion in the Backbone", https://github.com/microsoft/FIBER).
The layer also serves inside the head of GLIP (https://github.com/microsoft/GLIP), where values are held within +-50000.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_benchmark.errors import PromptError

CLAMP = 50000.0  # stays within half precision

KeyValue = tuple[Tensor, Tensor]  # each (B, heads, S, D / heads)


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a text encoder; the defaults are those of BERT-base."""

    kind: str = "bert"  # "bert": positions 0, 1, ...; "roberta": counted over real tokens, after the padding id
    vocab_size: int = 30522
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 3072
    max_positions: int = 512  # rows of the position table
    type_vocab: int = 2
    eps: float = 1e-12
    pad_id: int = 0
    dropout: float = 0.1
    image_dims: Mapping[int, int] = field(default_factory=dict)  # layer -> width of the image tokens it attends to

    def __post_init__(self) -> None:
        if self.kind not in ("bert", "roberta"):
            raise ValueError(f"kind must be 'bert' or 'roberta', got {self.kind!r}")
        if self.hidden % self.heads:
            raise ValueError(f"hidden width {self.hidden} is not a multiple of {self.heads} heads")

    @property
    def max_tokens(self) -> int:
        """The longest text that has a position for each token."""
        return self.max_positions - (self.pad_id + 1 if self.kind == "roberta" else 0)


_ROBERTA = {"kind": "roberta", "vocab_size": 50265, "max_positions": 514, "type_vocab": 1, "eps": 1e-5, "pad_id": 1}

# MODEL.LANGUAGE_BACKBONE.MODEL_TYPE -> sizes. In FIBER layers 6..9 read Swin's third stage and 10, 11 the fourth.
TEXT_MODELS: dict[str, TextConfig] = {
    "bert-base-uncased": TextConfig(),
    "roberta-base": TextConfig(**_ROBERTA),  # type: ignore[arg-type]
    "distilroberta-base": TextConfig(**_ROBERTA, layers=6),  # type: ignore[arg-type]
    "roberta-large": TextConfig(  # MODEL.LANGUAGE_BACKBONE.LANG_DIM 1024 goes with it
        **_ROBERTA,  # type: ignore[arg-type]
        hidden=1024,
        layers=24,
        heads=16,
        intermediate=4096,
    ),
    "roberta-fused-v2": TextConfig(
        **_ROBERTA,  # type: ignore[arg-type]
        image_dims={6: 512, 7: 512, 8: 512, 9: 512, 10: 1024, 11: 1024},
    ),
}


def additive_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(P, L) with 1 = token -> (P, 1, 1, L): 0 for tokens, the lowest number of ``dtype`` for padding."""
    return (1.0 - attention_mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention, before its output projection."""

    def __init__(self, hidden: int, heads: int, memory: int, dropout: float, clamp: bool = False) -> None:
        super().__init__()
        self.heads, self.dropout, self.clamp = heads, dropout, clamp
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(memory, hidden)
        self.value = nn.Linear(memory, hidden)

    def key_value(self, memory: Tensor) -> KeyValue:
        """(B, S, M) -> keys and values (B, heads, S, D / heads)."""
        return self._split(self.key(memory)), self._split(self.value(memory))

    def forward(self, hidden: Tensor, key_value: KeyValue, mask: Tensor | None = None) -> Tensor:
        """Queries (P, L, D) and keys of a batch of P or B, either of which may be 1 -> (max(P, B), L, D).

        ``mask`` is what ``additive_mask`` gives.
        """
        query, (key, value) = self._split(self.query(hidden)), key_value
        batch = max(len(query), len(key))
        query, key, value = (x.expand(batch, -1, -1, -1) for x in (query, key, value))
        dropout = self.dropout if self.training else 0.0
        if self.clamp:
            scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
            scores = scores.clamp(-CLAMP, CLAMP)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            out = F.dropout(weights, dropout) @ value
        else:
            out = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        return out.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(1, 2)


class ResidualOutput(nn.Module):
    """Projection, dropout and (unless ``norm`` is False) the LayerNorm that follows the residual sum."""

    def __init__(self, width: int, hidden: int, eps: float, dropout: float, norm: bool = True) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=eps) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def project(self, x: Tensor) -> Tensor:
        return self.dropout(self.dense(x))  # type: ignore[no-any-return]

    def add_norm(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(x + residual)  # type: ignore[no-any-return]


class AttentionBlock(nn.Module):
    """Attention and its output projection; ``memory`` is the width of what is attended to."""

    def __init__(self, config: TextConfig, memory: int, norm: bool = True, clamp: bool = False) -> None:
        super().__init__()
        self.self = MultiHeadAttention(config.hidden, config.heads, memory, config.dropout, clamp)
        self.output = ResidualOutput(config.hidden, config.hidden, config.eps, config.dropout, norm)

    def forward(self, hidden: Tensor, key_value: KeyValue, mask: Tensor | None = None) -> Tensor:
        """Projected attention, (.., L, D), without the residual."""
        return self.output.project(self.self(hidden, key_value, mask))


class Intermediate(nn.Module):
    """First half of the feed-forward part."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden, config.intermediate)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)  # type: ignore[no-any-return]


class BertLayer(nn.Module):
    """A post-LayerNorm transformer layer; with ``image_dim`` it also attends to image tokens.

    Args:
        config: sizes.
        image_dim: width of the image tokens, None for a plain layer.
        clamp: hold scores, feed-forward values and outputs within +-50000, as the layers in GLIP's head do.
    """

    def __init__(self, config: TextConfig, image_dim: int | None = None, clamp: bool = False) -> None:
        super().__init__()
        self.clamp = clamp
        self.attention = AttentionBlock(config, config.hidden, clamp=clamp)
        if image_dim is not None:
            self.crossattention_t2i = AttentionBlock(config, image_dim, norm=False)
            self.alpha_t2i = nn.Parameter(torch.zeros(1))
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config.intermediate, config.hidden, config.eps, config.dropout)

    def forward(self, hidden: Tensor, mask: Tensor, image: Tensor | None = None) -> Tensor:
        """Text (P, L, D), its additive mask (P, 1, 1, L) and image tokens (B, S, C) -> text (P or B, L, D)."""
        attended = self.attend_text(hidden, mask)
        return self.finish(hidden, attended, None if image is None else self.image_key_value(image))

    def attend_text(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The image-free half: projected self-attention (P, L, D), before the residual."""
        return self.attention(hidden, self.attention.self.key_value(hidden), mask)  # type: ignore[no-any-return]

    def image_key_value(self, image: Tensor) -> KeyValue:
        """The text-free half: keys and values of image tokens (B, S, C)."""
        return self.crossattention_t2i.self.key_value(image)

    def finish(self, hidden: Tensor, attended: Tensor, image: KeyValue | None = None) -> Tensor:
        """The rest of the layer; as released, the image is queried with ``attended``, before the residual is added."""
        if image is not None:
            attended = attended + self.alpha_t2i * self.crossattention_t2i(attended, image)
        hidden = self.attention.output.add_norm(attended, hidden)
        inner = self._limit(F.gelu(self._limit(self.intermediate(hidden))))
        return self._limit(self.output.add_norm(self._limit(self.output.project(inner)), hidden))

    def _limit(self, x: Tensor) -> Tensor:
        return x.clamp(-CLAMP, CLAMP) if self.clamp else x


class TextEmbeddings(nn.Module):
    """Word, position and type embeddings."""

    position_ids: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        roberta = config.kind == "roberta"
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden, padding_idx=config.pad_id)
        self.position_embeddings = nn.Embedding(
            config.max_positions, config.hidden, padding_idx=config.pad_id if roberta else None
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("position_ids", torch.arange(config.max_positions)[None])  # in every released checkpoint

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(P, L) ids -> (P, L, D)."""
        length = input_ids.shape[1]
        if length > self.config.max_tokens:
            raise PromptError(
                f"a prompt of {length} tokens, but the text encoder has positions for {self.config.max_tokens}: "
                f"set MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN to at most {self.config.max_tokens}"
            )
        if self.config.kind == "roberta":
            real = attention_mask.long()
            positions = real.cumsum(1) * real + self.config.pad_id
        else:
            positions = self.position_ids[:, :length]
        words = self.word_embeddings(input_ids) + self.token_type_embeddings.weight[0]
        return self.dropout(self.LayerNorm(words + self.position_embeddings(positions)))  # type: ignore[no-any-return]


class TextEncoder(nn.Module):
    """The whole encoder, to be run in one go or layer by layer. Masks are (P, L), 1 = token."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        layers = [BertLayer(config, config.image_dims.get(i)) for i in range(config.layers)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.apply(init_text_weights)

    @property
    def layers(self) -> list[BertLayer]:
        return cast("list[BertLayer]", list(self.encoder["layer"].children()))

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(P, L) ids -> (P, L, D)."""
        return self.embeddings(input_ids, attention_mask)  # type: ignore[no-any-return]

    def run(self, hidden: Tensor, attention_mask: Tensor, start: int, stop: int) -> Tensor:
        """Layers ``start`` to ``stop`` (exclusive) without an image: (P, L, D) -> (P, L, D)."""
        mask = additive_mask(attention_mask, hidden.dtype)
        for layer in self.layers[start:stop]:
            hidden = layer(hidden, mask)
        return hidden

    def layer(self, index: int, hidden: Tensor, attention_mask: Tensor, image: Tensor | None = None) -> Tensor:
        """One layer, with image tokens (B, S, C) when it has them: (P, L, D) -> (P or B, L, D)."""
        return self.layers[index](hidden, additive_mask(attention_mask, hidden.dtype), image)  # type: ignore[no-any-return]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(P, L) ids -> last hidden states (P, L, D)."""
        return self.run(self.embed(input_ids, attention_mask), attention_mask, 0, self.config.layers)


class PooledTextEncoder(TextEncoder):
    """With the layer that released checkpoints of RoBERTa and of MDETR hold beside the encoder."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        self.pooler = nn.ModuleDict({"dense": nn.Linear(config.hidden, config.hidden)})
        self.pooler.apply(init_text_weights)

    def pool(self, hidden: Tensor) -> Tensor:
        """Last hidden states (P, L, D) -> (P, D), one vector for each text."""
        return self.pooler["dense"](hidden[:, 0]).tanh()  # type: ignore[no-any-return]


def init_text_weights(module: nn.Module) -> None:
    """BERT's initialisation: normal 0.02, zero biases, zero rows for padding."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
