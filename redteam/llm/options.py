"""How a language model is opened: the options that every backend understands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from redteam.core.config import check_ranges, knob
from redteam.core.errors import ConfigError, nearest
from redteam.llm.backends import BACKENDS


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which model, behind which template, with what precision."""

    model: str = knob("tiny:", "tiny:, gguf:PATH, hf:ID, llama:PATH or openai:MODEL; see `redteam list`")
    template: Literal["raw", "chat"] = knob(
        "raw", "raw: the prompt is continued; chat: it is the user's message"
    )
    system: str | None = knob(None, "system message of the chat; none: the template's own")
    dtype: Literal["float32", "bfloat16"] = knob("float32", "weights and arithmetic of a local model")
    batch: int = knob(16, "prompts in one forward pass, or requests in flight at most", low=1)
    tokenizer: str = knob(
        "auto", "of an openai: model: tiktoken:NAME, hf:ID_OR_PATH, gguf:PATH, or auto by its name"
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if ":" not in self.model or self.backend not in BACKENDS:
            raise ConfigError(
                f"model: expected BACKEND:NAME, got '{self.model}'. {nearest(self.backend, BACKENDS)}"
            )

    @property
    def backend(self) -> str:
        """The part before the colon."""
        return self.model.partition(":")[0]

    @property
    def name(self) -> str:
        """The part after it."""
        return self.model.partition(":")[2]
