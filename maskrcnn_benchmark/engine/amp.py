"""Mixed precision: which parts of a training step compute in which type.

What the config leaves open is decided here. With ``SOLVER.USE_AMP`` and ``SOLVER.AMP_DTYPE auto`` an accelerator that
has bf16 uses it, any other uses fp16 with a scaled loss. A CPU computes in fp32 unless bf16 is asked for by name: most
CPUs are slower with it, and results would differ between machines. Losses are for the criterion to keep in fp32.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import ConfigError

logger = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The type of the costly operations; None: fp32 for all."""

    device: torch.device
    dtype: torch.dtype | None = None

    def autocast(self) -> AbstractContextManager[object]:
        """Around a forward pass."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales losses, so that small gradients survive fp16; does nothing with other types."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def pick_precision(cfg: Cfg, device: torch.device) -> Precision:
    """What ``SOLVER.USE_AMP`` and ``SOLVER.AMP_DTYPE`` mean on a device.

    Raises:
        ConfigError: fp16 on a CPU, or bf16 on a device without it.
    """
    enabled, name = cfg.SOLVER.USE_AMP, cfg.SOLVER.AMP_DTYPE
    if not enabled:
        return Precision(device)
    told = f"SOLVER.AMP_DTYPE {name!r} ({cfg.source('SOLVER.AMP_DTYPE')})"
    if device.type == "cpu":
        if name == "fp16":
            raise ConfigError(f"{told} needs an accelerator, this run is on the CPU: use bf16 or SOLVER.USE_AMP False")
        if name == "auto":
            logger.info("SOLVER.USE_AMP has no effect on a CPU, all is fp32 (SOLVER.AMP_DTYPE bf16 asks for bf16)")
            return Precision(device)
    elif not _has_bf16(device):
        if name == "bf16":
            raise ConfigError(f"{told}: this {device.type} device has no bf16, use fp16")
        name = "fp16"
    name = "bf16" if name == "auto" else name
    logger.info("mixed precision: %s", name)
    return Precision(device, DTYPES[name])


def _has_bf16(device: torch.device) -> bool:
    """Whether an accelerator computes in bf16 itself, rather than through fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.get_device_module(device).is_bf16_supported()) if device.type == "xpu" else False
