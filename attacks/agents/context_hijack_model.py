"""Context hijacking by a model: an attacker model writes its own messages and adapts them to the answers.

For each question it holds one conversation with the agent, `turns` messages at most, and reads what the agent
says. The scorer then plays the messages it wrote again, afresh. Where the attacker model writes nothing, a
polite question stands in, and is counted in the artifact's notes. Cells are always adaptive: it talks to the
agent behind its defences.

Source: [bagdasarian2024airgap] for the threat model; the loop is the common one of attacker models that refine
their prompt after each answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from attacks.agents._hijack import BENIGN, agent_spec, fill
from redteam.core.config import check_ranges, knob
from redteam.core.context import Context
from redteam.llm.language import ANSWERED, Finish, Sampling
from redteam.llm.messages import ChatModel
from redteam.threats.agents.artifact import Scripts
from redteam.threats.agents.attacker import message_in, messages_of
from redteam.threats.agents.models import ChatOptions, open_agent_model
from redteam.threats.agents.nouns import Script, Session
from redteam.threats.agents.play import Conversation, open_conversations, say
from redteam.threats.agents.target import AgentTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAttackConfig:
    """Who writes, and how much."""

    attacker: str = knob("rules:", "the model that writes: rules: (embedded) or BACKEND:NAME")
    turns: int = knob(4, "messages to the agent for each question", low=1, high=20)
    message_tokens: int = knob(96, "length of one message of the attacker", low=1)
    temperature: float = knob(0.0, "of the attacker's sampling; 0 is greedy", low=0)

    def __post_init__(self) -> None:
        check_ranges(self)
        ChatOptions(model=self.attacker)


def run(target: AgentTarget, config: ModelAttackConfig, ctx: Context) -> Scripts:
    """Hold a conversation for every planned question; the scripts are what the attacker wrote in it."""
    attacker = open_agent_model(replace(target.config, model=config.attacker), ctx, role="attacker")
    scripts = [Script(question=q, sessions=(Session(task=q.task, messages=()),)) for q in target.questions]
    going = open_conversations(target.dataset, scripts)
    fields = [q.field for q in target.questions]
    silent = 0
    ends: list[Finish] = ["stop"] * len(going)
    for turn in range(config.turns):
        said, empty = _write(attacker, target, going, fields, config, turn, ctx)
        silent += empty
        say(target.agent, target.dataset, list(zip(going, said, strict=True)), ctx, f"attack turn {turn + 1}")
    for i, conversation in enumerate(going):
        last = conversation.replies[-1].finish
        ends[i] = "stop" if last in ANSWERED else last
    made = tuple(
        replace(s, sessions=(Session(task=s.question.task, messages=_messages(c)),))
        for s, c in zip(scripts, going, strict=True)
    )
    queries = np.full(len(made), config.turns, np.int64)
    return Scripts(made, tuple(ends), queries, {"silent_attacker": silent})


def _messages(conversation: Conversation) -> tuple[str, ...]:
    return tuple(t.text for t in conversation.turns if t.party == "third-party")


def _write(
    attacker: ChatModel,
    target: AgentTarget,
    going: list[Conversation],
    fields: list[str],
    config: ModelAttackConfig,
    turn: int,
    ctx: Context,
) -> tuple[list[str], int]:
    """The next message of every conversation, and in how many the attacker wrote nothing."""
    sampling = Sampling(
        max_tokens=config.message_tokens, temperature=config.temperature, seed=ctx.seeds.integer()
    )
    asked = []
    for conversation, name in zip(going, fields, strict=True):
        task = target.dataset.task(conversation.session.task)
        words = target.dataset.field(name).words
        asked.append(
            messages_of(task.name, task.recipient, words, tuple(conversation.turns), config.turns - turn)
        )
    wrote = attacker.chat(asked, sampling)
    out, silent = [], 0
    for question, s in zip(target.questions, wrote, strict=True):
        own = message_in(s.text, "") if s.finish in ANSWERED else ""
        silent += not own
        out.append(own or fill(BENIGN[0], target, question))
    return out, silent


SPEC = agent_spec(
    "context-hijack-model", run, ModelAttackConfig, controls=("benign",), adaptive=True, deterministic=True,
    access=("messages", "answers"), knowledge=("what the agent answered",),
    goal="the agent says a value that its task does not allow",
)  # fmt: skip
