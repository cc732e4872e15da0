"""How the models of agents, minimisers, attackers and judges are opened: any backend, or `rules:`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from redteam.core.config import check_ranges, knob
from redteam.core.context import Context
from redteam.core.errors import ConfigError, nearest
from redteam.llm.backends import AGENT_BACKENDS, BACKENDS
from redteam.llm.messages import ChatModel
from redteam.llm.options import ModelOptions

RULES = "rules:"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """Which model, behind which template, with what precision."""

    model: str = knob(
        RULES, "rules: (embedded, no model), or BACKEND:NAME of any backend; see `redteam list`"
    )
    template: Literal["chat", "raw"] = knob(
        "chat", "chat: the model's own chat format; raw: the conversation as plain text, for a base model"
    )
    dtype: Literal["float32", "bfloat16"] = knob("float32", "weights and arithmetic of a local model")
    batch: int = knob(16, "conversations in one forward pass, or requests in flight at most", low=1)
    tokenizer: str = knob("auto", "of an openai: model: tiktoken:NAME, hf:ID_OR_PATH, gguf:PATH, or auto")

    def __post_init__(self) -> None:
        check_ranges(self)
        backend, colon, _ = self.model.partition(":")
        known = (*BACKENDS, *AGENT_BACKENDS)
        if not colon or backend not in known:
            raise ConfigError(f"model: expected BACKEND:NAME, got '{self.model}'. {nearest(backend, known)}")


def open_agent_model(options: ChatOptions, ctx: Context, role: str = "target") -> ChatModel:
    """Open a model for conversations; what it is asked is booked in `ctx.ledger` under `role`.

    Raises:
        ConfigError: a package, a file, a key or a name is missing; the message says which.
    """
    if options.model == RULES:
        from redteam.threats.agents.rules import RuleFollower

        return RuleFollower(ctx.ledger, role)
    if options.model.startswith(RULES):
        raise ConfigError(f"model: expected '{RULES}', which has no variants, got '{options.model}'")
    from redteam.llm.chat import open_chat

    settings = {name: getattr(options, name) for name in ChatOptions.__dataclass_fields__}
    return open_chat(ModelOptions(**settings), ctx, role)
