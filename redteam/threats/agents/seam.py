"""Agents: an assistant with a user's data, and third parties that talk to it; the target of context hijacking."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from redteam.core.context import Context
from redteam.core.errors import ArtifactError
from redteam.core.record import Cell
from redteam.core.scored import Scored
from redteam.core.threat import DataSource, Kind, Work
from redteam.core.types import Spec
from redteam.llm.opening import content_named
from redteam.threats.agents.artifact import Scripts
from redteam.threats.agents.data.load import load_agents
from redteam.threats.agents.models import RULES, open_agent_model
from redteam.threats.agents.nouns import AgentDataset
from redteam.threats.agents.scorer import ScoreSettings, enforce, measure, rescore
from redteam.threats.agents.target import SPEC, AgentTarget, configure, make, pinned

_REMOTE = ("openai:", "llama:")


@lru_cache(maxsize=4)
def _load(name: str, source: DataSource) -> AgentDataset:
    return load_agents(name)


def _configure(dataset: AgentDataset, *layers: Mapping[str, Any]) -> Any:
    return configure(dataset, *layers)


def _wrap(target: AgentTarget, spec: Spec, config: Any, ctx: Context) -> AgentTarget:
    defended: AgentTarget = spec.run(target, config, ctx)
    return defended


def _score(
    artifact: Scripts, cell: Cell, access: Sequence[str], dataset: AgentDataset, target: AgentTarget,
    defended: AgentTarget, ctx: Context,
) -> Scored:  # fmt: skip
    if not isinstance(artifact, Scripts):
        raise ArtifactError(f"expected scripts, got an artifact of kind {artifact.kind}")
    enforce(artifact, cell.attack.config, access, target.questions, dataset)
    judge = None
    if target.config.judge is not None:
        judge = open_agent_model(replace(target.config, model=target.config.judge), ctx, role="judge")
    return measure(artifact, dataset, target.questions, defended.agent, ScoreSettings(judge=judge), ctx)


def _work(jobs: Sequence[Any], rebuild: Callable[..., Any], ctx: Context) -> Work:
    """Messages put to the agent at most. A model behind a wire is not asked, so no rate is known of it."""
    items: dict[str, float] = {}
    target: AgentTarget | None = None
    for job in jobs:
        _, target, config = rebuild(job)
        name = job.cell.attack.name
        items[name] = items.get(name, 0.0) + len(target.questions) * config.turns
    assert target is not None
    rate = None if target.config.model.startswith(_REMOTE) else _rate(target)
    return Work(items, "messages put to the agent, at most", rate)


def _rate(target: AgentTarget) -> float:
    """Messages answered a second here, from one timed batch."""
    from redteam.threats.agents.nouns import Script, Session
    from redteam.threats.agents.play import play

    few = target.questions[: target.config.batch]
    scripts = [Script(question=q, sessions=(Session(task=q.task, messages=("What is it?",)),)) for q in few]
    play(target.undefended, target.dataset, scripts, target.ctx)
    start = time.perf_counter()
    play(target.undefended, target.dataset, scripts, target.ctx)
    return len(few) / max(time.perf_counter() - start, 1e-6)


KIND = Kind(
    spec=SPEC, dataset="profiles", prefix="target-",
    flags={
        "model": "target", "template": "template", "interface": "interface", "profiles": "profiles",
        "tasks": "tasks", "fields": "fields", "judge": "judge",
    },
    load=_load, configure=_configure, make=make, pinned=pinned,
    content=lambda text: "" if text == RULES else content_named(text), wrap=_wrap, score=_score,
    rescore=rescore, work=_work,
)  # fmt: skip
