"""What a machine is called."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def device(name: str) -> str:
    """The name of what computes on a device of torch, "cpu" or "cuda"."""
    return torch.cuda.get_device_name() if name.startswith("cuda") else processor()
