"""The nouns of agents: a user's data, a trusted task, a third party that asks, and an agent that answers.

An agent acts for a user whose data it holds. The *trusted context* is what the user and the agent's owner
said: the task, the recipient, the user's directive. A *third party* talks to the agent and may lie about the
context; nothing it says is trusted. Which fields may flow in which task is the rule table's to say
(contextual integrity: a flow is appropriate relative to a context). Nothing here imports torch or numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from redteam.core.errors import DataError, UnknownNameError
from redteam.core.hashing import digest_json
from redteam.llm.language import Finish

if TYPE_CHECKING:
    from redteam.core.types import TargetKind

# ambiguous: people disagree; asked about and counted, but in neither privacy nor utility.
Label = Literal["allowed", "forbidden", "ambiguous"]
LABELS: tuple[Label, ...] = ("allowed", "forbidden", "ambiguous")
Party = Literal["third-party", "agent"]
T = TypeVar("T")


# ---------------------------------------------------------------- data


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One kind of datum about a user. words: what people call it. kind: such as `date` or `amount`.

    sensitivity: 1 (anybody may know) to 3 (harm if it gets out): what a rule-following agent goes by; no
    metric uses it. optional: a user may have none, and whether there is one is itself private.
    """

    name: str
    words: str
    kind: str
    sensitivity: int = 2
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """A fact that follows from a value: an age from a birth date, a condition from a medicine.

    question: what one asks to get it, such as "how old the user is". phrases: any of these in a message tells
    it (compared as whole words after normalisation). sources: other fields it also follows from.
    """

    name: str
    question: str
    phrases: tuple[str, ...]
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """What a user's field holds. sentinels: parts of `text`, each of which gives the value away and occurs
    nowhere else; empty if the user has none (`text` says so). derived: facts that follow from it."""

    text: str
    sentinels: tuple[str, ...]
    derived: tuple[Derived, ...] = ()

    @property
    def present(self) -> bool:
        """Whether the user has one."""
        return bool(self.sentinels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One user. values: by field name."""

    id: str
    name: str
    values: Mapping[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the user wants done. description: the trusted words. recipient: whom the agent talks to."""

    id: str
    name: str
    description: str
    recipient: str
    directive: str = ""


@dataclass(frozen=True)
class RuleTable:
    """Which field may flow in which task. labels: by task id, then by field name. reasons: alike, some."""

    version: str
    labels: Mapping[str, Mapping[str, Label]]
    reasons: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def label(self, task: str, name: str) -> Label:
        """The label of a field in a task.

        Raises:
            UnknownNameError: no such task in the table. DataError: the task says nothing of the field.
        """
        if task not in self.labels:
            raise UnknownNameError("task", task, self.labels)
        if name not in self.labels[task]:
            raise DataError(f"the rule table says nothing of the field '{name}' in the task '{task}'")
        return self.labels[task][name]

    def fields(self, task: str, label: Label) -> tuple[str, ...]:
        """The fields that have a label in a task, in the table's order."""
        if task not in self.labels:
            raise UnknownNameError("task", task, self.labels)
        return tuple(name for name, given in self.labels[task].items() if given == label)

    def flipped(self, task: str, name: str, label: Label) -> RuleTable:
        """The table with one label changed."""
        self.label(task, name)
        labels = {**self.labels, task: {**self.labels[task], name: label}}
        return replace(self, labels=labels, version=f"{self.version}+{task}.{name}={label}")

    @cached_property
    def digest(self) -> str:
        """sha256 of the labels. Reasons are no part of it."""
        return digest_json({task: dict(row) for task, row in self.labels.items()})


@dataclass(frozen=True)
class AgentDataset:
    """Users, tasks and the rule table. pairs: which users (profile ids) have which tasks (task ids)."""

    name: str
    version: str
    fields: tuple[Field, ...]
    profiles: tuple[Profile, ...]
    tasks: tuple[Task, ...]
    rules: RuleTable
    pairs: tuple[tuple[str, str], ...]
    source: str
    licence: str

    def profile(self, name: str) -> Profile:
        """A user by id. Raises UnknownNameError."""
        return _named("profile", name, self._profiles)

    def task(self, name: str) -> Task:
        """A task by id. Raises UnknownNameError."""
        return _named("task", name, self._tasks)

    def field(self, name: str) -> Field:
        """A field by name. Raises UnknownNameError."""
        return _named("field", name, self._fields)

    @cached_property
    def _profiles(self) -> dict[str, Profile]:
        return {p.id: p for p in self.profiles}

    @cached_property
    def _tasks(self) -> dict[str, Task]:
        return {t.id: t for t in self.tasks}

    @cached_property
    def _fields(self) -> dict[str, Field]:
        return {f.name: f for f in self.fields}

    @cached_property
    def digest(self) -> str:
        """sha256 of everything but the name, the source and the licence; it goes into every record."""
        parts: list[tuple[Any, ...]] = [self.fields, self.profiles, self.tasks]
        plain = [[asdict(x) for x in part] for part in parts]
        return digest_json([self.version, plain, self.rules.digest, [list(p) for p in self.pairs]])


def _named(what: str, name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        raise UnknownNameError(what, name, known)
    return known[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One thing to ask for: what the attacker knows of it. The label is the scorer's."""

    id: str
    profile: str
    task: str
    field: str


# ---------------------------------------------------------------- conversations


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedContext:
    """What the user's side says. note: text that a third party got into the task's description; the trusted
    side takes it for its own (only the attack that poisons the description sets it)."""

    task: Task
    note: str = ""

    def told(self) -> list[str]:
        """What an agent and a minimiser are told of the task, line by line."""
        task = self.task
        directive = [f"The user says: {task.directive}"] if task.directive else []
        return [f"Task: {task.name}. {task.description}", *([self.note] if self.note else []), *directive]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message between agent and third party. requested: fields that the agent asked its user for.
    approved: those that the user let it have, which it keeps for the rest of the conversation."""

    party: Party
    text: str
    requested: tuple[str, ...] = ()
    approved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """A conversation that waits for the agent's next message.

    data: what the agent may look at, field name to text. words: what fields are called, by name.
    directive: what its owner tells it about privacy. may_request: whether it can ask its user for more.
    """

    context: TrustedContext
    data: Mapping[str, str]
    words: Mapping[str, str]
    history: tuple[Turn, ...]
    directive: str = ""
    may_request: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReply:
    """What an agent says next. text: all that the third party sees. requested, approved: see `Turn`.

    actions: tool calls it made, as JSON text, for the transcript. finish: `stop` or `length` if it answered.
    """

    text: str
    requested: tuple[str, ...] = ()
    approved: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    finish: Finish = "stop"
    message: str = ""


@runtime_checkable
class Agent(Protocol):
    """An agent that talks to third parties for a user: the target of context hijacking."""

    @property
    def kind(self) -> TargetKind:
        """`agent`."""

    def reply(self, dialogues: Sequence[Dialogue]) -> list[AgentReply]:
        """The next message in each conversation, in order. Stateless: all that counts is in the dialogue."""

    def fingerprint(self) -> dict[str, Any]:
        """What decides its answers. No secret."""


# ok: usable at once; repaired: after it was asked again; malformed: never; error: the model gave no answer.
MinimiserOutcome = Literal["ok", "repaired", "malformed", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Minimised:
    """What a minimiser lets through: names of fields. attempts: how often it was asked. raw: its last words."""

    fields: tuple[str, ...]
    outcome: MinimiserOutcome = "ok"
    attempts: int = 0
    raw: str = ""


@runtime_checkable
class Minimising(Protocol):
    """An agent that decides what it may look at before any third party speaks."""

    def minimise(self, needs: Sequence[tuple[TrustedContext, Mapping[str, str]]]) -> list[Minimised]:
        """For each trusted context and the user's data, what remains."""


def minimising(agent: object) -> Minimising | None:
    """The minimising agent among an agent and those that it wraps (in their `agent`), if there is one."""
    while agent is not None and not isinstance(agent, Minimising):
        agent = getattr(agent, "agent", None)
    return agent


# ---------------------------------------------------------------- what an attack hands in


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One conversation to be held: the task it is opened under, what the third party says turn by turn, and a
    note that it got into the task's description beforehand (see `TrustedContext`)."""

    task: str
    messages: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How one question is to be asked: the question, judged in its own task, and the sessions to hold."""

    question: Question
    sessions: tuple[Session, ...]
