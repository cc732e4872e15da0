"""Data sets of agents as JSON lines: one object a line, with its `type`. Nothing is lost on the way.

{"type": "meta", "format": 1, "name", "version", "rules_version", "source", "licence"}      first, once
{"type": "field", "name", "words", "kind", "sensitivity": 1 to 3, "optional": true or false}
{"type": "task", "id", "name", "description", "recipient", "directive"}
{"type": "rule", "task", "field", "label": allowed, forbidden or ambiguous, "reason": "" or text}
{"type": "profile", "id", "name", "tasks": [ids], "values": {field: {"text", "sentinels": [..],
    "derived": [{"name", "question", "phrases": [..], "sources": [..]}]}}}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from redteam.core.errors import DataError, nearest
from redteam.core.files import write_text
from redteam.core.hashing import canonical_json
from redteam.data import texts
from redteam.threats.agents import nouns
from redteam.threats.agents.data.check import check_dataset

FORMAT = 1
# Keys of each type of line and what they hold. `?`: may be left out.
_KEYS: Mapping[str, Mapping[str, str]] = {
    "meta": {
        "format": "number", "name": "text", "version": "text", "rules_version": "text", "source": "text",
        "licence": "text",
    },
    "field": {
        "name": "text", "words": "text", "kind": "text", "sensitivity": "number?", "optional": "true or false?",
    },
    "task": {
        "id": "text", "name": "text", "description": "text", "recipient": "text", "directive": "text?",
    },
    "rule": {"task": "text", "field": "text", "label": "text", "reason": "text?"},
    "profile": {"id": "text", "name": "text", "tasks": "list of texts", "values": "object"},
    "value": {"text": "text", "sentinels": "list of texts", "derived": "list of objects?"},
    "derived": {
        "name": "text", "question": "text", "phrases": "list of texts", "sources": "list of texts?",
    },
}  # fmt: skip
_LINES = ("meta", "field", "task", "rule", "profile")


def write_jsonl(dataset: nouns.AgentDataset, path: Path) -> None:
    """Write a data set, whole or not at all.

    Raises:
        DataError: its pairs are not grouped by user, in the order of the users. StorageError: no place to write.
    """
    write_text(path, "".join(canonical_json(row) + "\n" for row in _rows(dataset)))


def _rows(dataset: nouns.AgentDataset) -> Iterator[dict[str, Any]]:
    tasks = {p.id: [task for user, task in dataset.pairs if user == p.id] for p in dataset.profiles}
    if tuple((user, t) for user, own in tasks.items() for t in own) != dataset.pairs:
        raise DataError(
            f"'{dataset.name}': expected pairs grouped by user, in the order of the users; sort them before writing"
        )
    yield {
        "type": "meta", "format": FORMAT, "name": dataset.name, "version": dataset.version,
        "rules_version": dataset.rules.version, "source": dataset.source, "licence": dataset.licence,
    }  # fmt: skip
    yield from ({"type": "field", **asdict(f)} for f in dataset.fields)
    yield from ({"type": "task", **asdict(t)} for t in dataset.tasks)
    for task, labels in dataset.rules.labels.items():
        for name, label in labels.items():
            reason = dataset.rules.reasons.get(task, {}).get(name, "")
            yield {"type": "rule", "task": task, "field": name, "label": label, "reason": reason}
    for p in dataset.profiles:
        values = {name: asdict(value) for name, value in p.values.items()}
        yield {"type": "profile", "id": p.id, "name": p.name, "tasks": tasks[p.id], "values": values}


def read_jsonl(path: Path) -> nouns.AgentDataset:
    """Read a data set and check all of it. Values come in the order of the fields, labels in that of the lines.

    Raises:
        DataError: no such file, not UTF-8, not JSON, a line or a key that is not as above, or data that do not
            hold together (see `check`).
    """
    rows = _read(path)
    meta = rows["meta"]
    if len(meta) != 1:
        raise DataError(f"{path}: expected one line of type meta, found {len(meta)}")
    head = meta[0][1]
    fields = tuple(nouns.Field(**row) for _, row in rows["field"])
    tasks = tuple(nouns.Task(**row) for _, row in rows["task"])
    profiles = tuple(_profile(row, fields, where) for where, row in rows["profile"])
    dataset = nouns.AgentDataset(
        name=f"jsonl:{path}",
        version=head["version"],
        fields=fields,
        profiles=profiles,
        tasks=tasks,
        rules=_table(head["rules_version"], rows["rule"]),
        pairs=tuple((row["id"], task) for _, row in rows["profile"] for task in row["tasks"]),
        source=head["source"],
        licence=head["licence"],
    )
    check_dataset(dataset, str(path))
    if len(set(dataset.pairs)) < len(dataset.pairs):
        raise DataError(f"{path}: a profile names a task twice; name each once")
    return dataset


def _table(version: str, rules: Sequence[tuple[str, dict[str, Any]]]) -> nouns.RuleTable:
    labels: dict[str, dict[str, nouns.Label]] = {}
    reasons: dict[str, dict[str, str]] = {}
    for where, row in rules:
        task, name, label = row["task"], row["field"], row["label"]
        if label not in nouns.LABELS:
            raise DataError(f"{where}: expected a label of {', '.join(nouns.LABELS)}, got '{label}'")
        if name in labels.setdefault(task, {}):
            raise DataError(
                f"{where}: the field '{name}' is labelled twice in the task '{task}', {labels[task][name]} and "
                f"{label}; keep one"
            )
        labels[task][name] = cast("nouns.Label", label)
        if row.get("reason"):
            reasons.setdefault(task, {})[name] = row["reason"]
    return nouns.RuleTable(version=version, labels=labels, reasons=reasons)


def _profile(row: Mapping[str, Any], fields: Sequence[nouns.Field], where: str) -> nouns.Profile:
    values = {name: _value(value, f"{where}, field '{name}'") for name, value in row["values"].items()}
    ordered = {f.name: values.pop(f.name) for f in fields if f.name in values}
    return nouns.Profile(id=row["id"], name=row["name"], values={**ordered, **values})


def _value(row: Any, where: str) -> nouns.Value:
    checked = _checked("value", row, where)
    derived = []
    for fact in checked.get("derived", ()):
        one = _checked("derived", fact, where)
        lists = {key: tuple(one.get(key, ())) for key in ("phrases", "sources")}
        derived.append(nouns.Derived(name=one["name"], question=one["question"], **lists))
    return nouns.Value(text=checked["text"], sentinels=tuple(checked["sentinels"]), derived=tuple(derived))


# ---------------------------------------------------------------- lines


def _read(path: Path) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """The objects by type, each with where it stands and without its type."""
    out: dict[str, list[tuple[str, dict[str, Any]]]] = {kind: [] for kind in _LINES}
    # Not `splitlines`, which also breaks at characters that JSON strings may hold.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = parse(line, where)
        kind = row.pop("type", None) if isinstance(row, dict) else None
        if kind not in _LINES:
            raise DataError(
                f"{where}: expected an object with a type of {', '.join(_LINES)}, got {line[:60]!r}"
            )
        # Before its keys, which may be those of another format.
        if kind == "meta" and row.get("format") != FORMAT:
            raise DataError(
                f"{where}: expected format {FORMAT}, got {row.get('format')!r}; the file was written by another "
                "version of redteam, or not by redteam: write it again with this one"
            )
        out[kind].append((where, _checked(kind, row, where)))
    return out


def read_text(path: Path) -> str:
    """A UTF-8 file. Raises DataError: missing, not readable, or not UTF-8."""
    return texts.read_text(path, "the path of a data set of agents")


def parse(text: str, where: str) -> Any:
    """JSON without keys that stand twice, and without halves of surrogate pairs. Raises DataError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{where}: the key '{twice}' stands twice in one object; keep one")
        return out

    try:
        value = json.loads(text, object_pairs_hook=unique)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: expected text, got half of a surrogate pair (\\ud800 to \\udfff)"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected JSON ({error})") from None
    return value


