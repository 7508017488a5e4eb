"""A running average of the weights (Polyak averaging), as GLIP and MDETR keep it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from maskrcnn_benchmark.errors import WeightsError


class Ema:
    """``average = decay * average + (1 - decay) * weight`` for parameters and buffers; whole numbers are copied.

    Args:
        model: Begins as its average. Not wrapped for several processes.
        decay: From 0 (no memory) to 1 (never changes).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of now."""
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - self.decay)
            else:
                self.average[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The model with its averaged weights; the raw ones come back at the end."""
        self._swap()
        try:
            yield self.model
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self.model.state_dict().items():
            kept = value.clone()
            value.copy_(self.average[name])
            self.average[name].copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Averages under the names of the model's state dict."""
        return self.average

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the averages of a checkpoint.

        Raises:
            WeightsError: they are of another model.
        """
        odd = sorted(self.average.keys() ^ state.keys())
        if odd:
            raise WeightsError(f"averaged weights (model_ema) of another model: {odd[0]} is not in both")
        for name, value in state.items():
            self.average[name].copy_(value)
