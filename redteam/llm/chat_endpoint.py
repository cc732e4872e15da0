"""Conversations with a served model: `openai:` over /chat/completions, `llama:` as ids of its own template.

The suite's own llama.cpp server is not sent messages: it would read `<|im_end|>` in one as the end of the turn
(seen: one token). Its template is rendered by itself with marks for the texts, and ids are sent, the same as
those of `gguf:` with that file.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from redteam.core.errors import CapabilityError, ConfigError
from redteam.llm.chat import InTurns, in_order, problem, with_system
from redteam.llm.chat_text import ChatText
from redteam.llm.chat_tools import check_tools, parse_calls
from redteam.llm.endpoint import Endpoint
from redteam.llm.language import Sampling
from redteam.llm.llama import CONTEXT
from redteam.llm.messages import Message, Said, Tool
from redteam.llm.replies import Ask, Reply


class EndpointChat(InTurns[Endpoint]):
    """An endpoint as a `redteam.llm.messages.ChatModel`. model: opened with template = chat."""

    def chat(
        self, conversations: Sequence[Sequence[Message]], sampling: Sampling, tools: Sequence[Tool] = ()
    ) -> list[Said]:
        """The next message of each conversation. Requests are booked, cached, paced and retried as any other.

        An endpoint that takes no tools says so in the answer's `message`.

        Raises:
            ConfigError: a sampling that cannot be. DataError: a tool that is no JSON.
            LimitReachedError: a cap or the time. BackendError: no request will be answered.
        """
        if sampling.max_tokens < 1:
            raise ConfigError(f"expected max_tokens >= 1, got {sampling.max_tokens}")
        check_tools(tools)
        talks = [with_system(c, self.model.options.system) for c in conversations]
        asks: list[Ask | str] = [self._ask(c, sampling, tools) for c in talks]
        replies = self.model.ask([a for a in asks if isinstance(a, Ask)])
        asked = (talk for talk, ask in zip(talks, asks, strict=True) if isinstance(ask, Ask))
        said = (self._said(talk, reply, tools) for talk, reply in zip(asked, replies, strict=True))
        return in_order(["" if isinstance(ask, Ask) else ask for ask in asks], said)

    def close(self) -> None:
        """Drop the connections; stop the server if it is ours."""
        self.model.close()

    # ------------------------------------------------------------ inside

    @cached_property
    def _chat_text(self) -> ChatText | None:
        tokens = self.model.tokens
        # The server's way of telling of tools goes with a grammar that ids do not get; so they are told in words.
        return ChatText(tokens.text, native=False) if self.model.ours and tokens is not None else None

    def _ask(self, talk: Sequence[Message], sampling: Sampling, tools: Sequence[Tool]) -> Ask | str:
        """The request, or why there is none."""
        if message := problem(talk):
            return message
        if self._chat_text is None:
            return Ask(prompt="", messages=tuple(talk), tools=tuple(tools), sampling=sampling)
        try:
            ids = self._chat_text.encode(talk, tools).ids
        except CapabilityError as error:
            return str(error)
        if len(ids) + sampling.max_tokens > CONTEXT:
            return (
                f"{len(ids)} tokens and {sampling.max_tokens} more exceed the model's context of "
                f"{CONTEXT} tokens"
            )
        return Ask(prompt="", ids=ids, sampling=sampling)

    def _said(self, talk: Sequence[Message], reply: Reply, tools: Sequence[Tool]) -> Said:
        text, calls = reply.text, reply.calls
        if tools and self._chat_text is not None:
            text, calls = parse_calls(text, tools, first=sum(len(m.calls) for m in talk))
        return Said(
            text=text, finish=reply.finish, calls=calls, tokens_in=reply.tokens_in or 0,
            tokens_out=reply.tokens_out or 0, message=reply.message,
        )  # fmt: skip
