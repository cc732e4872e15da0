"""Users, tasks and rules for agents, by name: the embedded set, files of your own, and PrivacyLens seeds."""

from __future__ import annotations

from pathlib import Path

from redteam.core.errors import ConfigError, UnknownNameError
from redteam.threats.agents.data.jsonl import read_jsonl, write_jsonl
from redteam.threats.agents.data.names import AGENTS
from redteam.threats.agents.nouns import AgentDataset

__all__ = ["load_agents", "read_jsonl", "write_jsonl"]


def load_agents(name: str, rules: Path | None = None) -> AgentDataset:
    """A data set by name: a key of `names.AGENTS`, with the seed or the path filled in.

    rules: a rule table of your own instead of the set's (see `rules.read_rules`).

    Raises:
        UnknownNameError: no such name. ConfigError: a rule table that does not fit. DataError: a file that is
            missing or not what is expected.
    """
    kind, _, rest = name.partition(":")
    if kind == "jsonl" and rest:
        from redteam.threats.agents.data.profiles import with_rules

        dataset = read_jsonl(Path(rest).expanduser())
        return dataset if rules is None else with_rules(dataset, rules)
    if kind == "privacylens" and rest:
        from redteam.threats.agents.data.privacylens import read_privacylens

        if rules is not None:
            raise ConfigError(
                f"'{name}' takes no rule table: each seed brings its one rule; write it as JSON lines and edit those"
            )
        return read_privacylens(Path(rest).expanduser())
    return _profiles(name, rules)


def _profiles(name: str, rules: Path | None) -> AgentDataset:
    from redteam.threats.agents.data.profiles import make_profiles

    base, at, seed = name.partition("@")
    if base != "profiles" or (at and not (seed.isascii() and seed.isdigit())):
        raise UnknownNameError("data set of agents", name, AGENTS)
    return make_profiles(int(seed or 0), rules=rules)
