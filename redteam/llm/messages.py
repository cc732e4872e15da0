"""The nouns of conversations with a model: messages, tools in the OpenAI format, and what was said.

Nothing here imports torch or numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from redteam.llm.language import Finish, Sampling

Speaker = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model wants made. arguments: JSON text as the model wrote it, which may be broken."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message. calls: of an assistant's. call_id: which call a tool's message answers."""

    role: Speaker
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call. parameters: its JSON Schema."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the model said next. message: why there is no answer, without secrets."""

    text: str
    finish: Finish
    calls: tuple[ToolCall, ...] = field(default=())
    tokens_in: int = 0
    tokens_out: int = 0
    message: str = ""


@runtime_checkable
class ChatModel(Protocol):
    """A model that holds conversations. `redteam.llm.chat.open_chat` makes one of any backend."""

    def chat(
        self, conversations: Sequence[Sequence[Message]], sampling: Sampling, tools: Sequence[Tool] = ()
    ) -> list[Said]:
        """The next message of each conversation, in order. A conversation that fails gets a `Said` that says so.

        Raises:
            CapabilityError: tools are given and the model takes none.
        """

    def fingerprint(self) -> dict[str, Any]:
        """What decides its answers. No secret."""
