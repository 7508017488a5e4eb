"""The fused backbone and its split, the pyramid, GLIP's text backbone, and the way from a config to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.backbone.build import build_backbone, build_fused, build_language
from maskrcnn_benchmark.modeling.backbone.fpn import FPN, drop_block
from maskrcnn_benchmark.modeling.backbone.fused import FusedBackbone, FusedImage, FusedText, SwinFpn
from maskrcnn_benchmark.modeling.backbone.language import LanguageBackbone, LanguageFeatures
from maskrcnn_benchmark.modeling.backbone.swin import SwinTransformer, TextFusion
from maskrcnn_benchmark.text.encoder import TEXT_MODELS, TextEncoder, additive_mask
from tests.unit.test_swin import spread

TEXT = dataclasses.replace(
    TEXT_MODELS["roberta-fused-v2"],
    **{"vocab_size": 40, "hidden": 12, "layers": 5, "heads": 2, "intermediate": 16, "max_positions": 40},
    image_dims={1: 32, 2: 32, 3: 64, 4: 64},
)
IDS = torch.tensor([[0, 7, 8, 9, 2], [0, 5, 2, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pictures(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, dtype=torch.float64)


def narrow(query_norm: bool = False, tunable: bool = False) -> FusedBackbone:
    fusion = TextFusion(12, {2: 1, 3: 0}, query_norm)
    body = SwinTransformer(8, (2, 2, 3, 2), (1, 2, 2, 4), 4, text=fusion)
    return spread(FusedBackbone(SwinFpn(body, FPN(body.channels, 16)), TextEncoder(TEXT), tunable)).double()


def run(model: FusedBackbone, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[list[Tensor], LanguageFeatures]:
    return model.fuse(model.encode_image(pixels), model.encode_text(ids, mask))


def in_one_go(model: FusedBackbone, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
    """The same network without a split: pairs of whole blocks and whole layers."""
    body, encoder = model.backbone.body, model.language_backbone.body.model
    hidden = encoder.embed(ids, mask)
    if model.tunable_linear is not None:
        hidden = hidden + model.tunable_linear.weight[: ids.shape[1]]
    hidden, extended = encoder.run(hidden, mask, 0, 1), additive_mask(mask, hidden.dtype)
    x, size = body.patch_embed(pixels)
    maps, layers = [], iter(encoder.layers[1:])
    for stage in range(4):
        for block in body.layers[stage].blocks:
            if block.attn.has_text:
                memory = block.attn.text_memory(hidden, extended)
                x, hidden = block(x, size, memory), next(layers)(hidden, extended, x)
            else:
                x = block(x, size)
        maps.append(body.output(stage, x, size) if stage else x)
        if stage < 3:
            x, size = body.layers[stage].downsample(x, size)
    return model.backbone.fpn(maps[1:]), hidden


@pytest.mark.parametrize("query_norm", [False, True])
@pytest.mark.parametrize("tunable", [False, True])
@torch.no_grad()
def test_split_equals_unsplit(query_norm: bool, tunable: bool) -> None:
    model, pixels = narrow(query_norm, tunable), pictures(2, 64, 96)
    maps, language = run(model, pixels, IDS, MASK)
    expected_maps, hidden = in_one_go(model, pixels, IDS, MASK)
    torch.testing.assert_close(maps, expected_maps)
    torch.testing.assert_close(language.hidden, hidden)
    torch.testing.assert_close(language.embedded, hidden * MASK[..., None])
    assert torch.equal(language.mask, MASK)


@torch.no_grad()
def test_both_sides_matter() -> None:
    model, pixels = narrow(), pictures(1, 64, 64)
    maps, language = run(model, pixels, IDS[:1], MASK[:1])
    other_maps, _ = run(model, pixels, IDS[:1].flip(1), MASK[:1])
    _, other_language = run(model, -pixels, IDS[:1], MASK[:1])
    assert all((a - b).abs().max() > 0.05 for a, b in zip(maps, other_maps, strict=True))
    assert (language.hidden - other_language.hidden).abs().max() > 0.05


@torch.no_grad()
def test_text_at_its_length_equals_padded_text() -> None:
    model, pixels = narrow(), pictures(1, 64, 64)
    short_maps, short = run(model, pixels, IDS[1:, :3], MASK[1:, :3])
    maps, padded = run(
        model, pixels, *(torch.nn.functional.pad(x[1:], (0, 20), value=v) for x, v in ((IDS, 1), (MASK, 0)))
    )
    torch.testing.assert_close(short_maps, maps)
    torch.testing.assert_close(short.hidden, padded.hidden[:, :3])
    assert not padded.embedded[:, 3:].any()


@torch.no_grad()
def test_one_prompt_for_many_pictures_and_many_prompts_for_one() -> None:
    model, pixels = narrow(), pictures(2, 64, 96)
    image, text = model.encode_image(pixels), model.encode_text(IDS, MASK)
    shared, language = model.fuse(image, model.encode_text(IDS[1:], MASK[1:]))
    prompts, _ = model.fuse(model.encode_image(pixels[:1]), text)
    assert language.hidden.shape == (2, 5, 12)
    assert torch.equal(language.mask, MASK[1:].expand(2, -1))
    for picture in (0, 1):
        alone, words = run(model, pixels[picture : picture + 1], IDS[1:], MASK[1:])
        torch.testing.assert_close([x[picture : picture + 1] for x in shared], alone)
        torch.testing.assert_close(language.hidden[picture], words.hidden[0])
        alone, _ = run(model, pixels[:1], IDS[picture : picture + 1], MASK[picture : picture + 1])
        torch.testing.assert_close([x[picture : picture + 1] for x in prompts], alone)


@torch.no_grad()
def test_encoded_parts_can_be_used_again() -> None:
    model, pixels = narrow(), pictures(1, 64, 64)
    image: FusedImage = model.encode_image(pixels)
    text: FusedText = model.encode_text(IDS, MASK)
    first, _ = model.fuse(image, text)
    model.fuse(image, model.encode_text(IDS.flip(1), MASK))
    again, _ = model.fuse(image, text)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_every_parameter_learns() -> None:
    model = narrow(query_norm=True, tunable=True)
    maps, language = run(model.train(), pictures(1, 64, 64), IDS[:1], MASK[:1])
    (sum(x.square().sum() for x in maps) + language.embedded.square().sum()).backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_blocks_and_layers_must_pair() -> None:
    body = SwinTransformer(8, (2, 2, 3, 2), (1, 2, 2, 4), 4, text=TextFusion(12, {2: 2, 3: 0}, False))
    with pytest.raises(ValueError, match=r"\[1, 2\] blocks with text cannot pair with the text layers \[1, 2, 3, 4\]"):
        FusedBackbone(SwinFpn(body, FPN(body.channels, 16)), TextEncoder(TEXT))


@torch.no_grad()
def test_pyramid_by_hand() -> None:
    fpn = spread(FPN((2, 3), 4, first=3))
    fine, coarse = torch.randn(1, 2, 5, 7), torch.randn(1, 3, 3, 4)
    p4_inner = fpn.fpn_inner4(coarse)
    rows, columns = torch.arange(5) * 3 // 5, torch.arange(7) * 4 // 7  # nearest
    p3 = fpn.fpn_layer3(fpn.fpn_inner3(fine) + p4_inner[:, :, rows][..., columns])
    p4 = fpn.fpn_layer4(p4_inner)
    p5 = fpn.top_blocks.p6(p4)
    expected = [p3, p4, p5, fpn.top_blocks.p7(p5.relu())]
    torch.testing.assert_close(fpn([fine, coarse]), expected)
    assert [tuple(x.shape[-2:]) for x in expected] == [(5, 7), (3, 4), (2, 2), (1, 1)]


@torch.no_grad()
def test_drop_block_is_for_training_of_the_finer_maps() -> None:
    fpn = spread(FPN((2, 2), 4, drop_prob=0.5))
    maps = [torch.randn(1, 2, 8, 8), torch.randn(1, 2, 4, 4)]
    still, moved = fpn(maps), fpn.train()(maps)
    assert not torch.equal(still[0], moved[0])
    assert torch.equal(still[1], moved[1])


def test_drop_block_wipes_out_squares_and_keeps_the_sum() -> None:
    out = drop_block(torch.ones(4, 3, 40, 40), prob=0.3, size=3)
    gone = out == 0
    assert 0.15 < gone.float().mean() < 0.35
    assert torch.equal(gone.any(1), gone.all(1))  # the same places in all channels
    assert out.sum().item() == pytest.approx(out.numel(), rel=1e-4)
    inner = torch.nn.functional.max_pool2d(-torch.nn.functional.max_pool2d(-gone[:, :1].float(), 3, 1), 3, 1)
    assert torch.equal(inner, gone[:, :1, 2:-2, 2:-2].float())  # a union of 3 x 3 squares


@pytest.mark.parametrize("average", [1, 2])
@torch.no_grad()
def test_text_alone(average: int) -> None:
    config = dataclasses.replace(TEXT, image_dims={})
    backbone = spread(LanguageBackbone(TextEncoder(config), average))
    states = [backbone.body.model.embed(IDS, MASK)]
    for number in range(config.layers):
        states.append(backbone.body.model.run(states[-1], MASK, number, number + 1))
    features = backbone(IDS, MASK)
    torch.testing.assert_close(features.hidden, states[-1])
    mean = sum(states[-average:]) / average**2  # divided twice, as in GLIP
    torch.testing.assert_close(features.embedded, mean * MASK[..., None])


@torch.no_grad()
def test_ends_of_a_text_hidden_from_the_head() -> None:
    encoder = TextEncoder(dataclasses.replace(TEXT, image_dims={})).eval()
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    ids = torch.arange(4, 14).reshape(2, 5)
    seen, hidden = LanguageBackbone(encoder)(ids, mask), LanguageBackbone(encoder, hide_ends=True)(ids, mask)
    assert torch.equal(seen.mask, mask)
    assert hidden.mask.tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert torch.equal(hidden.hidden, seen.hidden)  # the encoder itself reads them
    assert torch.equal(hidden.embedded, seen.embedded)
    cfg = load_cfg(GLIP, opts=["MODEL.LANGUAGE_BACKBONE.MASK_SPECIAL", "True"])
    with torch.device("meta"):
        assert build_language(cfg).hide_ends


FIBER, GLIP = "configs/demo/fiber_narrow.yaml", "configs/pretrain/glip_Swin_T_O365_GoldG.yaml"


@pytest.mark.parametrize(
    ("build", "config", "key", "value", "message"),
    [
        (build_fused, FIBER, "MODEL.SWINT.DEPTHS", "(2, 2, 4, 2)", "needs more than 4 blocks in its third stage"),
        (build_language, GLIP, "MODEL.LANGUAGE_BACKBONE.MODEL_TYPE", "gpt", "'gpt' .*is not known: choose from bert"),
        (build_backbone, GLIP, "MODEL.BACKBONE.CONV_BODY", "VGG", "'VGG'.*Choices: .*SWINT-FPN-RETINANET"),
        (build_fused, FIBER, "MODEL.BACKBONE.CONV_BODY", "VGG", "'VGG'.*cannot be fused.*SWINT-FPN-RETINANET"),
    ],
)
def test_wrong_config(build: Callable[..., object], config: str, key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        build(load_cfg(config, opts=[key, value]))
    assert str(error.value).startswith(f"{key} ")
    assert "command line" in str(error.value)
    assert "\n" not in str(error.value)
