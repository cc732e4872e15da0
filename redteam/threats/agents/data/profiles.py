"""Synthetic users for agents to act for: a seeded generator of the data set `profiles`.

45 users, 36 fields, 10 tasks, all of it made up here; the generator of the paper was never published (Bagdasarian
et al., CCS 2024; its sizes, 45 x 26 x 8, are remembered). Nothing is anybody's: phone numbers are of the 555-01xx
range kept for fiction, social security numbers begin with 9 and have a group that nobody is given, card numbers
fail the check digit, accounts are of a country ZZ, mail goes to a name that cannot exist, people and places are
built from syllables.

A value is drawn again until none of its sentinels, forwards or backwards, and no run of 80 % of one (what the
scorer still takes for a leak), occurs in another value of any user, in a user's name, or in the words of fields
and tasks; and none of its derived facts is told by another value of the same user or by those words. Each value
has a stream of its own. Of an optional field, half of the users (rounded down) have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from redteam.core.errors import ConfigError, DataError
from redteam.core.files import load_toml
from redteam.core.seeding import SeedPath
from redteam.data.words import Draws
from redteam.threats.agents.data.profile_values import (
    FOLDER,
    REFERENCE_DATE,
    Choice,
    Template,
    choose,
    computed,
    lexicon,
    luhn_valid,
)
from redteam.threats.agents.data.rules import read_rules
from redteam.threats.agents.data.taken import Facts, Taken
from redteam.threats.agents.nouns import AgentDataset, Derived, Field, Profile, Task, Value

GENERATOR_VERSION = "1"
PROFILES = 45
ABSENT = Value(text="none", sentinels=())
LICENCE = "MIT, written for redteam"
_ATTEMPTS = 200


@cache
def embedded_fields(folder: Path = FOLDER) -> tuple[Field, ...]:
    """The fields that the embedded users have.

    Raises:
        DataError: the file is missing or damaged.
    """
    return tuple(Field(name=name, **row) for name, row in _rows(folder / "agent-fields.toml", "fields"))


@cache
def embedded_tasks(folder: Path = FOLDER) -> tuple[Task, ...]:
    """The tasks that the embedded users have; each description begins with the date of today.

    Raises:
        DataError: the file is missing or damaged.
    """
    month = lexicon().lists["month"][REFERENCE_DATE.month - 1]
    today = f"Today is {REFERENCE_DATE.day} {month} {REFERENCE_DATE.year}. "
    rows = _rows(folder / "agent-tasks.toml", "tasks")
    return tuple(Task(id=name, **{**row, "description": today + row["description"]}) for name, row in rows)


def _rows(path: Path, key: str) -> list[tuple[str, dict[str, Any]]]:
    try:
        return list(load_toml(path)[key].items())
    except (ConfigError, KeyError, AttributeError) as error:
        raise DataError(f"embedded file {path} is missing or damaged ({error}); reinstall redteam") from error


def make_profiles(seed: int = 0, count: int = PROFILES, rules: Path | None = None) -> AgentDataset:
    """Draw users; every user has every task. rules: a rule table of your own (see `rules`).

    Raises:
        ConfigError: the rule table does not fit. DataError: `count` is not from 1 to 200.
    """
    if not 1 <= count <= 200:
        raise DataError(f"expected from 1 to 200 profiles, got {count}")
    fields, tasks = embedded_fields(), embedded_tasks()
    table = read_rules(rules, fields, tasks)
    profiles = _Generator(SeedPath(seed, ("profiles",)), fields, tasks).profiles(count)
    return AgentDataset(
        name="profiles" if seed == 0 else f"profiles@{seed}",
        version=f"{GENERATOR_VERSION}, as of {REFERENCE_DATE.isoformat()}, rules {table.version}",
        fields=fields,
        profiles=profiles,
        tasks=tasks,
        rules=table,
        pairs=tuple((p.id, t.id) for p in profiles for t in tasks),
        source=f"{count} made-up users, drawn with seed {seed} by generator {GENERATOR_VERSION}",
        licence=LICENCE,
    )


class _Generator:
    """Draws users one after the other and remembers every text so far."""

    def __init__(self, seeds: SeedPath, fields: tuple[Field, ...], tasks: tuple[Task, ...]) -> None:
        self.seeds, self.fields = seeds, fields
        self.templates = lexicon().templates
        self.told = [ABSENT.text, *(f.words for f in fields), *(f.name for f in fields)]
        self.told += [t for x in tasks for t in (x.name, x.description, x.recipient, x.directive)]
        self.taken = Taken()
        self.taken.add(self.told)

    def profiles(self, count: int) -> tuple[Profile, ...]:
        ids = [f"p{i:0{max(2, len(str(count)))}d}" for i in range(1, count + 1)]
        names = [self._name(i) for i in ids]
        absent = {f.name: self._absent(f.name, ids) for f in self.fields if f.optional}
        return tuple(
            Profile(
                id=i, name=name, values=self._values(i, {f for f, without in absent.items() if i in without})
            )
            for i, name in zip(ids, names, strict=True)
        )

    def _absent(self, field: str, ids: list[str]) -> set[str]:
        return set(Draws(self.seeds.child("absent", field)).pick_different(ids, len(ids) // 2))

    def _name(self, profile: str) -> str:
        for attempt in range(_ATTEMPTS):
            draws = Draws(self.seeds.child(profile, "name", attempt))
            family = lexicon().name("family", draws)
            if self.taken.free(family, (family,)):
                self.taken.add([family], (family,))
                return f"{draws.pick(lexicon().lists['given'])} {family}"
        raise DataError("no free name is left; draw fewer profiles")

    def _values(self, profile: str, absent: set[str]) -> dict[str, Value]:
        chosen: dict[str, Choice] = {}
        for field in self.fields:
            self._choose(field.name, profile, chosen)
        facts = Facts(self.told)
        return {
            f.name: ABSENT if f.name in absent else self._draw(f, profile, chosen, facts) for f in self.fields
        }

    def _choose(self, field: str, profile: str, chosen: dict[str, Choice]) -> Choice:
        if field not in chosen:
            template = self.templates[field]
            followed = self._choose(template.follows, profile, chosen).key if template.follows else ""
            draws = Draws(self.seeds.child(profile, field, "choice"))
            chosen[field] = choose(template, followed, draws)
        return chosen[field]

    def _draw(self, field: Field, profile: str, chosen: Mapping[str, Choice], facts: Facts) -> Value:
        for attempt in range(_ATTEMPTS):
            draws = Draws(self.seeds.child(profile, field.name, attempt))
            text, sentinels = lexicon().fill(chosen[field.name].text, draws)
            if field.kind == "card" and luhn_valid(text):
                continue
            derived = (*computed(field.name, text), *self._plain(field.name, chosen))
            value = Value(text=text, sentinels=sentinels, derived=derived)
            bare = [p for fact in derived for p in fact.phrases if p.isdigit()]
            # A year is met by chance.
            if any(1900 <= int(b) < 2100 for b in bare):
                continue
            if self.taken.free(text, sentinels, bare) and facts.free(value):
                self.taken.add([text], sentinels, bare)
                facts.add(value)
                return value
        raise DataError(f"no free value is left for '{field.name}'; draw fewer profiles")

    def _plain(self, field: str, chosen: Mapping[str, Choice]) -> tuple[Derived, ...]:
        """The plain fact of the choice, and the fields whose choice was tied to it."""
        template, choice = self.templates[field], chosen[field]
        if not choice.phrases:
            return ()
        sources = tuple(
            name for name in chosen if _follows(self.templates[name], chosen[name], field, choice)
        )
        fact = template.fact
        return (Derived(name=fact, question=template.question, phrases=choice.phrases, sources=sources),)


def _follows(template: Template, choice: Choice, field: str, followed: Choice) -> bool:
    return template.follows == field and bool(followed.key) and choice.when == followed.key


def with_rules(dataset: AgentDataset, path: Path) -> AgentDataset:
    """The same users under a rule table of your own.

    Raises:
        ConfigError: the table does not fit the data set's fields and tasks.
    """
    table = read_rules(path, dataset.fields, dataset.tasks)
    return replace(dataset, rules=table, version=f"{dataset.version}, with rules {table.version}")
