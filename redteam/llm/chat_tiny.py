"""Conversations with `tiny:` in turns that are marked by ids of their own, which no text has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from redteam.core.errors import CapabilityError
from redteam.core.hashing import canonical_json
from redteam.llm.chat import InTurns, in_order, problem, said_of, with_system
from redteam.llm.language import Completion, Sampling
from redteam.llm.messages import Message, Said, Tool
from redteam.llm.tiny import ASSISTANT, END, SYSTEM, USER, TinyModel, to_bytes

_TURNS = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}


class TinyChat(InTurns[TinyModel]):
    """The embedded model as a `redteam.llm.messages.ChatModel`. It was trained on one question at a time."""

    def chat(
        self, conversations: Sequence[Sequence[Message]], sampling: Sampling, tools: Sequence[Tool] = ()
    ) -> list[Said]:
        """The next message of each conversation.

        Of a conversation that is longer than the window the model sees the end alone; the answer's `message`
        says so.

        Raises:
            CapabilityError: tools are given. ConfigError: a sampling that cannot be.
        """
        if tools:
            raise CapabilityError("tiny: takes no tools; use a larger model")
        talks = [with_system(c, self.model.options.system) for c in conversations]
        wrong = [problem(c) or _strange(c) for c in talks]
        good = [c for c, w in zip(talks, wrong, strict=True) if not w]
        rows = [turns(c) for c in good]
        names = [canonical_json([[m.role, m.content] for m in c]) for c in good]
        room = max(self.model.window - max(sampling.max_tokens, 1), self.model.window // 2)
        cut = [_end(ids, room) for ids in rows]
        answers = self.model.answer(cut, names, sampling)
        return in_order(wrong, map(self._said, rows, cut, answers))

    def _said(self, whole: Sequence[int], sent: Sequence[int], answer: Completion) -> Said:
        said = said_of(answer)
        if len(sent) == len(whole):
            return said
        return replace(
            said, message=f"{len(whole)} tokens exceed the model's window of {self.model.window}, less "
            f"room for an answer: it saw the last {len(sent)}",
        )  # fmt: skip


def turns(conversation: Sequence[Message]) -> list[int]:
    """Ids of a conversation up to where the assistant goes on; each of its turns so far has an end."""
    ids: list[int] = []
    for m in conversation:
        end = [END] if m.role == "assistant" else []
        ids += [_TURNS[m.role], *to_bytes(m.content), *end]
    return [*ids, ASSISTANT]


def _end(ids: Sequence[int], most: int) -> list[int]:
    """The last `most` ids, the first of which says whose turn it is, as it did in the whole."""
    if len(ids) <= most:
        return list(ids)
    start = len(ids) - most + 1
    turn = next(i for i in reversed(ids[:start]) if i in _TURNS.values())
    return [turn, *ids[start:]]


def _strange(conversation: Sequence[Message]) -> str:
    if any(m.role == "tool" or m.calls for m in conversation):
        return "tiny: has no turns for tools; expected messages of system, user and assistant without calls"
    return ""
