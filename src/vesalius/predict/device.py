"""Which device and arithmetic: ``auto`` becomes something that exists."""

from __future__ import annotations

import torch

from vesalius.core.environment import available_cores
from vesalius.core.errors import UsageError


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is the first of cuda, mps, cpu that is there.

    Raises
    ------
    UsageError
        If the named device does not exist here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name!r} is not a device; choose auto, cpu, cuda, cuda:0 or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; choose cpu or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: this machine has no Apple GPU; choose cpu or auto")
    return device


def fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is in the hardware, not emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def use_cores(count: int | None = None) -> int:
    """Let torch compute on `count` cores (all that this process may use by default); returns the number."""
    count = count or available_cores()
    torch.set_num_threads(count)
    return count
