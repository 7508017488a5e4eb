"""Swin against a slow computation of the same thing, and what must not change its output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskrcnn_benchmark.layers.drop_path import drop_path
from maskrcnn_benchmark.modeling.backbone import swin
from maskrcnn_benchmark.modeling.backbone.swin import PatchMerging, SwinBlock, SwinTransformer, WindowAttention

NARROW = {"embed_dim": 8, "depths": (2, 2, 4, 2), "heads": (1, 2, 2, 4), "window": 4}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def spread(module: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> torch.nn.Module:
    """Weights large enough that every part shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            whole = parameter.ndim == 1 and not name.endswith("bias")  # scales of norms, and gates
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + whole)
    return module.eval()


def slow_attention(attn: WindowAttention, x: Tensor, size: tuple[int, int], shift: int) -> Tensor:
    """Window attention of one picture (HW, C), query by query, from the definition."""
    window, heads = attn.window, attn.heads
    height, width = (-(-side // window) * window for side in size)
    padded = torch.zeros(height, width, x.shape[-1], dtype=x.dtype)
    padded[: size[0], : size[1]] = x.view(*size, -1)
    query, key, value = (t.unflatten(-1, (heads, -1)) for t in attn.qkv(padded).chunk(3, -1))
    out = torch.zeros(*size, x.shape[-1], dtype=x.dtype)
    places = [(y, x) for y in range(height) for x in range(width)]
    rolled = {(y, x): ((y - shift) % height, (x - shift) % width) for y, x in places}
    table = attn.relative_position_bias_table.view(2 * window - 1, 2 * window - 1, heads)
    for y, x0 in places:
        if y >= size[0] or x0 >= size[1]:
            continue
        mine = rolled[y, x0]
        others = [p for p in places if all(rolled[p][i] // window == mine[i] // window for i in (0, 1))]
        # The shift puts the first rows behind the last ones: those did not touch before.
        apart = torch.tensor([any((p[i] < shift) != ((y, x0)[i] < shift) for i in (0, 1)) for p in others])
        bias = torch.stack([table[tuple(mine[i] - rolled[p][i] + window - 1 for i in (0, 1))] for p in others])
        ys, xs = (torch.tensor(t) for t in zip(*others, strict=True))
        scores = (query[y, x0] * key[ys, xs]).sum(-1) / key.shape[-1] ** 0.5 + bias - 100 * apart[:, None]
        out[y, x0] = (scores.softmax(0)[..., None] * value[ys, xs]).sum(0).flatten()
    return attn.proj(out.flatten(0, 1))


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(8, 8), (8, 12), (5, 9), (6, 7), (4, 4), (3, 2), (1, 5)], ids=str)
@torch.no_grad()
def test_attention_is_what_it_is_defined_to_be(size: tuple[int, int], shift: int) -> None:
    attn = spread(WindowAttention(8, 2, 4)).double()
    x = torch.randn(2, size[0] * size[1], 8, dtype=torch.float64)
    expected = torch.stack([slow_attention(attn, row, size, shift) for row in x])
    torch.testing.assert_close(attn(x, size, shift).out, expected)


def test_relative_positions_as_released() -> None:
    index = WindowAttention(8, 2, 3).relative_position_index
    assert index.dtype == torch.int64
    assert index[0].tolist() == [12, 11, 10, 7, 6, 5, 2, 1, 0]  # (dy + 2) * 5 + dx + 2
    assert index.diagonal().eq(12).all()


@torch.no_grad()
def test_merging_puts_rows_before_columns() -> None:
    merge = PatchMerging(1)
    merge.norm, merge.reduction = torch.nn.Identity(), torch.nn.Identity()
    x, size = merge(torch.arange(9.0).view(1, 9, 1), (3, 3))
    assert size == (2, 2)
    assert x[0].tolist() == [[0, 3, 1, 4], [2, 5, 0, 0], [6, 0, 7, 0], [8, 0, 0, 0]]


@torch.no_grad()
def test_maps_of_any_picture() -> None:
    model = spread(SwinTransformer(**NARROW, out_stages=(0, 1, 2, 3)))
    maps = model(torch.randn(2, 3, 45, 70))
    assert [tuple(x.shape) for x in maps] == [(2, 8, 12, 18), (2, 16, 6, 9), (2, 32, 3, 5), (2, 64, 2, 3)]
    assert (model.channels, model.strides) == ([8, 16, 32, 64], [4, 8, 16, 32])


@torch.no_grad()
def test_picture_alone_and_in_a_batch() -> None:
    model, pixels = spread(SwinTransformer(**NARROW)).double(), torch.randn(3, 3, 64, 96, dtype=torch.float64)
    together = model(pixels)
    for index in range(3):
        for one, many in zip(model(pixels[index : index + 1]), together, strict=True):
            torch.testing.assert_close(one[0], many[index])


def test_evaluation_equals_training_without_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, evaluation feeds the wide layers in pieces; training does not."""
    monkeypatch.setattr(swin, "MLP_ROWS", 7)
    block, x = spread(SwinBlock(8, 2, 4, shift=2)).double(), torch.randn(2, 30, 8, dtype=torch.float64)
    with torch.inference_mode():
        pieces = block(x, (5, 6))
    torch.testing.assert_close(pieces, block(x, (5, 6)))


def test_training_after_inference_at_the_same_size() -> None:
    """What is kept about a size between calls can take part in a backward pass."""
    model, pixels = spread(SwinTransformer(**NARROW)), torch.randn(1, 3, 52, 76)
    with torch.inference_mode():
        model(pixels)
    sum(x.square().sum() for x in model(pixels)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = spread(SwinTransformer(**NARROW, drop_path=0.0, checkpointing=checkpointing)).train()
        sum(x.square().sum() for x in model(torch.ones(1, 3, 32, 32))).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_drop_path_leaves_out_branches_of_whole_pictures() -> None:
    block = spread(SwinBlock(8, 2, 4, shift=0, drop_path=0.5)).train()
    x = torch.randn(64, 16, 8)
    with torch.no_grad():
        kept = (block(x, (4, 4)) != x).flatten(1).any(1).float().mean()
    assert 0.5 < kept < 0.95  # both branches are left out in one picture of four
    assert SwinTransformer(**NARROW, drop_path=0.9).layers[3].blocks[1].drop_path == pytest.approx(0.9)
    assert SwinTransformer(**NARROW, drop_path=0.9).layers[0].blocks[0].drop_path == 0


@pytest.mark.parametrize(
    ("freeze_at", "frozen"),
    [
        (-1, ()),
        (0, ("patch_embed",)),
        (1, ("patch_embed",)),
        (2, ("patch_embed", "layers.0")),
        (4, ("patch_embed", "layers.0", "layers.1", "layers.2")),
    ],
)
def test_freezing(freeze_at: int, frozen: tuple[str, ...]) -> None:
    model = SwinTransformer(**NARROW, freeze_at=freeze_at)
    assert model.train() is model
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(f"{part}." for part in frozen)), name
    for name, module in model.named_modules():
        if name:
            assert module.training != f"{name}.".startswith(tuple(f"{part}." for part in frozen)), name


def test_drop_path_leaves_out_whole_pictures_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    out = drop_path(torch.ones(4000, 3, 2), 0.25, training=True)
    assert sorted(set(out.flatten(1).sum(1).tolist())) == pytest.approx([0.0, 8.0])
    assert out.mean() == pytest.approx(1.0, abs=0.05)
    assert drop_path(out, 0.25, training=False) is out
