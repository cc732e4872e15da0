"""Which questions are asked: by user, task and field, decided by the data alone, so that no seed moves them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from redteam.core.errors import DataError
from redteam.core.seeding import SeedPath
from redteam.data.words import Draws
from redteam.threats.agents.nouns import AgentDataset, Profile, Question


def plan_questions(
    dataset: AgentDataset, profiles: int | None, tasks: Sequence[str] | None, fields: int | None
) -> tuple[Question, ...]:
    """The questions, users first, then tasks, then fields.

    fields: None asks for every field, also for those that a user has none of. A number asks for so many fields
    that the user has, half of them (rounded down) allowed in the task and the rest forbidden; where there are
    too few of one kind, there are fewer.

    Raises:
        DataError: nothing is left to ask.
    """
    if odd := [i for i in (*(p.id for p in dataset.profiles), *(t.id for t in dataset.tasks)) if "/" in i]:
        raise DataError(f"'{dataset.name}': expected ids of users and tasks without '/', got '{odd[0]}'")
    users = {p.id for p in dataset.profiles[:profiles]}
    chosen = set(tasks) if tasks is not None else {t.id for t in dataset.tasks}
    found = tuple(
        Question(id=f"{user}/{task}/{name}", profile=user, task=task, field=name)
        for user, task in dataset.pairs
        if user in users and task in chosen
        for name in _fields(dataset, dataset.profile(user), task, fields)
    )
    if not found:
        raise DataError(f"'{dataset.name}' has no user with one of the tasks {', '.join(sorted(chosen))}")
    return found


def _fields(dataset: AgentDataset, user: Profile, task: str, count: int | None) -> Iterator[str]:
    labels = dataset.rules.labels[task]
    known = [f.name for f in dataset.fields if f.name in user.values and f.name in labels]
    if count is None:
        yield from known
        return
    draws = Draws(SeedPath(0).child("questions", user.id, task))
    picked: set[str] = set()
    for label, size in (("allowed", count // 2), ("forbidden", count - count // 2)):
        there = [n for n in known if labels[n] == label and user.values[n].present]
        picked |= set(draws.pick_different(there, min(size, len(there))))
    yield from (n for n in known if n in picked)
