"""Parts of the head of GLIP and FIBER that exist only where a loss asks for them, under their released names."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class WordGuesser(nn.Module):
    """BERT's head for masked language modelling (https://arxiv.org/abs/1810.04805): which word was hidden here.

    Args:
        width: Of the text features.
        vocab_size: Words to choose from.
        eps: Of the LayerNorm; the text encoder's.
    """

    def __init__(self, width: int, vocab_size: int, eps: float = 1e-12):
        super().__init__()
        self.transform = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=eps)})
        self.decoder = nn.Linear(width, vocab_size)
        nn.init.zeros_(self.decoder.bias)
        self.bias = self.decoder.bias  # checkpoints hold it under both names

    def forward(self, text: Tensor) -> Tensor:
        """(..., D) -> (..., V) logits."""
        inner = F.gelu(self.transform["dense"](text))
        return self.decoder(self.transform["LayerNorm"](inner))


class FeatureResizer(nn.Module):
    """Brings text features to another width, as MDETR does (https://arxiv.org/abs/2104.12763)."""

    def __init__(self, width: int, out_width: int, dropout: float = 0.1):
        super().__init__()
        self.fc = nn.Linear(width, out_width)
        self.layer_norm = nn.LayerNorm(out_width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Tensor) -> Tensor:
        """(..., D) -> (..., out_width)."""
        return self.dropout(self.layer_norm(self.fc(text)))
