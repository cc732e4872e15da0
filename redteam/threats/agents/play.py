"""Holding conversations: what an attack's scripts say, put to an agent turn by turn.

Attacks that adapt and the scorer both play through here, so that an agent is asked in one way only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from redteam.core.context import Context
from redteam.threats.agents.nouns import (
    Agent,
    AgentDataset,
    AgentReply,
    Dialogue,
    Profile,
    Script,
    Session,
    TrustedContext,
    Turn,
)

CHUNK = 64  # conversations between two looks at the clock
COLUMNS = (
    "id", "session", "turn", "party", "task", "text", "requested", "approved", "actions", "finish", "message",
)  # fmt: skip


@dataclass
class Conversation:
    """One session as it is held. id: the question's. replies: the agent's, one a message so far."""

    id: str
    index: int
    session: Session
    profile: Profile
    turns: list[Turn] = field(default_factory=list)
    replies: list[AgentReply] = field(default_factory=list)

    def dialogue(self, dataset: AgentDataset, message: str) -> Dialogue:
        """What the agent gets when the third party says `message`."""
        return Dialogue(
            context=TrustedContext(task=dataset.task(self.session.task), note=self.session.note),
            data={name: value.text for name, value in self.profile.values.items()},
            words={f.name: f.words for f in dataset.fields},
            history=(*self.turns, Turn(party="third-party", text=message)),
        )

    def add(self, message: str, reply: AgentReply) -> None:
        """Note one exchange."""
        self.turns += [
            Turn(party="third-party", text=message),
            Turn(party="agent", text=reply.text, requested=reply.requested, approved=reply.approved),
        ]
        self.replies.append(reply)

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Rows of the table of transcripts."""
        replies = iter(self.replies)
        for place, turn in enumerate(self.turns):
            head = (self.id, self.index, place, turn.party, self.session.task, storable(turn.text))
            if turn.party == "third-party":
                yield (*head, "[]", "[]", "[]", "", "")
                continue
            r = next(replies)
            listed = (json.dumps(list(v)) for v in (r.requested, r.approved, r.actions))
            yield (*head, *listed, r.finish, storable(r.message))


def storable(text: str) -> str:
    """The text with lone surrogates, which no file takes, written out as `\\udc80`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def open_conversations(dataset: AgentDataset, scripts: Sequence[Script]) -> list[Conversation]:
    """A conversation for each session of each script, nothing said yet."""
    return [
        Conversation(s.question.id, i, session, dataset.profile(s.question.profile))
        for s in scripts
        for i, session in enumerate(s.sessions)
    ]


def say(
    agent: Agent, dataset: AgentDataset, said: Sequence[tuple[Conversation, str]], ctx: Context, name: str
) -> None:
    """Put one message to each conversation and note what comes back."""
    for start in range(0, len(said), CHUNK):
        ctx.report(name, start, len(said))
        _exchange(agent, dataset, said[start : start + CHUNK])
    ctx.report(name, len(said), len(said))


def _exchange(agent: Agent, dataset: AgentDataset, said: Sequence[tuple[Conversation, str]]) -> None:
    replies = agent.reply([c.dialogue(dataset, message) for c, message in said])
    for (conversation, message), reply in zip(said, replies, strict=True):
        conversation.add(message, reply)


def hold(agent: Agent, dataset: AgentDataset, scripts: Sequence[Script], ctx: Context) -> list[Conversation]:
    """Hold every session of every script to its end.

    A batch of conversations goes to its end before the next begins, and those of one user and task stand
    together: a model that keeps what its prompts have in common computes the user's data once for all of them.
    """
    conversations = open_conversations(dataset, scripts)
    ordered = sorted(conversations, key=lambda c: (c.profile.id, c.session.task, c.session.note))
    for start in range(0, len(ordered), CHUNK):
        part = ordered[start : start + CHUNK]
        for turn in range(max(len(c.session.messages) for c in part)):
            ctx.report("conversations", start, len(ordered))
            going = [(c, c.session.messages[turn]) for c in part if turn < len(c.session.messages)]
            _exchange(agent, dataset, going)
    ctx.report("conversations", len(ordered), len(ordered))
    return conversations


def play(agent: Agent, dataset: AgentDataset, scripts: Sequence[Script], ctx: Context) -> pd.DataFrame:
    """Hold every session and return the transcripts: a row a message, columns `COLUMNS`."""
    rows = [row for c in hold(agent, dataset, scripts, ctx) for row in c.rows()]
    return pd.DataFrame(rows, columns=list(COLUMNS))
