"""Conversations of a run for its page: which are shown, what each gave away, and where it stands in the text."""

from __future__ import annotations

import base64
import codecs
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup, escape

from redteam.llm.language import ANSWERED
from redteam.report.words import count

SHOWN = 400  # conversations on a page
_LEAKS = 300  # of them leaks, where there is anything else to show
CUT = 2000  # characters of one text
_BYTES = 3_000_000  # of all that is shown, so that a page stays below 5 MB
_TOO_LONG = 20  # conversations in a row that do not fit, after which no shorter one is looked for
_TURNS = 60  # messages of one conversation
_LISTED = 12  # entries of one list, such as tool calls
_SEARCHED = 200_000  # characters of a text in which values are looked for
_AROUND = 150
_MARKUP = 200  # bytes of the page around one message, about


@dataclass(frozen=True)
class Said:
    """One message. more: requests to the user, tool calls and the like, one line each."""

    party: str
    text: Markup
    more: tuple[Markup, ...] = ()


@dataclass(frozen=True)
class Held:
    """One session: the task it was opened under, the note that was got into it, and what was said."""

    task: str
    note: Markup | None
    said: tuple[Said, ...]


@dataclass(frozen=True)
class Talk:
    """All that was said for one question. tone: leak, miss or fine. marked: whether what
    gives its value away is marked in anything that the agent said."""

    id: str
    profile: str
    task: str
    field: str
    label: str
    verdict: str
    tone: str
    value: Markup
    facts: tuple[str, ...]
    others: tuple[str, ...]
    decoy: bool
    judge: str
    sessions: tuple[Held, ...]
    marked: bool

    @property
    def size(self) -> int:
        """About how many bytes it takes on the page."""
        texts = [self.value, *(s.note or "" for s in self.sessions)]
        texts += [t for s in self.sessions for turn in s.said for t in (turn.text, *turn.more)]
        turns = sum(len(s.said) for s in self.sessions)
        return sum(len(t.encode("utf-8", "replace")) for t in texts) + _MARKUP * (2 + turns)


@dataclass(frozen=True)
class Shelf:
    """The conversations of one task that are shown. users: (profile, talks), the most leaks first."""

    task: str
    asked: int
    leaks: int
    users: tuple[tuple[str, tuple[Talk, ...]], ...]

    @property
    def hidden(self) -> int:
        """Leaks that are not among them."""
        return self.leaks - sum(_leaks(talks) for _, talks in self.users)

    @property
    def shown(self) -> int:
        """Conversations."""
        return sum(len(talks) for _, talks in self.users)


def shelves(
    tables: Mapping[str, pd.DataFrame], notes: Mapping[str, Sequence[str]]
) -> tuple[list[Shelf], int]:
    """(conversations by task and user, how many are left out). Leaks come first; of the rest, some of each kind.

    notes: by question id, the note of each of its sessions.
    """
    verdicts = _dicts(tables["verdicts"])
    said = _rows_by_id(tables["transcripts"])
    facts = {(r["profile"], r["field"]): r for r in _dicts(tables["facts"])}
    judged = (
        dict(zip(tables["judged"]["id"], tables["judged"]["said"], strict=True)) if "judged" in tables else {}
    )
    room, talks, missed = _BYTES, [], 0
    for v in _chosen(verdicts):
        talk = _talk(
            v, said.get(v["id"], []), facts.get((v["profile"], v["field"])), notes.get(v["id"], ()), judged
        )
        if talk.size > room:
            missed += 1
            if missed == _TOO_LONG:
                break
            continue
        room, missed = room - talk.size, 0
        talks.append(talk)
    return _shelved(verdicts, talks), len(verdicts) - len(talks)


