"""First values of a Deformable DETR that is trained from scratch, as in the original."""

from __future__ import annotations

from torch import nn

from maskrcnn_benchmark.modeling.transformer.deformable import DeformableAttention, Transformer

LATE = ("pix_trans", "prompt_trans")
"""What DECOLA adds to the transformer after it has been given its first values."""


def start_baseline(transformer: Transformer) -> None:
    """Xavier's values for all matrices; the deformable attentions have values of their own."""
    _xavier(transformer)


def start_decola(transformer: Transformer) -> None:
    """The same, but the decoder keeps torch's values, as do the layers that make queries from features and prompts."""
    _xavier(transformer, "decoder", *LATE)


def _xavier(transformer: Transformer, *but: str) -> None:
    """All matrices but the level embedding and those in some parts."""
    for name, parameter in transformer.named_parameters():
        if parameter.dim() > 1 and name != "level_embed" and name.split(".")[0] not in but:
            nn.init.xavier_uniform_(parameter)
    for module in transformer.modules():
        if isinstance(module, DeformableAttention):
            module.reset_parameters()
