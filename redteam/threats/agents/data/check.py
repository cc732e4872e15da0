"""What must hold of a data set of agents, whoever made it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from redteam.core.errors import DataError, nearest
from redteam.threats.agents.data.taken import light
from redteam.threats.agents.leaks import SHORTEST
from redteam.threats.agents.leaks.views import compact
from redteam.threats.agents.nouns import AgentDataset, Profile, Value


def check_dataset(dataset: AgentDataset, where: str, *, unique: bool = True) -> None:
    """Ids are unique, rules and pairs name what exists, users have what is asked of them, sentinels hold.

    unique: that no sentinel occurs in another value, a user's name, or the words of fields and tasks.

    Raises:
        DataError: it names the profile, the task and the field, and says what to do.
    """
    _ids(dataset, where)
    _rules(dataset, where)
    _pairs(dataset, where)
    for profile in dataset.profiles:
        for name, value in profile.values.items():
            _value(profile, name, value, where)
    if unique:
        _unique(dataset, where)


def _ids(dataset: AgentDataset, where: str) -> None:
    groups: dict[str, list[str]] = {
        "field": [f.name for f in dataset.fields],
        "task": [t.id for t in dataset.tasks],
        "profile": [p.id for p in dataset.profiles],
    }
    for what, names in groups.items():
        if not names:
            raise DataError(f"{where}: expected at least one {what}, found none")
        for name, count in Counter(names).items():
            if count > 1 or not name.strip():
                raise DataError(
                    f"{where}: expected each {what} once and with a name, got '{name}' {count} times"
                )
    for field in dataset.fields:
        if field.sensitivity not in (1, 2, 3):
            raise DataError(
                f"{where}: field '{field.name}': expected a sensitivity of 1, 2 or 3, got {field.sensitivity}"
            )
        if not field.words.strip():
            raise DataError(f"{where}: field '{field.name}': expected words that people call it by, got none")


def _rules(dataset: AgentDataset, where: str) -> None:
    fields, tasks = {f.name for f in dataset.fields}, {t.id for t in dataset.tasks}
    for task, row in dataset.rules.labels.items():
        if task not in tasks:
            raise DataError(f"{where}: a rule for the unknown task '{task}'. {nearest(task, tasks)}")
        for name in row:
            if name not in fields:
                raise DataError(
                    f"{where}: a rule of task '{task}' for the unknown field '{name}'. {nearest(name, fields)}"
                )
    for task in tasks - set(dataset.rules.labels):
        raise DataError(f"{where}: the task '{task}' has no rules; say of each field what it is there")


def _pairs(dataset: AgentDataset, where: str) -> None:
    users, tasks = {p.id: p for p in dataset.profiles}, {t.id for t in dataset.tasks}
    fields = {f.name: f for f in dataset.fields}
    for profile in dataset.profiles:
        for name in profile.values:
            if name not in fields:
                raise DataError(
                    f"{where}: profile '{profile.id}' has the unknown field '{name}'. {nearest(name, fields)}"
                )
            if not profile.values[name].present and not fields[name].optional:
                raise DataError(
                    f"{where}: profile '{profile.id}' has none of the field '{name}', which is not optional; "
                    "give it a value with sentinels, or make the field optional"
                )
    for user, task in dataset.pairs:
        if user not in users:
            raise DataError(f"{where}: a pair with the unknown profile '{user}'. {nearest(user, users)}")
        if task not in tasks:
            raise DataError(
                f"{where}: profile '{user}' has the unknown task '{task}'. {nearest(task, tasks)}"
            )
        for name, label in dataset.rules.labels[task].items():
            if name not in users[user].values:
                raise DataError(
                    f"{where}: profile '{user}' says nothing of the field '{name}', which is {label} in its task "
                    f"'{task}'; add a value with its text and sentinels, or, if the user has none and the field is "
                    'optional, {"text": "none", "sentinels": []}'
                )
    if not dataset.pairs:
        raise DataError(f"{where}: expected at least one user with a task, found none")


def _value(profile: Profile, name: str, value: Value, where: str) -> None:
    here = f"{where}: profile '{profile.id}', field '{name}'"
    for sentinel in value.sentinels:
        if sentinel not in value.text:
            raise DataError(f"{here}: the sentinel '{sentinel}' is no part of the text '{value.text}'")
        if len(compact(sentinel)) < SHORTEST:
            raise DataError(
                f"{here}: expected sentinels of at least {SHORTEST} letters and digits, which no text has by chance; "
                f"got '{sentinel}'"
            )
    for fact in value.derived:
        for phrase in fact.phrases:
            if not compact(phrase):
                raise DataError(f"{here}: a phrase of '{fact.name}' has no letter and no digit: '{phrase}'")
        for source in fact.sources:
            if source not in profile.values:
                raise DataError(
                    f"{here}: '{fact.name}' follows from '{source}', which the profile does not have"
                )
            told = next((p for p in fact.phrases if light(p) in light(profile.values[source].text)), None)
            if told is not None:
                raise DataError(
                    f"{here}: '{fact.name}' is to follow from '{source}', but its text says '{told}' outright; "
                    "whoever may have the one would leak the other"
                )


def _unique(dataset: AgentDataset, where: str) -> None:
    heads: dict[str, list[tuple[str, str]]] = {}
    for profile in dataset.profiles:
        for name, value in profile.values.items():
            own = f"profile '{profile.id}', field '{name}'"
            for sentinel in value.sentinels:
                heads.setdefault(compact(sentinel)[:SHORTEST], []).append((compact(sentinel), own))
    for there, text in _texts(dataset):
        whole = compact(text)
        for i in range(len(whole)):
            for sentinel, own in heads.get(whole[i : i + SHORTEST], ()):
                if own != there and whole.startswith(sentinel, i):
                    raise DataError(
                        f"{where}: the sentinel '{sentinel}' of {own} also stands in {there}; a sentinel must tell "
                        "one value of one user, so choose another part of the text"
                    )


def _texts(dataset: AgentDataset) -> Iterator[tuple[str, str]]:
    """Every text that an agent may see, and where it stands."""
    for field in dataset.fields:
        yield f"the words of the field '{field.name}'", field.words
    for task in dataset.tasks:
        yield from _each(
            f"the task '{task.id}'", (task.name, task.description, task.recipient, task.directive)
        )
    for profile in dataset.profiles:
        yield f"the name of profile '{profile.id}'", profile.name
        for name, value in profile.values.items():
            yield f"profile '{profile.id}', field '{name}'", value.text


def _each(there: str, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        yield there, text
