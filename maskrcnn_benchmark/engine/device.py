"""Which device a run uses. The only module that asks torch about accelerators."""

from __future__ import annotations

import torch

from maskrcnn_benchmark.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """``auto`` takes an accelerator when there is one, else the CPU; any other name must be usable.

    Raises:
        ConfigError: the name is no device, or this machine (or this build of torch) has no such device.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"MODEL.DEVICE {name!r} cannot be used ({reason}): try 'auto' or 'cpu'") from None
    return device
