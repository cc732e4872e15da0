"""Networks of the user's own, by name: checked before anything is spent on them.

    FILE.pt, FILE.pth, FILE.pt2     a TorchScript archive or a program of `torch.export`
    FILE.py:FUNCTION                the network that FUNCTION() of that file returns
    torchvision:NAME[@WEIGHTS]      a classifier of torchvision, with weights from a file or untrained
    timm:NAME[@WEIGHTS]             the same of timm; needs the extra `evasion`

WEIGHTS is a state dict (`.pth`, `.pt`) or a `.safetensors` file; nothing is fetched. Reading a pickle runs code that
its author chose, so pickled networks are refused and state dicts are read as tensors alone. A TorchScript archive,
an exported program and a `.py` file are programs as well, and run as the user: give only those you trust.

A network takes (N, C, H, W) in [0, 1] and gives (N, K) logits. Where it wants other inputs, `mean` and `std` put the
normalisation inside. Without them a file's network gets [0, 1], torchvision's gets ImageNet's constants, and timm's
those of its own configuration; `mean=(0,)` with `std=(1,)` turns that off.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from redteam.core.errors import ConfigError, UnknownNameError
from redteam.core.hashing import digest_file
from redteam.core.seeding import SeedPath
from redteam.threats.evasion.adapt import readers

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LIBRARIES = ("torchvision", "timm")
FORMS = "FILE.pt, FILE.pth, FILE.pt2, FILE.py:FUNCTION, torchvision:NAME[@WEIGHTS] or timm:NAME[@WEIGHTS]"

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """A name, taken apart. path: the file it points to, None for an untrained network of a library.

    what: the function of a `.py` file or the library's network; empty for other files.
    """

    form: Literal["file", "function", "torchvision", "timm"]
    what: str
    path: Path | None


class Normalised(nn.Module):
    """A network behind (x - mean) / std, with mean and std of each channel as buffers; one number serves all."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(tuple(values), dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, C, H, W) in [0, 1]. Returns what the network gives."""
        out: torch.Tensor = self.network((x - self.mean) / self.std)
        return out


def is_external(name: str) -> bool:
    """Whether a model's name means a network of the user's own; names of the suite's models hold no / \\ : or dot."""
    return any(mark in name for mark in "/\\:.")


def parse(name: str) -> Name:
    """Take a name apart. A library's name ends at the first @; a file's path may hold both : and @.

    Raises:
        ConfigError: none of the forms.
    """
    library, _, rest = name.partition(":")
    if library in LIBRARIES:
        what, at, weights = rest.partition("@")
        if not what or (at and not weights):
            raise ConfigError(f"model '{name}': expected {library}:NAME or {library}:NAME@WEIGHTS")
        path = Path(weights).expanduser() if weights else None
        return Name(form="torchvision" if library == "torchvision" else "timm", what=what, path=path)
    file, _, function = name.rpartition(":")
    if file.endswith(".py"):
        if not function.isidentifier():
            raise ConfigError(f"model '{name}': expected the name of a function after {file}:")
        return Name(form="function", what=function, path=Path(file).expanduser())
    if name.endswith(".py"):
        raise ConfigError(f"model '{name}': say which function of it builds the network: {name}:FUNCTION")
    if not is_external(name):
        raise ConfigError(f"model '{name}': expected {FORMS}")
    return Name(form="file", what="", path=Path(name).expanduser())


def _existing(name: str, path: Path) -> Path:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(f"model '{name}': {path} {what}; expected {FORMS}")
    return path


def digest(name: str) -> str:
    """sha256 of the file that a name points to, which pins it in a cell; empty where it points to none.

    What a `.py` file imports or reads in its turn is not covered.

    Raises:
        ConfigError: none of the forms, or no such file.
    """
    path = parse(name).path if is_external(name) else None
    return digest_file(_existing(name, path)) if path is not None else ""


