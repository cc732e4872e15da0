"""What reads a user's files: archives of torch, functions of `.py` files, and weights.

A file is known by its content, not by its suffix.
"""

from __future__ import annotations

import inspect
import json
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redteam.core.errors import ConfigError, nearest
from redteam.core.pyfile import beside, import_file, said

# What torch's readers raise for files that are damaged or not theirs.
UNREADABLE = (
    RuntimeError, ValueError, KeyError, IndexError, EOFError, AssertionError, AttributeError, TypeError, OSError,
    zipfile.BadZipFile, struct.error, torch.serialization.pickle.UnpicklingError,  # type: ignore[attr-defined]
)  # fmt: skip


class Exported(nn.Module):
    """A program of `torch.export`: it stays as it was exported, and has no training mode to switch."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program
        self.training = False

    def train(self, mode: bool = True) -> Exported:
        """Nothing: exported modules refuse to be switched."""
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: what it was exported for."""
        out: torch.Tensor = self.program(x)
        return out


def reason(error: BaseException) -> str:
    """The telling line of an error: TorchScript puts it last, everyone else first."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if "TorchScript" in lines[0] else 0].strip().rstrip(".")[:300]


def kind_of(value: object) -> str:
    """What came, for a message: `the class Net`, or `an object of type dict`."""
    return (
        f"the class {value.__name__}"
        if isinstance(value, type)
        else f"an object of type {type(value).__name__}"
    )


def read_network(path: Path) -> nn.Module:
    """The network of a TorchScript archive or of an exported program, on the CPU.

    Raises:
        ConfigError: a pickle, weights alone, or nothing that torch reads.
    """
    if not zipfile.is_zipfile(path):
        raise ConfigError(
            f"{path} is neither a TorchScript archive nor a program of torch.export. {_advice(path)}"
        )
    with zipfile.ZipFile(path) as archive:
        members = [m.partition("/")[2] for m in archive.namelist()]
    if "archive_format" in members:
        return _exported(path, members)
    if any(m.startswith("code/") for m in members) and "data.pkl" in members:
        return _scripted(path)
    if "data.pkl" in members:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        what = (
            f"holds pickled objects ({', '.join(unsafe[:3])}), and reading a pickle runs code that its author chose"
            if unsafe
            else "holds weights alone, in a pickle, and not the network that they belong to"
        )
        raise ConfigError(f"{path} {what}; it was not loaded. {_advice(path)}")
    raise ConfigError(f"{path} is an archive, but none of torch. {_advice(path)}")


def _advice(path: Path) -> str:
    return (
        "Give FILE.py:FUNCTION with a function that builds the network and loads its weights, a program saved by "
        f"torch.export.save, a TorchScript archive, or torchvision:NAME@{path} for weights of torchvision"
    )


def _scripted(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.load.*deprecated")
        try:
            network: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        except UNREADABLE as error:
            raise ConfigError(f"{path}: torch.jit.load failed: {reason(error)}") from None
    return network


def _exported(path: Path, members: list[str]) -> nn.Module:
    if any(m.startswith("data/aotinductor/") for m in members):
        raise ConfigError(f"{path} is compiled code, which has no gradients; save it with torch.export.save")
    try:
        if parts := _pickled(path):
            raise ConfigError(
                f"{path} has pickled parts ({', '.join(parts[:3])}), and reading a pickle runs code that its author "
                "chose; it was not loaded. Export the network on plain tensors, or give FILE.py:FUNCTION"
            )
        with path.open("rb") as f:
            return Exported(torch.export.load(f).module())
    except UNREADABLE as error:
        raise ConfigError(f"{path}: torch.export.load failed: {reason(error)}") from None


def _pickled(path: Path) -> list[str]:
    """Members that torch.export.load would unpickle without restraint (read in torch 2.15's code)."""
    found = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            inner = member.partition("/")[2]
            if inner.startswith("data/") and inner.endswith("_config.json"):
                config = json.loads(archive.read(member))["config"]
                found += [key for key, entry in config.items() if entry.get("use_pickle")]
            elif inner.startswith("data/") and inner.endswith(".pt"):
                with archive.open(member) as f:
                    found += torch.serialization.get_unsafe_globals_in_checkpoint(f)  # type: ignore[arg-type]
    return found


def call_function(path: Path, function: str) -> nn.Module:
    """The network that a function of the user's own file returns; the file may import its neighbours.

    The file is run afresh under a private name. What the function raises itself is not caught.

    Raises:
        ConfigError: it cannot be imported, has no such function, the function wants arguments, or gives no module.
    """
    module = import_file(path)
    try:
        with beside(path):
            network = _checked_function(module, path, function)()
    except ImportError as error:
        raise ConfigError(f"{path} cannot be imported: {said(error, path)}") from None
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"{path}: {function}() returned {kind_of(network)}; expected a torch.nn.Module that takes (N, C, H, W) in "
            "[0, 1] and gives (N, K) logits"
        )
    return network


def _checked_function(module: object, path: Path, function: str) -> Any:
    known = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
    if function not in vars(module):
        raise ConfigError(f"{path} has no function '{function}'. {nearest(function, known)}")
    found = vars(module)[function]
    if isinstance(found, nn.Module) or not callable(found):
        raise ConfigError(
            f"{path}: {function} is {kind_of(found)}; expected a function without arguments that returns the network"
        )
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise ConfigError(
            f"{path}: {function} must be callable without arguments: {error}; write a function that gives them"
        ) from None
    return found


def load_weights(network: nn.Module, path: Path, name: str, classes: int) -> None:
    """Put the weights of a file into a network; every name and shape must fit.

    Raises:
        ConfigError: they do not fit, or cannot be read as tensors alone.
    """
    given, own = _tensors(path), network.state_dict()
    missing, extra = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or extra:
        parts = [
            f"{what} {len(keys)} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in (("lacks", missing), ("does not know", extra))
            if keys
        ]
        raise ConfigError(f"{path} is not a state dict of '{name.partition('@')[0]}': {'; '.join(parts)}")
    wrong = [k for k in own if own[k].shape != given[k].shape]
    heads = {given[k].shape[0] for k in wrong if given[k].dim() and own[k].shape[:1] == (classes,)}
    if wrong and len(heads) == 1 and all(own[k].shape[1:] == given[k].shape[1:] for k in wrong):
        raise ConfigError(f"{path} has weights for {heads.pop()} classes; the data have {classes}")
    if wrong:
        key = wrong[0]
        raise ConfigError(
            f"{path}: {key} has the shape {tuple(given[key].shape)}; '{name.partition('@')[0]}' on these images "
            f"wants {tuple(own[key].shape)} ({len(wrong)} such tensors)"
        )
    network.load_state_dict(given, strict=True)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """A state dict, alone or as `state_dict` or `model` of a training checkpoint, without `module.` before names."""
    found: Any
    try:
        if path.suffix == ".safetensors":
            found = _safetensors(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ConfigError(
            f"{path} cannot be read as tensors alone ({reason(error)}). Pickled objects are refused because reading "
            "them runs code; save the state dict: torch.save(network.state_dict(), FILE)"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise ConfigError(f"{path} holds {kind_of(found)}; expected a state dict, which names tensors alone")
    prefix = "module." if found and all(k.startswith("module.") for k in found) else ""
    return {k.removeprefix(prefix): v for k, v in found.items()}


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ConfigError(f"{path} needs the package safetensors: pip install safetensors") from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
