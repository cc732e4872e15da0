"""Names of data sets of agents. Imports nothing heavy."""

from __future__ import annotations

AGENTS: dict[str, str] = {
    "profiles": "45 made-up users, 36 fields, 10 tasks and a rule table of what may flow; in the package",
    "profiles@SEED": "other users, drawn with another seed",
    "jsonl:PATH": "users, tasks and rules of your own, as `redteam export agents` writes them",
    "privacylens:PATH": "your own copy of a PrivacyLens-style JSON file",
}


def claimed(name: str) -> str | None:
    """What a name means to agents alone, in words; None if it means nothing to them."""
    ours = name.partition("@")[0] in AGENTS or name.startswith(("jsonl:", "privacylens:"))
    return "a set of users for agents" if ours else None
