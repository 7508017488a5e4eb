"""What a classifier computes before and after its average pooling, found in its graph.

A class activation map needs a network that ends with: feature map, global average, one linear layer
(https://arxiv.org/abs/1512.04150). Most convolutional classifiers do, each under other names.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from maskrcnn_benchmark.errors import ConfigError

SAME: tuple[Any, ...] = (nn.Flatten, nn.Dropout, nn.Identity)
"""Modules that change no number of a vector in evaluation."""
SAME_CALLS: tuple[Any, ...] = (
    torch.flatten,
    functional.dropout,
    operator.getitem,
    "flatten",
    "view",
    "reshape",
    "squeeze",
)
POOLS: tuple[Any, ...] = (nn.AdaptiveAvgPool2d,)
POOL_CALLS: tuple[Any, ...] = (functional.adaptive_avg_pool2d, torch.mean, "mean")


@dataclass(frozen=True)
class Split:
    """A classifier in two parts, with C channels and K classes."""

    features: fx.GraphModule  # (B, 3, H, W) -> (B, C, h, w)
    head: str  # name of the linear layer
    weight: Tensor  # (K, C)
    bias: Tensor | None  # (K,)


def split(net: nn.Module, name: str) -> Split:
    """Cut a classifier before its global average.

    Args:
        net: In evaluation mode.
        name: For messages.

    Raises:
        ConfigError: it does not end with feature map, global average and one linear layer.
    """
    try:
        graph = fx.symbolic_trace(net)
    except Exception as error:  # tracing runs the code of any network
        reason = str(error).strip().split("\n")[0][:120]
        raise ConfigError(f"classifier {name!r}: its graph cannot be followed ({reason}): use another one") from None
    parts = dict(graph.named_modules())
    end = next(node for node in graph.graph.nodes if node.op == "output")
    linear = _back(end.all_input_nodes[0], parts)
    layer = parts.get(str(linear.target)) if linear.op == "call_module" else None
    if not isinstance(layer, nn.Linear):
        raise _unfit(name, f"it ends with {_told(linear, parts)}")
    pool = _back(linear.all_input_nodes[0], parts)
    if not _is_pool(pool, parts):
        raise _unfit(name, f"before its last layer comes {_told(pool, parts)}")
    end.args = (pool.all_input_nodes[0],)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    bias = None if layer.bias is None else layer.bias.detach()
    return Split(graph, str(linear.target), layer.weight.detach(), bias)


def _back(node: fx.Node, parts: dict[str, nn.Module]) -> fx.Node:
    """The node, or what comes before it where it does nothing to the numbers."""
    while node.all_input_nodes and (
        isinstance(parts.get(str(node.target)), SAME) if node.op == "call_module" else node.target in SAME_CALLS
    ):
        node = node.all_input_nodes[0]
    return node


def _is_pool(node: fx.Node, parts: dict[str, nn.Module]) -> bool:
    """Whether a node averages over the whole map."""
    if node.op == "call_module":
        layer = parts[str(node.target)]
        return isinstance(layer, POOLS) and layer.output_size in (1, (1, 1))
    if node.target not in POOL_CALLS:
        return False
    where = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("output_size"))
    sides = tuple(where) if isinstance(where, (tuple, list)) else (where,)
    return sides in ((1,), (1, 1)) if node.target is functional.adaptive_avg_pool2d else sides in ((2, 3), (-2, -1))


def _told(node: fx.Node, parts: dict[str, nn.Module]) -> str:
    layer = parts.get(str(node.target)) if node.op == "call_module" else None
    return type(layer).__name__ if layer is not None else str(getattr(node.target, "__name__", node.target))


def _unfit(name: str, found: str) -> ConfigError:
    return ConfigError(
        f"classifier {name!r}: {found}; maps need a network that ends with a feature map, its global average and one "
        "linear layer, such as resnet101, densenet121, regnet_y_8gf or efficientnet_b0"
    )