def _checked(kind: str, row: Any, where: str) -> dict[str, Any]:
    """An object with the keys of its type and nothing else."""
    keys = _KEYS[kind]
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object ({kind}) with {', '.join(keys)}, got {row!r:.60}")
    for key in row:
        if key not in keys:
            raise DataError(f"{where}: unknown key '{key}' of a {kind}. {nearest(key, keys)}")
    for key, what in keys.items():
        if key not in row:
            if not what.endswith("?"):
                raise DataError(
                    f"{where}: a {kind} lacks '{key}' ({what}); found {', '.join(row) or 'nothing'}"
                )
        elif not _is(row[key], what.removesuffix("?")):
            raise DataError(
                f"{where}: expected {what.removesuffix('?')} under '{key}' of a {kind}, got {row[key]!r:.60}"
            )
    return row


def _is(value: Any, what: str) -> bool:
    match what:
        case "text":
            return isinstance(value, str)
        case "number":
            return isinstance(value, int) and not isinstance(value, bool)
        case "true or false":
            return isinstance(value, bool)
        case "object":
            return isinstance(value, dict)
        case "list of texts":
            return isinstance(value, list) and all(isinstance(v, str) for v in value)
        case _:
            return isinstance(value, list) and all(isinstance(v, dict) for v in value)
