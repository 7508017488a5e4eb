"""What ``mrb doctor`` prints: versions, devices, and which implementation of each operator runs."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from prettytable import PrettyTable

from maskrcnn_benchmark import __version__
from maskrcnn_benchmark.engine.device import pick_device
from maskrcnn_benchmark.layers import backends
from maskrcnn_benchmark.layers.self_test import failures


def report() -> tuple[str, bool]:
    """The text, and whether every implementation that is in use passes the self-test."""
    devices = list(dict.fromkeys([torch.device("cpu"), pick_device("auto")]))
    lines = [
        f"maskrcnn_benchmark {__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {_version('torchvision')}",
        f"devices: {', '.join(_describe(device) for device in devices)}",
        str(_table(devices)),
    ]
    sound = True
    for device in devices:
        names = {name for op in backends.operators() for name in backends.available_backends(op, device)}
        for name in sorted(names):
            failed = failures(backends.implementations(name, device), device)
            sound = sound and not failed
            result = f"DIFFERS in {', '.join(failed)}" if failed else "passes"
            lines.append(f"self-test of {name} on {device.type}: {result}")
    lines += [f"{name} is not used: {why}" for name, why in backends.left_out.items()]
    return "\n".join(lines), sound


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _describe(device: torch.device) -> str:
    if device.type == "cpu":
        return f"cpu with {torch.get_num_threads()} thread(s)"
    return f"{torch.accelerator.device_count()} x {device.type}"


def _table(devices: list[torch.device]) -> PrettyTable:
    """Backends of each operator in the order in which they are preferred."""
    table = PrettyTable(["operator", *(f"on {device.type}" for device in devices)])
    table.align = "l"
    for op in backends.operators():
        table.add_row([op, *(", ".join(backends.available_backends(op, device)) for device in devices)])
    return table
