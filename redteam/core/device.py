"""Device, precision and threads, resolved once and in this one place."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from redteam.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Device:
    """Where tensors live: `name` is a torch device string such as `cpu` or `cuda:0`."""

    name: str

    @property
    def kind(self) -> str:
        """`cpu`, `cuda` or `mps`."""
        return self.name.split(":")[0]

    def torch(self) -> torch.device:
        """The torch device."""
        import torch

        return torch.device(self.name)


def hush_libraries() -> None:
    """Silence a deprecation that torchvision triggers in torch on import; users can do nothing about it."""
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.script.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.script.*", category=DeprecationWarning)


def resolve(name: str = "auto") -> Device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` or `mps` into a device that exists here.

    Raises:
        ConfigError: the device is not one torch knows, or is not present on this machine.
    """
    import torch

    if name == "auto":
        return resolve("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"expected a device such as cpu, cuda, cuda:1 or mps; got '{name}'") from None
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        raise ConfigError(f"device '{name}' is not present here; use --device cpu, or auto to choose")
    if device.type == "cuda":
        _be_deterministic()
    return Device(name)


def _be_deterministic() -> None:
    """Same seed, same result on one GPU; float32 means float32. Costs some speed."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False


def available_cores() -> int:
    """Cores this process may use (affinity, not the machine's total, where the system tells)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(n: int | None = None) -> int:
    """Set torch's intra-op threads: `n`, else `REDTEAM_THREADS`, else 1. Returns the number set.

    One is the default on purpose. Beside any other busy process a second OpenMP thread spins:
    6.5 ms a step became 317 ms (measured). Cores are used by running cells in parallel instead.
    """
    import torch

    given = os.environ.get("REDTEAM_THREADS", "1")
    if n is None and not given.isdecimal():
        raise ConfigError(f"REDTEAM_THREADS: expected a whole number, got '{given}'")
    wanted = int(given) if n is None else n
    if wanted < 1:
        raise ConfigError(f"expected at least 1 thread, got {wanted}")
    torch.set_num_threads(wanted)
    return wanted
