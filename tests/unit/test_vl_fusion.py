"""GLIP's fusion of pictures and words, against its definition written out head by head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from maskrcnn_benchmark.modeling.heads.vl_fusion import BiAttention, BiAttentionBlock, VLFuse


def by_definition(attention: BiAttention, image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Queries, keys and values in full, one softmax along each side."""

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (attention.heads, -1)).transpose(1, 2)

    query, key = split(attention.v_proj(image)), split(attention.l_proj(text))
    scores = query @ key.mT / attention.head_dim**0.5
    to_text = scores.softmax(2).mT
    to_image = scores.masked_fill(mask[:, None, None] == 0, -1e9).softmax(3)
    image_side = (to_image @ split(attention.values_l_proj(text))).transpose(1, 2).flatten(2)
    text_side = (to_text @ split(attention.values_v_proj(image))).transpose(1, 2).flatten(2)
    return attention.out_v_proj(image_side), attention.out_l_proj(text_side)


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    mask = torch.ones(2, 7)
    mask[1, 4:] = 0
    return torch.randn(2, 30, 12, dtype=torch.double), torch.randn(2, 7, 20, dtype=torch.double), mask


@pytest.fixture
def attention() -> BiAttention:
    torch.manual_seed(1)
    attention = BiAttention(12, 20, embed_dim=32, heads=4).double().eval()
    for linear in attention.children():
        torch.nn.init.normal_(linear.bias)
    return attention


def test_attention_follows_its_definition(attention: BiAttention, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    torch.testing.assert_close(attention(*inputs), by_definition(attention, *inputs))


def test_gradients_follow_the_definition(attention: BiAttention, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    def gradients(outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum(x.square().sum() for x in outputs), list(attention.parameters()))

    torch.testing.assert_close(
        gradients(attention(*inputs)), gradients(by_definition(attention, *inputs)), atol=1e-10, rtol=1e-7
    )


def test_padding_changes_nothing(attention: BiAttention, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    image, text, _ = inputs
    longer = torch.cat([text, torch.randn_like(text)], dim=1)
    mask = torch.cat([torch.ones(2, 7), torch.zeros(2, 7)], dim=1)
    image_delta, text_delta = attention(image, text, torch.ones(2, 7))
    padded_image, padded_text = attention(image, longer, mask)
    torch.testing.assert_close(padded_image, image_delta)
    torch.testing.assert_close(padded_text[:, :7], text_delta)


def test_huge_scores_stay_finite(attention: BiAttention, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    image, text, mask = inputs
    assert all(x.isfinite().all() for x in attention.float()(1e6 * image.float(), 1e6 * text.float(), mask))


def test_sums_start_from_the_normalised_inputs(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """With closed gates the block returns LayerNorm of what came in, not what came in."""
    block = BiAttentionBlock(12, 20, layer_scale=0.0).double()
    image, text, mask = inputs
    out_image, out_text = block(image, text, mask)
    torch.testing.assert_close(out_image, F.layer_norm(image, (12,)))
    torch.testing.assert_close(out_text, F.layer_norm(text, (20,)))


def test_levels_keep_their_places() -> None:
    torch.manual_seed(0)
    levels = [torch.randn(2, 8, 4, 6), torch.randn(2, 8, 2, 3), torch.randn(2, 8, 1, 2)]
    fuse = VLFuse(8, 16, layer_scale=0.0).eval()
    fused, hidden = fuse(levels, torch.randn(2, 5, 16), torch.ones(2, 5))
    assert hidden.shape == (2, 5, 16)
    for level, out in zip(levels, fused, strict=True):
        torch.testing.assert_close(out, F.layer_norm(level.movedim(1, -1), (8,)).movedim(-1, 1))
