"""The DyHead block and the head of GLIP and FIBER, on small random features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_benchmark.modeling.backbone.language import LanguageFeatures
from maskrcnn_benchmark.modeling.heads.dyhead import DyConv
from maskrcnn_benchmark.modeling.heads.vldyhead import VLDyHead
from maskrcnn_benchmark.text.encoder import BertLayer, TextConfig

CHANNELS, WIDTH, LENGTH = 32, 24, 6
SIZES = ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1))


def text_layer() -> nn.Module:
    return BertLayer(TextConfig(hidden=WIDTH, heads=2, intermediate=40), clamp=True)


LOSSES = ("loss_dot_product_token", "loss_cls")
HEADS = {
    "fiber": {},
    "glip": {"text_layer": text_layer},
    "glip_text_unfused": {"text_layer": text_layer, "fused_text": False},
}


@pytest.fixture(params=list(HEADS))
def head(request: pytest.FixtureRequest) -> VLDyHead:
    torch.manual_seed(0)
    head = VLDyHead(
        CHANNELS, num_convs=2, text_dim=WIDTH, num_classes=5, norm_groups=8, losses=LOSSES, **HEADS[request.param]
    )
    return head.double().eval()


def features(batch: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, CHANNELS, *size, dtype=torch.double) for size in SIZES]


def language(batch: int = 2) -> LanguageFeatures:
    torch.manual_seed(2)
    hidden = torch.randn(batch, LENGTH, WIDTH, dtype=torch.double)
    mask = torch.ones(batch, LENGTH, dtype=torch.int64)
    mask[:, -2:] = 0
    return LanguageFeatures(hidden, hidden * mask[..., None], mask)


def test_shapes(head: VLDyHead) -> None:
    outputs = head(features(), language())
    for level, (h, w) in enumerate(SIZES):
        assert outputs.box_deltas[level].shape == (2, 4, h, w)
        assert outputs.centerness[level].shape == (2, 1, h, w)
        assert outputs.token_logits[level].shape == (2, h * w, LENGTH)
    levels, _ = head.run_tower(features(), language())
    assert [x.shape for x in head.class_logits(levels)] == [(2, 5, *size) for size in SIZES]


def test_one_text_serves_all_pictures(head: VLDyHead) -> None:
    one = language(1)
    both = LanguageFeatures(*(x.expand(2, *x.shape[1:]) for x in (one.hidden, one.embedded, one.mask)))
    torch.testing.assert_close(head(features(), one).token_logits, head(features(), both).token_logits)


def test_pictures_do_not_see_each_other(head: VLDyHead) -> None:
    both = head(features(), language())
    text = language()
    for i in range(2):
        own = LanguageFeatures(text.hidden[i : i + 1], text.embedded[i : i + 1], text.mask[i : i + 1])
        alone = head([x[i : i + 1] for x in features()], own)
        for name in ("box_deltas", "centerness", "token_logits"):
            for level, value in enumerate(getattr(alone, name)):
                torch.testing.assert_close(value[0], getattr(both, name)[level][i])


@pytest.mark.parametrize("tokens", [[3, 0], [2], []])
def test_only_the_tokens_asked_for(head: VLDyHead, tokens: list[int]) -> None:
    index = torch.tensor(tokens, dtype=torch.int64)
    full, some = head(features(), language()), head(features(), language(), index)
    torch.testing.assert_close(some.token_logits, [x[:, :, index] for x in full.token_logits])
    torch.testing.assert_close(some.box_deltas, full.box_deltas)


def test_padding_of_text_changes_nothing(head: VLDyHead) -> None:
    text = language()
    short = LanguageFeatures(text.hidden[:, :4], text.embedded[:, :4], text.mask[:, :4])
    padded, alone = head(features(), text), head(features(), short)
    torch.testing.assert_close([x[:, :, :4] for x in padded.token_logits], alone.token_logits)
    torch.testing.assert_close(padded.box_deltas, alone.box_deltas)


def test_a_fresh_head_finds_little(head: VLDyHead) -> None:
    """Words start at a probability of about one in a hundred, whatever the picture."""
    words, bias = head.project_words(torch.zeros(1, 1, WIDTH, dtype=torch.double))
    assert words.shape == (1, 1, CHANNELS)
    assert bias.sigmoid().item() == pytest.approx(0.01)


def test_every_parameter_learns(head: VLDyHead) -> None:
    head.train()
    outputs = head(features(), language())
    levels, _ = head.run_tower(features(), language())
    parts = [*outputs.box_deltas, *outputs.centerness, *outputs.token_logits, *head.class_logits(levels)]
    torch.stack([x.square().sum() for x in parts]).sum().backward()
    idle = {name for name, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    if head.fused and not head.fused_text:  # what the last block makes of the text is read by nobody
        idle = {name for name in idle if "dyhead_tower.3.b_attn" not in name}
    assert not idle


def test_block_blends_neighbouring_levels() -> None:
    """A level depends on itself and its neighbours, and on nothing further away."""
    torch.manual_seed(0)
    block = DyConv(CHANNELS, norm_groups=8).eval()
    inputs = [x.float() for x in features(1)]
    before = block(inputs)
    inputs[0] = inputs[0] + torch.randn_like(inputs[0])
    changed = [not torch.equal(old, new) for old, new in zip(before, block(inputs), strict=True)]
    assert changed == [True, True, False, False, False]
