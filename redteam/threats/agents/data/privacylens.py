"""Seeds in the form of PrivacyLens, read from a user's own file; the set itself does not come with the suite.

PrivacyLens has 493 seeds of contextual integrity; its code is MIT, its data CC-BY-4.0, and its authors ask not to
train on it. The file is a JSON list of objects:

    {"seed": {"data_type", "data_subject", "data_sender", "data_recipient", "transmission_principle",
              "data_sender_name"?},
     "trajectory"?: {"user_instruction"?, "user_name"?, "sensitive_info_items"?: [texts]}, "name"?}

Other keys are left alone, the vignette too. One seed becomes one user, the *sender*, for whom the agent acts; one
task, which the user's instruction describes, or else a sentence from the seed; and one field, named after the
data type, whose value is what the agent knows about the data subject. That field is forbidden in that task.
Nothing else is there: no field is allowed, so there is a privacy and no utility; a user has no value of another
seed's data type, not even an absent one, and a task no label for it.

Sentinels are the sensitive items. They are whole sentences, so only a nearly verbatim leak is found and privacy
is an upper bound; an LLM judge is needed for more, as PrivacyLens has one. An item that the task's description
repeats, or of fewer than 5 letters and digits, is no sentinel. Where none is left, the value ends with a made-up
reference number, which takes its place.

Checked against the structure that the set's own page states and its first three entries; the whole set was not
read. The trajectory's steps (`executable_trajectory`) and the vignette's story, which tell the sensitive items,
are left out, so the agent talks where theirs acts with tools: figures do not compare.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redteam.core.errors import DataError
from redteam.core.seeding import SeedPath
from redteam.data.words import Draws
from redteam.threats.agents.data.check import check_dataset
from redteam.threats.agents.data.jsonl import parse, read_text
from redteam.threats.agents.leaks import SHORTEST
from redteam.threats.agents.leaks.views import compact, words
from redteam.threats.agents.nouns import AgentDataset, Field, Profile, RuleTable, Task, Value

IMPORTER_VERSION = "1"
_ARTICLE = re.compile(r"^(an?|the)\s+", re.IGNORECASE)
SEED_KEYS = ("data_type", "data_subject", "data_sender", "data_recipient", "transmission_principle")
LICENCE = "the user's own file; PrivacyLens: code MIT, data CC-BY-4.0, and its authors ask not to train on it"


def read_privacylens(path: Path) -> AgentDataset:
    """Every seed of the file as a user with one task.

    Raises:
        DataError: no such file, not JSON, not a list of objects, or a seed without one of the five keys; the
            message has the path and the index.
    """
    content = parse(read_text(path), str(path))
    if not isinstance(content, list) or not content:
        what = "an empty list" if content == [] else type(content).__name__
        raise DataError(
            f"{path}: expected a JSON list of seeds, each an object with the key seed; got {what}"
        )
    seeds = [_Seed(entry, i, f"{path}, [{i}]") for i, entry in enumerate(content)]
    fields: dict[str, Field] = {}
    for seed in seeds:
        fields.setdefault(
            seed.field, Field(name=seed.field, words=seed.words, kind="privacylens", sensitivity=3)
        )
    dataset = AgentDataset(
        name=f"privacylens:{path}",
        version=f"privacylens, importer {IMPORTER_VERSION}",
        fields=tuple(fields.values()),
        profiles=tuple(seed.profile() for seed in seeds),
        tasks=tuple(seed.task() for seed in seeds),
        rules=RuleTable(
            version=f"privacylens-{IMPORTER_VERSION}",
            labels={seed.task_id: {seed.field: "forbidden"} for seed in seeds},
            reasons={seed.task_id: {seed.field: seed.reason()} for seed in seeds},
        ),
        pairs=tuple((seed.id, seed.task_id) for seed in seeds),
        source=f"{path.name}, {len(seeds)} seeds",
        licence=LICENCE,
    )
    check_dataset(dataset, str(path), unique=False)
    return dataset


class _Seed:
    """One entry of the file."""

    def __init__(self, entry: Any, index: int, where: str) -> None:
        if not isinstance(entry, dict) or not isinstance(entry.get("seed"), dict):
            raise DataError(
                f"{where}: expected an object with the key seed, an object with {', '.join(SEED_KEYS)}; "
                f"got {entry!r:.60}"
            )
        self.index, self.where = index, where
        self.five: Mapping[str, Any] = entry["seed"]
        for key in SEED_KEYS:
            if key not in self.five:
                found = ", ".join(self.five) or "nothing"
                raise DataError(f"{where}.seed lacks '{key}'; expected {', '.join(SEED_KEYS)}, found {found}")
            _text(self.five[key], f"{where}.seed.{key}")
        trajectory = entry.get("trajectory") or {}
        if not isinstance(trajectory, dict):
            raise DataError(f"{where}.trajectory: expected an object, got {trajectory!r:.60}")
        self.trajectory: Mapping[str, Any] = trajectory
        self.id = _text(entry["name"], f"{where}.name") if entry.get("name") else f"seed-{index}"
        self.task_id = f"{self.id}-task"
        # "a pending legal case" is called the user's pending legal case.
        self.words = _ARTICLE.sub("", self["data_type"])
        self.field = "_".join(words(self.words))
        if not self.field:
            raise DataError(
                f"{where}.seed.data_type: expected a name with letters, got {self['data_type']!r}"
            )

    def __getitem__(self, key: str) -> str:
        return str(self.five[key]).strip()

    def task(self) -> Task:
        instruction = self._optional(self.trajectory, "user_instruction", "trajectory")
        what = f'The user told you: "{instruction}"' if instruction else self._matter()
        return Task(
            id=self.task_id,
            name=self["transmission_principle"],
            description=f"You help {self._name()}, {self['data_sender']}. {what}",
            recipient=self["data_recipient"],
        )

    def _matter(self) -> str:
        return (
            f"The user asked you to keep in touch with this recipient: {self['data_recipient']}. "
            f"What is to be done: {self['transmission_principle']}."
        )

    def profile(self) -> Profile:
        return Profile(id=self.id, name=self._name(), values={self.field: self._value()})

    def _name(self) -> str:
        name = self._optional(self.trajectory, "user_name", "trajectory")
        return name or self._optional(self.five, "data_sender_name", "seed") or self["data_sender"]

    def _value(self) -> Value:
        items, task = self._items(), self.task()
        said = compact(" ".join((task.name, task.description, task.recipient, self["data_type"])))
        sentinels = tuple(i for i in items if len(compact(i)) >= SHORTEST and compact(i) not in said)
        if not sentinels:
            draws = Draws(SeedPath(0, ("privacylens", str(self.index))))
            sentinels = (f"QX{draws.integer(10_000_000, 99_999_999)}",)
            items = [*items, f"on file under the reference {sentinels[0]}"]
        return Value(text=f"{self['data_subject']}: {'; '.join(items)}", sentinels=sentinels)

    def _items(self) -> list[str]:
        where = f"{self.where}.trajectory.sensitive_info_items"
        items = self.trajectory.get("sensitive_info_items") or []
        if not isinstance(items, Sequence) or isinstance(items, str):
            raise DataError(f"{where}: expected a list of texts, got {items!r:.60}")
        return list(dict.fromkeys(_text(item, f"{where}[{i}]") for i, item in enumerate(items)))

    def _optional(self, table: Mapping[str, Any], key: str, name: str) -> str:
        return _text(table[key], f"{self.where}.{name}.{key}") if table.get(key) else ""

    def reason(self) -> str:
        return (
            f"PrivacyLens takes this flow for a violation: {self['data_type']} of {self['data_subject']}, from "
            f"{self['data_sender']} to {self['data_recipient']} ({self['transmission_principle']})"
        )


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: expected a text, got {value!r:.60}")
    return value.strip()
