"""Convolutional networks made faster for inference: the same function, to rounding.

Batch norms go into the weights of their convolutions, channels lie innermost in memory, and on a CPU a convolution, the
sum with a shortcut and the rectifier become one operation of oneDNN, which reads and writes each map once.
"""

from __future__ import annotations

import logging
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional

from maskrcnn_benchmark.modeling.cam.winograd import WinogradConv, suits

logger = logging.getLogger(__name__)

RELUS: tuple[Any, ...] = (functional.relu, torch.relu, "relu", "relu_")
SUMS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
AGREE = 1e-3  # largest difference to the network as it was, in parts of its largest value


class FusedConv(nn.Module):
    """relu(conv(x)), or relu(conv(x) + other), or conv(x).

    Args:
        conv: Has weights and shape.
        into: Whether the sum may be written where ``other`` is.
        then: What is done to conv(x): "relu" or "none".
    """

    def __init__(self, conv: nn.Conv2d, into: bool = False, then: str = "relu"):
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach(), requires_grad=False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach(), requires_grad=False)
        self.shape = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.into, self.then = into, then

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        ops, conv = torch.ops.mkldnn, (self.weight, self.bias, *self.shape)
        if other is None:
            out: Tensor = ops._convolution_pointwise(x, *conv, self.then, [], None)
        elif self.into:
            out = ops._convolution_pointwise_.binary(other, x, *conv, "add", 1.0, "relu", [], None)
        else:
            out = ops._convolution_pointwise.binary(x, other, *conv, "add", 1.0, "relu", [], None)
        return out


@torch.inference_mode()
def for_inference(net: fx.GraphModule, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The network on a device, as fast as it can be made; what cannot be done there is left as it is.

    Args:
        net: On the CPU, in evaluation mode; (B, 3, H, W) float32 -> (B, C, h, w).
        device: Where it will run.
        dtype: Of weights and maps.
    """
    folded = fuse(net)
    assert isinstance(folded, fx.GraphModule)
    chosen = folded
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        pixels = torch.rand(2, 3, 64, 96)
        try:
            expected, fused = net(pixels), fuse_convolutions(folded, fewer_products=dtype == torch.float32)
            difference = (fused(pixels) - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
            if difference <= AGREE:
                chosen = fused
            else:
                logger.warning("fused convolutions differ by %.1e and are not used: slower", difference)
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            logger.info("convolutions are not fused here (%s): slower", str(error).split("\n")[0][:120])
    return chosen.to(device, dtype).to(memory_format=torch.channels_last)


def fuse_convolutions(net: fx.GraphModule, fewer_products: bool) -> fx.GraphModule:
    """A copy in which a convolution, a sum and a rectifier are one step where they follow each other.

    Args:
        net: Its batch norms are in the convolutions.
        fewer_products: Whether 3x3 convolutions of many channels become :class:`WinogradConv`, for float32 alone.
    """
    graph, parts = fx.Graph(), dict(net.named_modules())
    graph.output(graph.graph_copy(net.graph, {}))
    copy = fx.GraphModule(net, graph)
    place = {node: number for number, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        conv, other = _before_relu(node, parts)
        if conv is None:
            continue
        layer = parts[str(conv.target)]
        assert isinstance(layer, nn.Conv2d)
        last = other is not None and all(place.get(user, 0) < place[node] for user in other.users)
        part: nn.Module = FusedConv(layer, into=last and other is not None and _made_here(other, copy))
        if fewer_products and suits(layer):
            part = WinogradConv(layer)
        _replace(node, copy, part, (conv.args[0],) if other is None else (conv.args[0], other))
    for node in list(graph.nodes):  # PyTorch would do some of the others, on one thread, without oneDNN: slower
        if (plain := _plain_conv(node, parts)) is not None and node.users:
            _replace(node, copy, FusedConv(plain, then="none"), node.args)
    graph.eliminate_dead_code()
    copy.delete_all_unused_submodules()
    copy.recompile()
    return copy


def _replace(node: fx.Node, net: fx.GraphModule, part: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Another module at the place of a node."""
    name = f"fused_{node.name}"
    net.add_submodule(name, part)
    with net.graph.inserting_before(node):
        node.replace_all_uses_with(net.graph.call_module(name, inputs))
    net.graph.erase_node(node)


def _made_here(node: fx.Node, net: fx.GraphModule) -> bool:
    """Whether a node gives a map of its own, that is no part of another."""
    return node.op == "call_module" and isinstance(net.get_submodule(str(node.target)), (nn.Conv2d, FusedConv))


def _before_relu(node: fx.Node, parts: dict[str, nn.Module]) -> tuple[fx.Node | None, fx.Node | None]:
    """The convolution that ends in a rectifier, and what is added to it; (None, None) where it is something else."""
    is_relu = type(parts.get(str(node.target))) is nn.ReLU if node.op == "call_module" else node.target in RELUS
    if not is_relu:
        return None, None
    before = node.all_input_nodes[0]
    if _is_conv(before, parts):
        return before, None
    if before.target in SUMS and len(before.users) == 1 and len(before.all_input_nodes) == 2 == len(before.args):
        for conv, other in (before.all_input_nodes, before.all_input_nodes[::-1]):
            if _is_conv(conv, parts):
                return conv, other
    return None, None


def _is_conv(node: fx.Node, parts: dict[str, nn.Module]) -> bool:
    """Whether a node is a convolution with one use that oneDNN can do with more."""
    return _plain_conv(node, parts) is not None and len(node.users) == 1


def _plain_conv(node: fx.Node, parts: dict[str, nn.Module]) -> nn.Conv2d | None:
    layer = parts.get(str(node.target)) if node.op == "call_module" else None
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return layer
    return None
