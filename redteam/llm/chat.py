"""Conversations with any backend: `open_chat`.

With template = chat a model gets every message as a turn of its own template, and no message can forge one.
With template = raw, and behind a defence of prompts, the conversation is written out as plain text
(`Flattened`), where a message that spells "User:" looks like a turn; the fingerprint says which it was.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, TypeVar

from redteam.core.context import Context
from redteam.core.errors import CapabilityError
from redteam.llm.chat_tools import call_text
from redteam.llm.language import Completion, Finish, LanguageModel, Sampling
from redteam.llm.messages import ChatModel, Message, Said, Tool
from redteam.llm.opening import open_model
from redteam.llm.options import ModelOptions

_NATIVE = {
    "tiny": ("redteam.llm.chat_tiny", "TinyChat"),
    "gguf": ("redteam.llm.chat_local", "LocalChat"),
    "hf": ("redteam.llm.chat_local", "LocalChat"),
    "llama": ("redteam.llm.chat_endpoint", "EndpointChat"),
    "openai": ("redteam.llm.chat_endpoint", "EndpointChat"),
}
_ROLES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


M = TypeVar("M", bound=LanguageModel)


def open_chat(options: ModelOptions, ctx: Context, role: str = "target") -> ChatModel:
    """Open a model for conversations; what it is asked is booked in `ctx.ledger` under `role`.

    template = chat: in the model's own turns. raw: as plain text, see `Flattened`. A system message of the
    options stands before conversations that do not begin with one.

    Raises:
        ConfigError: a package, a file, a key, a name or a chat template is missing; the message says which.
    """
    model = open_model(options, ctx, role)
    if options.template == "raw":
        return Flattened(model)
    module, name = _NATIVE[options.backend]
    chat: ChatModel = getattr(importlib.import_module(module), name)(model)
    return chat


class InTurns(Generic[M]):
    """What the chats of all backends begin with. model: opened with template = chat."""

    def __init__(self, model: M) -> None:
        if model.template != "chat":
            raise CapabilityError("conversations in the model's own turns need template = 'chat'")
        self.model = model

    def fingerprint(self) -> dict[str, Any]:
        """The model's own, and that it gets messages as turns."""
        return {**self.model.fingerprint(), "conversations": "native"}


@dataclass(frozen=True, eq=False)
class Flattened:
    """Conversations with any language model, also a defended one: each is written into one prompt.

    "System: ...", "User: ...", a line for each message, and "Assistant:" at the end. The answer is cut where
    the model begins to write another turn. Nothing keeps a message from spelling a turn itself.
    """

    model: LanguageModel

    def chat(
        self, conversations: Sequence[Sequence[Message]], sampling: Sampling, tools: Sequence[Tool] = ()
    ) -> list[Said]:
        """The next message of each conversation. Raises CapabilityError if tools are given."""
        if tools:
            raise CapabilityError(
                "a conversation written out as plain text takes no tools; use a model with template = 'chat'"
            )
        wrong = [problem(c) for c in conversations]
        prompts = [flatten(c) for c, w in zip(conversations, wrong, strict=True) if not w]
        answers = self.model.generate(prompts, sampling) if prompts else []
        return in_order(wrong, map(_first_turn, answers))

    def fingerprint(self) -> dict[str, Any]:
        """The model's own, and that conversations are flattened."""
        return {**self.model.fingerprint(), "conversations": "flattened"}


def flatten(conversation: Sequence[Message]) -> str:
    """A conversation as plain text, up to where the assistant goes on."""
    lines = []
    for m in conversation:
        calls = "".join("\n" + call_text(c) for c in m.calls)
        lines.append(f"{_ROLES[m.role]}: {m.content}{calls}")
    return "\n".join([*lines, "Assistant:"])


def said_of(answer: Completion) -> Said:
    """A completion as what was said."""
    return Said(**asdict(answer))


def _first_turn(answer: Completion) -> Said:
    """The answer without the white space round it, up to the next turn."""
    text = answer.text
    found = [at for name in _ROLES.values() if (at := text.find(f"\n{name}:")) >= 0]
    cut = text[: min(found)] if found else text
    finish: Finish = "stop" if found and answer.finish == "length" else answer.finish
    return replace(said_of(answer), text=cut.strip(), finish=finish)


def in_order(wrong: Sequence[str], said: Iterable[Said]) -> list[Said]:
    """What was said in the conversations that have no problem, and an error in place of the others."""
    rest = iter(said)
    return [Said(text="", finish="error", message=w) if w else next(rest) for w in wrong]


def problem(conversation: Sequence[Message]) -> str:
    """Why no model can be asked to go on with a conversation; empty if one can."""
    if not conversation:
        return "expected a conversation of at least one message, got none"
    for i, m in enumerate(conversation):
        if m.role not in _ROLES:
            return f"message {i}: expected the role system, user, assistant or tool, got {m.role!r}"
        for text in (m.content, m.call_id, *(t for c in m.calls for t in (c.id, c.name, c.arguments))):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                lone = text[error.start]
                return f"message {i}: expected text, got the lone surrogate {lone!r}; remove it"
    return ""


def with_system(conversation: Sequence[Message], system: str | None) -> list[Message]:
    """The conversation behind the options' system message, unless it begins with one of its own."""
    if system is None or (conversation and conversation[0].role == "system"):
        return list(conversation)
    return [Message(role="system", content=system), *conversation]
