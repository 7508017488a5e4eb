"""Activation checkpointing changes no number of a training, dropout included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_benchmark.layers import ops, self_test
from maskrcnn_benchmark.layers.recompute import recomputed
from maskrcnn_benchmark.modeling.backbone.language import LanguageBackbone
from maskrcnn_benchmark.modeling.heads.vldyhead import VLDyHead
from maskrcnn_benchmark.text.encoder import TextConfig, TextEncoder
from tests.unit.test_vldyhead import CHANNELS, HEADS, WIDTH, features, language


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def kept(model: nn.Module, checkpointing: bool) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss and gradients of a pass, and how many numbers were kept for the backward pass."""
    model.checkpointing = checkpointing
    model.zero_grad()
    numbers = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal numbers
        numbers += tensor.numel()
        return tensor

    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        if isinstance(model, VLDyHead):
            levels, text = model.run_tower(features(), language())
            loss = sum((x.square().sum() for x in levels), text.sum())
        else:
            ids = torch.arange(2, 14).reshape(2, 6)
            loss = model(ids, torch.ones_like(ids)).embedded.square().sum()
    before = numbers
    return loss.detach(), gradients(model, loss), before


def same(model: nn.Module) -> None:
    plain, saving = kept(model, False), kept(model, True)
    assert saving[2] < plain[2]
    assert torch.equal(plain[0], saving[0])
    assert plain[1].keys() == saving[1].keys()
    assert all(torch.equal(plain[1][name], saving[1][name]) for name in plain[1])


@pytest.mark.parametrize("backend", ops.available_backends("deform_conv2d"))
@pytest.mark.parametrize("kind", list(HEADS))
def test_tower(kind: str, backend: str) -> None:
    torch.manual_seed(0)
    head = VLDyHead(CHANNELS, num_convs=2, text_dim=WIDTH, num_classes=5, norm_groups=8, **HEADS[kind])
    with ops.use_backend(backend):
        same(head.double().train())


def test_language_backbone() -> None:
    torch.manual_seed(0)
    config = TextConfig(hidden=WIDTH, heads=2, intermediate=40, layers=2, vocab_size=50)
    same(LanguageBackbone(TextEncoder(config)).train())


class Named(nn.Module):
    """Notes which backend it would use."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(ops.backend("deform_conv2d"))
        return x.exp().exp()


def test_backward_pass_uses_the_backends_of_the_forward_pass() -> None:
    module = Named()
    with ops.use_backend("torch"):
        out = recomputed(module, True)(torch.ones(2, requires_grad=True))
    with ops.use_backend(ops.available_backends("deform_conv2d")[0]):
        out.sum().backward()
    assert module.seen == ["torch", "torch"]


def refuse(tensor: Tensor) -> Tensor:
    raise AssertionError("a tensor of the self-test reached the network's hooks")


def test_backends_are_compared_apart_from_the_network_that_first_needs_them() -> None:
    functions, device = {"deform_conv2d": self_test.PURE["deform_conv2d"]}, torch.device("cpu")
    with torch.autograd.graph.saved_tensors_hooks(refuse, refuse):
        assert self_test.failures(functions, device) == []
    with torch.inference_mode():
        assert self_test.failures(functions, device) == []
