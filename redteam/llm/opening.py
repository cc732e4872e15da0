"""Opens any language model by name, and tells what local model a setting names."""

from __future__ import annotations

import importlib
from functools import lru_cache

from redteam.core.context import Context
from redteam.llm.language import LanguageModel
from redteam.llm.options import ModelOptions

_OPENERS = {
    "tiny": ("redteam.llm.tiny", "open_tiny"),
    "gguf": ("redteam.llm.local", "open_local"),
    "hf": ("redteam.llm.local", "open_local"),
    "llama": ("redteam.llm.llama", "open_llama"),
    "openai": ("redteam.llm.endpoint", "open_endpoint"),
}


def open_model(options: ModelOptions, ctx: Context, role: str = "target") -> LanguageModel:
    """Open a model; what it is asked is booked in `ctx.ledger` under `role`.

    Raises:
        ConfigError: a package, a file, a key or a name is missing; the message says which.
    """
    module, function = _OPENERS[options.backend]
    model: LanguageModel = getattr(importlib.import_module(module), function)(options, ctx, role)
    return model


@lru_cache(maxsize=16)
def content_of(backend: str, name: str) -> str:
    """sha256 of a local model's bytes (of a hub id, its commit), or an empty string for a remote one."""
    if backend in ("gguf", "llama"):
        gguf = importlib.import_module("redteam.llm.gguf")
        return str(gguf.digest_of(gguf.resolve_gguf(name)))
    if backend == "hf":
        return str(importlib.import_module("redteam.llm.local_load").find_hf(name).content)
    if backend == "tiny":
        return str(importlib.import_module("redteam.llm.tiny").load_network().card["sha256"])
    return ""


def content_named(text: str) -> str:
    """The digest of the local model that a setting such as `hf:PATH` names; empty for any other text."""
    backend, colon, name = text.partition(":")
    return content_of(backend, name) if colon and backend in _OPENERS else ""
