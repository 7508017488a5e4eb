"""The text encoder against transformers and against its own split halves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from maskrcnn_benchmark.errors import PromptError
from maskrcnn_benchmark.text.encoder import TEXT_MODELS, BertLayer, TextConfig, TextEncoder, additive_mask

NARROW = {"vocab_size": 60, "hidden": 32, "layers": 3, "heads": 4, "intermediate": 48, "max_positions": 40}
BERT = replace(TEXT_MODELS["bert-base-uncased"], **NARROW)
ROBERTA = replace(TEXT_MODELS["roberta-base"], **NARROW)


def hugging_face(config: TextConfig) -> torch.nn.Module:
    """The transformers model of the same sizes."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.type_vocab,
        "layer_norm_eps": config.eps,
        "pad_token_id": config.pad_id,
    }
    if config.kind == "bert":
        return transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False).eval()
    return transformers.RobertaModel(transformers.RobertaConfig(**sizes), add_pooling_layer=False).eval()


def spread(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights large enough that every part shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def texts(config: TextConfig, lengths: tuple[int, ...] = (9, 5), width: int = 12) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(lengths), width), config.pad_id)
    mask = torch.zeros_like(ids)
    generator = torch.Generator().manual_seed(1)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(2, config.vocab_size, (length,), generator=generator)
        mask[row, :length] = 1
    return ids, mask


@pytest.mark.parametrize("config", [BERT, ROBERTA], ids=["bert", "roberta"])
@torch.no_grad()
def test_same_output_as_transformers(config: TextConfig) -> None:
    theirs, ours = spread(hugging_face(config)), TextEncoder(config).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert missing in ([], ["embeddings.position_ids"])
    assert not unexpected
    ids, mask = texts(config)
    torch.testing.assert_close(ours.embed(ids, mask), theirs.embeddings(ids), atol=2e-5, rtol=1e-5)
    expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours(ids, mask)[mask.bool()], expected[mask.bool()], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [BERT, ROBERTA], ids=["bert", "roberta"])
@torch.no_grad()
def test_padding_changes_no_real_token(config: TextConfig) -> None:
    model = spread(TextEncoder(config)).eval()
    ids, mask = texts(config, (7,), 7)
    padded_ids, padded_mask = texts(config, (7,), 30)
    torch.testing.assert_close(model(padded_ids, padded_mask)[:, :7], model(ids, mask), atol=2e-5, rtol=1e-5)


def test_roberta_counts_positions_over_real_tokens() -> None:
    model = TextEncoder(ROBERTA).eval()
    seen: list[Tensor] = []
    model.embeddings.position_embeddings.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    ids, mask = texts(ROBERTA, (4, 2), 5)
    model.embed(ids, mask)
    assert seen[0].tolist() == [[2, 3, 4, 5, 1], [2, 3, 1, 1, 1]]


@torch.no_grad()
def test_fused_layer_is_its_parts() -> None:
    """Queries are the projected self-attention, the gate scales, the sum is normalised once."""
    layer = spread(TextEncoder(replace(ROBERTA, image_dims={2: 20}))).eval().layers[2]
    hidden, image = torch.randn(2, 6, 32), torch.randn(2, 11, 20)
    _, mask = texts(ROBERTA, (6, 4), 6)
    mask = additive_mask(mask, hidden.dtype)
    attended = layer.attend_text(hidden, mask)
    cross = layer.crossattention_t2i
    key, value = (proj(image).view(2, 11, 4, 8).transpose(1, 2) for proj in (cross.self.key, cross.self.value))
    query = cross.self.query(attended).view(2, 6, 4, 8).transpose(1, 2)
    mixed = ((query @ key.mT) / 8**0.5).softmax(-1) @ value
    mixed = cross.output.dense(mixed.transpose(1, 2).reshape(2, 6, 32))
    summed = layer.attention.output.LayerNorm(attended + layer.alpha_t2i * mixed + hidden)
    inner = torch.nn.functional.gelu(layer.intermediate.dense(summed))
    expected = layer.output.LayerNorm(layer.output.dense(inner) + summed)
    torch.testing.assert_close(layer(hidden, mask, image), expected, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_one_text_for_many_images_and_many_texts_for_one_image() -> None:
    model = spread(TextEncoder(replace(ROBERTA, image_dims={2: 20}))).eval()
    hidden, images = torch.randn(3, 6, 32), torch.randn(3, 11, 20)
    mask = torch.ones(3, 6)
    for i in range(3):
        shared_text = model.layer(2, hidden[:1], mask[:1], images)
        shared_image = model.layer(2, hidden, mask, images[:1])
        torch.testing.assert_close(shared_text[i], model.layer(2, hidden[:1], mask[:1], images[i : i + 1])[0])
        torch.testing.assert_close(shared_image[i], model.layer(2, hidden[i : i + 1], mask[:1], images[:1])[0])


@torch.no_grad()
def test_a_new_gate_leaves_the_text_alone() -> None:
    model = TextEncoder(replace(ROBERTA, image_dims={1: 20})).eval()
    hidden, mask = torch.randn(1, 6, 32), torch.ones(1, 6)
    torch.testing.assert_close(model.layer(1, hidden, mask, torch.randn(1, 9, 20)), model.layer(1, hidden, mask))


@torch.no_grad()
def test_clamped_layer_is_the_plain_one_within_range_and_finite_beyond() -> None:
    layer = spread(BertLayer(BERT, clamp=True)).eval()
    plain = BertLayer(BERT).eval()
    plain.load_state_dict(layer.state_dict())
    hidden, mask = torch.randn(1, 6, 32), additive_mask(torch.ones(1, 6), torch.float32)
    torch.testing.assert_close(layer(hidden, mask), plain(hidden, mask), atol=2e-5, rtol=1e-5)
    layer.attention.self.query.weight.mul_(1e10)
    layer.attention.self.key.weight.mul_(1e10)
    layer.intermediate.dense.weight.mul_(1e20)
    assert layer(hidden, mask).isfinite().all()


def test_dropout_acts_in_training_only() -> None:
    model = spread(TextEncoder(BERT))
    ids, mask = texts(BERT)
    assert not torch.equal(model.train()(ids, mask), model(ids, mask))
    assert torch.equal(model.eval()(ids, mask), model(ids, mask))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kind": "gpt"}, "'bert' or 'roberta', got 'gpt'"), ({"heads": 5}, "32 is not a multiple of 5 heads")],
)
def test_impossible_sizes_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BERT, **change)  # type: ignore[arg-type]


def test_a_text_longer_than_the_position_table_is_refused() -> None:
    ids = torch.ones(1, 39, dtype=torch.int64)
    with pytest.raises(PromptError, match=r"39 tokens.* positions for 38: set .*MAX_QUERY_LEN to at most 38"):
        TextEncoder(ROBERTA)(ids, ids)