def load_external(
    name: str, *, classes: int, shape: Shape, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> nn.Module:
    """A network of the user's own on the CPU, in evaluation mode, with its normalisation inside.

    shape: (H, W, C) of the images. Initial weights of what comes untrained are drawn from torch's global generator.

    Raises:
        ConfigError: no such file, a pickle, weights that do not fit, a missing package, or a network that does not
            give `classes` finite logits for each image on its own. UnknownNameError: the library has no such network.
    """
    parsed = parse(name)
    path = _existing(name, parsed.path) if parsed.path is not None else None
    constants = _constants(name, mean, std, shape[2])
    if parsed.form in LIBRARIES:
        network, usual = _from_library(parsed, classes, shape[2])
        constants = constants or _constants(name, *usual, shape[2])
        if path is not None:
            readers.load_weights(network, path, name, classes)
    else:
        assert path is not None
        whole = parsed.form == "file"
        network = readers.read_network(path) if whole else readers.call_function(path, parsed.what)
    if constants:
        network = Normalised(network, *constants)
    network.eval()
    check(network, name, classes=classes, shape=shape)
    return network


def _constants(
    name: str, mean: Sequence[float], std: Sequence[float], channels: int
) -> tuple[Sequence[float], Sequence[float]] | None:
    if not mean and not std:
        return None
    for key, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ConfigError(
                f"{key}: expected 1 or {channels} numbers for '{name}' on images of {channels} channels, got "
                f"{len(values)}; set mean and std"
            )
    if not all(abs(m) <= 1 for m in mean) or not all(0 < s < float("inf") for s in std):
        raise ConfigError(
            f"expected mean within [-1, 1] and std above 0, for pixels in [0, 1]; got {tuple(mean)} and {tuple(std)}. "
            "Divide constants for pixels up to 255 by 255"
        )
    return mean, std


def _from_library(
    parsed: Name, classes: int, channels: int
) -> tuple[nn.Module, tuple[Sequence[float], Sequence[float]]]:
    """An untrained classifier and the constants that the library normalises with."""
    if parsed.form == "torchvision":
        from torchvision import models

        known = models.list_models(module=models)
        if parsed.what not in known:
            raise UnknownNameError("classifier of torchvision", parsed.what, known)
        network: nn.Module = models.get_model(parsed.what, weights=None, num_classes=classes)
        return network, (IMAGENET_MEAN, IMAGENET_STD)
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError:
        raise ConfigError(
            f"model 'timm:{parsed.what}' needs the extra evasion: pip install 'redteam[evasion]'"
        ) from None
    if not timm.is_model(parsed.what):
        raise UnknownNameError("network of timm", parsed.what, timm.list_models())
    network = timm.create_model(parsed.what, pretrained=False, num_classes=classes, in_chans=channels)
    usual: dict[str, Any] = getattr(network, "pretrained_cfg", {})
    return network, (usual.get("mean", IMAGENET_MEAN), usual.get("std", IMAGENET_STD))


def _probe(image: tuple[int, int, int], count: int) -> torch.Tensor:
    """Noise images (count, C, H, W), the later the darker: a mean over the batch is not that of its first image."""
    noise = torch.rand((count, *image), generator=SeedPath(0).child("probe").torch())
    return noise / torch.arange(1.0, count + 1).view(-1, 1, 1, 1)


@torch.no_grad()
def check(network: nn.Module, name: str, *, classes: int, shape: Shape) -> None:
    """Ask a network three times about random images of [0, 1].

    Raises:
        ConfigError: it does not take them, does not give (N, classes) finite numbers, or (where it answers the same
            question twice alike) its answer for an image depends on the others of the batch.
    """
    x = _probe((shape[2], *shape[:2]), 3)
    try:
        first, again, alone = network(x), network(x), network(x[:1])
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError) as error:
        raise ConfigError(
            f"model '{name}' could not process images of shape {tuple(x.shape[1:])} float32: {readers.reason(error)}. "
            f"Set `size` to the pixels a side that it takes (now {shape[0]}); a traced or exported network must take "
            "any number of images (torch.export: dynamic_shapes)"
        ) from None
    for out, count in ((first, 3), (alone, 1)):
        if not isinstance(out, torch.Tensor):
            raise ConfigError(f"model '{name}' gave {readers.kind_of(out)}; expected logits as one tensor")
        if out.shape != (count, classes):
            raise ConfigError(
                f"model '{name}' gave a tensor of shape {tuple(out.shape)} for {count} images; expected "
                f"{(count, classes)}: a logit for each of the {classes} classes of the data"
            )
        if not bool(torch.isfinite(out).all()):
            raise ConfigError(
                f"model '{name}' gave numbers that are not finite for images in [0, 1]; check its weights, mean and std"
            )
    slack = 1e-3 * float(first.abs().max()) + 1e-6
    if torch.equal(first, again) and float((first[:1] - alone).abs().max()) > slack:
        raise ConfigError(
            f"model '{name}' answers differently for an image on its own and among others, as batch normalisation "
            "does in training; call eval() on it before it is traced or exported"
        )


def parts(network: nn.Module, image: tuple[int, int, int]) -> tuple[nn.Module, nn.Linear]:
    """A copy of a classifier, divided into a body (N, C, H, W) to (N, D) and the linear head that gives its logits.

    image: (C, H, W) of its images, some random ones of which are asked to see that head(body(x)) is network(x).

    Raises:
        ConfigError: no linear layer gives its output from one vector for each image.
    """
    refusal = ConfigError(
        f"{type(network).__name__} has no linear layer whose output is its logits, which training needs to tell "
        "features from head. TorchScript and exported programs can be attacked but not trained: give the network "
        "itself, by FILE.py:FUNCTION, torchvision:NAME or timm:NAME"
    )
    if not any(isinstance(m, nn.Linear) for m in network.modules()):
        raise refusal
    body = deepcopy(network).eval()
    given: dict[str, torch.Tensor] = {}
    hooks = [
        m.register_forward_hook(lambda _m, _x, out, key=key: given.__setitem__(key, out))
        for key, m in body.named_modules()
        if key and isinstance(m, nn.Linear)
    ]
    x = _probe(image, 2).to(next(network.parameters()).device)
    with torch.no_grad():
        logits = body(x)
        for hook in hooks:
            hook.remove()
        last = [k for k, out in given.items() if out.shape == logits.shape and torch.equal(out, logits)]
        if not last:
            raise refusal
        owner, _, key = last[-1].rpartition(".")
        head = body.get_submodule(last[-1])
        assert isinstance(head, nn.Linear)
        setattr(body.get_submodule(owner), key, nn.Identity())
        features = body(x)
        if features.dim() != 2 or not torch.allclose(head(features), logits, atol=1e-6):
            raise refusal
    return body, head