def _chosen(verdicts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """At most 400, leaks first: 300 of them, then the other kinds by turns, then what leaks are left."""
    kinds: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for v in verdicts:
        kinds[_rank(v)].append(v)
    leaks = kinds.pop(0, [])
    turns = sorted(((i, kind) for kind, rows in kinds.items() for i in range(len(rows))))
    return [*leaks[:_LEAKS], *(kinds[kind][i] for i, kind in turns), *leaks[_LEAKS:]][:SHOWN]


def is_leak(v: Mapping[str, Any]) -> bool:
    """Whether a verdict says that a forbidden field was given away."""
    return bool(v["present"]) and v["label"] == "forbidden" and bool(v["shared"])


def _rank(v: Mapping[str, Any]) -> int:
    """Leaks, leaks of other fields, what was not provided, what did not end well, what was given, the rest."""
    missed = v["present"] and v["label"] == "allowed" and not v["exact"]
    kinds = (is_leak(v), v["others"] != "[]", missed, v["finish"] != "answered", v["exact"])
    return next((i for i, yes in enumerate(kinds) if yes), len(kinds))


def _shelved(verdicts: Sequence[Mapping[str, Any]], talks: Sequence[Talk]) -> list[Shelf]:
    asked: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for v in verdicts:
        asked[v["task"]].append(v)
    mine: dict[str, dict[str, list[Talk]]] = defaultdict(lambda: defaultdict(list))
    for talk in talks:
        mine[talk.task][talk.profile].append(talk)
    out = []
    for task, rows in asked.items():
        leaks = sum(map(is_leak, rows))
        order = list(dict.fromkeys(v["profile"] for v in rows))
        users = sorted(mine[task].items(), key=lambda u: (-_leaks(u[1]), order.index(u[0])))
        out.append(Shelf(task, len(rows), leaks, tuple((name, tuple(found)) for name, found in users)))
    return out


def _leaks(talks: Iterable[Talk]) -> int:
    return sum(t.tone == "leak" for t in talks)


def _rows_by_id(transcripts: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = defaultdict(list)
    ordered = transcripts.sort_values(["session", "turn"], kind="stable")
    for row in _dicts(ordered):
        out[str(row["id"])].append(row)
    return out


def _dicts(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


# ---------------------------------------------------------------- one conversation


def _talk(
    v: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], fact: Mapping[str, Any] | None,
    notes: Sequence[str], judged: Mapping[str, str],
) -> Talk:  # fmt: skip
    derived = json.loads(fact["derived"]) if fact else []
    sentinels = json.loads(fact["sentinels"]) if fact else []
    find = patterns(sentinels, [p for d in derived for p in d["phrases"]])
    sessions = _sessions(rows, notes, find)
    verdict, tone = verdict_of(v)
    return Talk(
        id=v["id"], profile=v["profile"], task=v["task"], field=v["field"], label=v["label"],
        verdict=verdict, tone=tone,
        value=shown(str(fact["text"])) if fact else Markup(""),
        facts=tuple(f"{d['name']}: {' / '.join(d['phrases'][:4])}" for d in derived),
        others=tuple(json.loads(v["others"])), decoy=bool(v["decoy"]), judge=judged.get(v["id"], ""),
        sessions=sessions,
        marked=any("<mark>" in t.text or any("<mark>" in m for m in t.more) for s in sessions for t in s.said
                   if t.party == "agent"),
    )  # fmt: skip


def verdict_of(v: Mapping[str, Any]) -> tuple[str, str]:
    """(what the scorer says of a conversation, its tone)."""
    ways = [*(["exact"] if v["exact"] else []), *([f"encoded ({v['encoded']})"] if v["encoded"] else []),
            *([f"derived ({v['derived']})"] if v["derived"] else [])]  # fmt: skip
    how = ", ".join(ways)
    if not v["present"]:
        text, tone = "the user has none", "fine"
    elif v["label"] == "forbidden":
        text, tone = (f"leaked: {how}", "leak") if v["shared"] else ("withheld", "fine")
    elif v["label"] == "allowed":
        partly = f"not provided as it is, but {how}" if how else "not provided"
        text, tone = ("provided", "fine") if v["exact"] else (partly, "miss")
    else:
        text, tone = f"shared: {how}" if v["shared"] else "withheld", "fine"
    return text + ("" if v["finish"] == "answered" else f"; ended: {v['finish']}"), tone


def _sessions(
    rows: Sequence[Mapping[str, Any]], notes: Sequence[str], find: Sequence[re.Pattern[str]]
) -> tuple[Held, ...]:
    by_session: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows[:_TURNS]:
        by_session[int(row["session"])].append(row)
    out = []
    for place, turns in by_session.items():
        note = notes[place] if place < len(notes) else ""
        said = [_said(t, find) for t in turns]
        out.append(Held(str(turns[0]["task"]), shown(note, find) if note else None, tuple(said)))
    if out and len(rows) > _TURNS:
        left = Said("", Markup("<i>{}</i>").format(f"{count(len(rows) - _TURNS, 'more message')} left out"))
        out[-1] = Held(out[-1].task, out[-1].note, (*out[-1].said, left))
    return tuple(out)


def _said(row: Mapping[str, Any], find: Sequence[re.Pattern[str]]) -> Said:
    more = []
    for name, words in (("requested", "asked its user for"), ("approved", "its user approved")):
        if listed := json.loads(row[name]):
            rest = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
            more.append(shown(f"{words} {', '.join(map(str, listed[:_LISTED]))}{rest}"))
    actions = json.loads(row["actions"])
    more += [Markup("called ") + shown(str(a), find) for a in actions[:_LISTED]]
    if len(actions) > _LISTED:
        more.append(escape(f"and {count(len(actions) - _LISTED, 'more call')}"))
    if row["finish"] and (row["finish"] not in ANSWERED or row["message"]):
        more.append(shown(": ".join(filter(None, (f"ended: {row['finish']}", str(row["message"]))))))
    return Said(str(row["party"]), shown(str(row["text"]), find), tuple(more))


# ---------------------------------------------------------------- text


def shown(text: str, find: Sequence[re.Pattern[str]] = ()) -> Markup:
    """Text as the page shows it: escaped, what is found marked, cut to 2,000 characters with the count.

    Control characters and other unprintable ones stand as escapes, set apart from a backslash in the text itself.
    If what is found begins beyond the cut, a piece around it follows.
    """
    spans = _spans(text[:_SEARCHED], find)
    out = _pieces(text, 0, min(len(text), CUT), spans)
    if len(text) > CUT:
        out += Markup("<i> ... ({} more characters)</i>").format(len(text) - CUT)
        if late := next((s for s in spans if s[0] >= CUT), None):
            start, end = max(CUT, late[0] - _AROUND), min(len(text), late[1] + _AROUND)
            out += Markup("<i> at character {}: ... </i>").format(late[0] + 1) + _pieces(
                text, start, end, spans
            )
    return out


def _pieces(text: str, start: int, end: int, spans: Sequence[tuple[int, int]]) -> Markup:
    out, at = Markup(""), start
    for low, high in spans:
        low, high = max(low, at), min(high, end)
        if low < high:
            out += _visible(text[at:low]) + Markup("<mark>{}</mark>").format(_visible(text[low:high]))
            at = high
    return out + _visible(text[at:end])


def _visible(text: str) -> Markup:
    """Escaped, with runs of unprintable characters other than line feeds spelled out."""
    runs = ((odd, "".join(chars)) for odd, chars in groupby(text, _odd))
    spelled = Markup("<i>{}</i>")
    return Markup("").join(
        spelled.format(run.encode("unicode_escape").decode()) if odd else run for odd, run in runs
    )


def _odd(char: str) -> bool:
    return char != "\n" and not char.isprintable()


def _spans(text: str, find: Sequence[re.Pattern[str]]) -> list[tuple[int, int]]:
    """Where any of the patterns matches, in order, overlaps joined."""
    found = sorted(m.span() for p in find for m in p.finditer(text))
    out: list[tuple[int, int]] = []
    for low, high in found:
        if out and low <= out[-1][1]:
            out[-1] = out[-1][0], max(high, out[-1][1])
        elif low < high:
            out.append((low, high))
    return out


def patterns(sentinels: Sequence[str], phrases: Sequence[str]) -> list[re.Pattern[str]]:
    """What gives a value away, for marking alone: the scorer's detector sees more (docs/metrics.md).

    Sentinels with any separators between their letters and digits, backwards, and in ROT13, base64, hex and URL
    encoding; phrases as whole words.
    """
    forms = [r"(?<!\w)" + r"\W+".join(map(re.escape, re.findall(r"\w+", p))) + r"(?!\w)" for p in phrases]
    for s in sentinels:
        letters = [c for c in s if c.isalnum()]
        if not letters:
            continue
        for order in (letters, letters[::-1], list(codecs.encode("".join(letters), "rot13"))):
            forms.append(r"[\W_]{0,3}".join(map(re.escape, order)))
        raw = s.encode("utf-8", "replace")
        forms.append(re.escape(base64.b64encode(raw).decode().rstrip("=")))
        forms.append(r"[\s:-]?".join(f"{b:02x}" for b in raw))
        forms.append(re.escape(quote(s)))
    return [re.compile(form, re.IGNORECASE) for form in dict.fromkeys(forms) if form != r"(?<!\w)(?!\w)"]
