"""The text half of CLIP under the parameter names of its released files (https://github.com/openai/CLIP, OpenCLIP).

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_benchmark.text.clip_tokenizer import ClipTokenizer

HEAD = 64  # width of an attention head in every released model
BATCH = 64  # texts at a time


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}
"""quick_gelu: OpenAI's weights; gelu: most others of OpenCLIP. Files do not say which they need."""


@dataclass(frozen=True)
class ClipTextConfig:
    """Sizes; the defaults are those of ViT-B/32."""

    vocab_size: int = 49408
    context: int = 77
    width: int = 512
    layers: int = 12
    out: int = 512
    activation: str = "quick_gelu"  # one of ACTIVATIONS

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], activation: str = "quick_gelu") -> ClipTextConfig:
        """From the shapes of a state dict."""
        vocab_size, width = state["token_embedding.weight"].shape
        layers = {name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")}
        context, out = len(state["positional_embedding"]), state["text_projection"].shape[1]
        return cls(vocab_size, context, width, len(layers), out, activation)


class Norm(nn.LayerNorm):
    """LayerNorm in float32, whatever the input is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class CausalAttention(nn.Module):
    """Each token sees itself and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = F.linear(x, self.in_proj_weight, self.in_proj_bias).view(batch, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return cast(Tensor, self.out_proj(seen.transpose(1, 2).reshape(batch, length, width)))


class FeedForward(nn.Module):
    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.c_proj(self.activation(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.attn = CausalAttention(config.width, max(1, config.width // HEAD))
        self.ln_1, self.ln_2 = Norm(config.width), Norm(config.width)
        self.mlp = FeedForward(config.width, config.activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return cast(Tensor, x + self.mlp(self.ln_2(x)))


class Blocks(nn.Module):
    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(config) for _ in range(config.layers))


class ClipText(nn.Module):
    """Texts to embeddings."""

    def __init__(self, config: ClipTextConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ClipTextConfig()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(config.context, config.width))
        self.transformer = Blocks(config)
        self.ln_final = Norm(config.width)
        self.text_projection = nn.Parameter(config.width**-0.5 * torch.randn(config.width, config.out))

    def forward(self, ids: Tensor) -> Tensor:
        """(P, L) int64 tokens -> (P, out), of any length: the state at the end token, which has the largest id."""
        end = ids.argmax(1)
        length = int(end.max()) + 1  # what comes after the end is seen by nobody
        x = self.token_embedding(ids[:, :length]) + self.positional_embedding[:length]
        for block in self.transformer.resblocks:
            x = block(x)
        x = self.ln_final(x)
        return cast(Tensor, x[torch.arange(len(x), device=x.device), end] @ self.text_projection)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], tokenizer: ClipTokenizer) -> Tensor:
        """(P, out) float32 on the CPU, not normalised.

        Raises:
            PromptError: a text has more tokens than there are positions.
        """
        ids = tokenizer.encode(texts, self.config.context)
        parts = [self(part.to(self.text_projection.device)).float().cpu() for part in torch.split(ids, BATCH)]
        return torch.cat([torch.zeros(0, self.config.out), *parts]).clone()

    def digest(self) -> str:
        """sha256 of what it computes with: equal for equal weights, from whatever file they come."""
        found = hashlib.sha256(self.config.activation.encode())
        for name, value in sorted(self.state_dict().items()):
            found.update(name.encode())
            found.update(value.float().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()
