"""One DyHead block against the reference's, branch by branch: golden cases op_dyconv*."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskrcnn_benchmark.modeling.heads.dyhead import DyConv
from tests.golden.common import fill, golden_cases, load_case


@pytest.mark.parametrize("path", golden_cases("fiber", "op_dyconv*"))
def test_dyconv(path: Path) -> None:
    case, tensors = load_case(path)
    block = DyConv(channels=case["state_dict"]["offset.weight"][1])
    assert {name: list(value.shape) for name, value in block.state_dict().items()} == case["state_dict"]
    fill.fill_(block, case["seed"])
    with torch.no_grad():
        block.offset.weight.mul_(2)
    channels = block.offset.in_channels
    inputs = [
        torch.from_numpy(np.random.RandomState(50 + level + case["S"]).standard_normal((2, channels, *size))).float()
        for level, size in enumerate(case["sizes"])
    ]
    seen: dict[str, Tensor] = {}
    calls: Counter[int] = Counter()
    for branch, conv in enumerate(block.DyConv):
        conv.register_forward_hook(_recorder(branch, calls, seen))
    with torch.no_grad():
        outputs = block.eval()(inputs)
    seen |= {f"out{level}": output for level, output in enumerate(outputs)}
    assert seen.keys() == tensors.keys()
    for name, expected in tensors.items():
        torch.testing.assert_close(
            seen[name], expected, atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def _recorder(branch: int, calls: Counter[int], seen: dict[str, Tensor]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen[f"branch{branch}.call{calls[branch]}"] = output
        calls[branch] += 1

    return hook
