"""Agents: an assistant with a user's data, and third parties that talk to it; the target of context hijacking."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pandas as pd

from redteam.core.context import Context
from redteam.core.pairing import Pairing
from redteam.core.record import Cell
from redteam.core.scored import Scored
from redteam.core.stats import Estimate
from redteam.core.threat import TableLayout, TargetType, Tiny, Work
from redteam.llm.opening import content_named
from redteam.threats.agents.artifact import Scripts
from redteam.threats.agents.data.load import load_agents
from redteam.threats.agents.models import RULES, open_agent_model
from redteam.threats.agents.nouns import Agent, AgentDataset, Script, Session
from redteam.threats.agents.play import play
from redteam.threats.agents.scorer import ScoreSettings, enforce, measure, paired, rescore
from redteam.threats.agents.target import SPEC, AgentTarget, configure, pinned

Tables = Mapping[str, pd.DataFrame]
_REMOTE = ("openai:", "llama:")


def _score(
    artifact: Scripts, cell: Cell, access: Sequence[str], dataset: AgentDataset, target: AgentTarget,
    defended: AgentTarget, ctx: Context,
) -> Scored:  # fmt: skip
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
    few = target.questions[: target.config.batch]
    scripts = [Script(question=q, sessions=(Session(task=q.task, messages=("What is it?",)),)) for q in few]
    play(target.undefended, target.dataset, scripts, target.ctx)
    start = time.perf_counter()
    play(target.undefended, target.dataset, scripts, target.ctx)
    return len(few) / max(time.perf_counter() - start, 1e-6)


def _enforce(
    artifact: Scripts, config: Mapping[str, Any], access: Sequence[str], target: AgentTarget
) -> None:
    enforce(artifact, config, access, target.questions, target.dataset)


_profiles = cache(load_agents)


def _tiny(ctx: Context) -> AgentTarget:
    dataset = _profiles("profiles")
    return AgentTarget(
        dataset, configure(dataset, {"profiles": 1, "fields": 4, "tasks": ("bank-loan",)}), ctx
    )


def _difference(ours: Tables, theirs: Tables) -> dict[str, Estimate]:
    return {name.removesuffix("_difference"): e for name, e in paired(ours, theirs).items()}


def _use(target: AgentTarget, ctx: Context) -> None:
    assert isinstance(target.agent, Agent)
    (question, *_) = target.questions
    script = Script(question=question, sessions=(Session(task=question.task, messages=("What is it?",)),))
    assert len(play(target.agent, target.dataset, [script], ctx))


AGENT = TargetType(
    spec=SPEC, artifact=Scripts, dataset="profiles", prefix="target-",
    flags={
        "model": "target", "template": "template", "interface": "interface", "profiles": "profiles",
        "tasks": "tasks", "fields": "fields", "judge": "judge",
    },
    load=lambda name, source: load_agents(name), configure=configure, pinned=pinned,
    content=lambda text: "" if text == RULES else content_named(text),
    enforce=_enforce, score=_score, rescore=rescore, work=_work, report="redteam.threats.agents.report:render",
    pairing=Pairing(difference=_difference),
    layout=TableLayout(
        columns=("privacy", "utility", "leaks"), budget="turns", shown=("strategy",), together=True,
        behind="agent behind",
    ),
    tiny=Tiny(make=_tiny, untouched=lambda target: str(replace(target.dataset).digest), use=_use),
)  # fmt: skip
