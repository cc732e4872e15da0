"""What every attack that makes a model say a string shares: threat, knobs, objective, artifact."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from redteam.core.config import Checked, knob
from redteam.core.context import Context
from redteam.core.errors import CapabilityError
from redteam.core.types import Preset, Spec, ThreatModel
from redteam.llm.language import Goal, LanguageModel
from redteam.llm.search.state import State
from redteam.threats.strings.artifact import Strings
from redteam.threats.strings.target import LanguageTarget

THREAT = ThreatModel(
    kind="strings",
    target="language-model",
    access=("the prompt",),
    budget="prompts put to the target for each string, and tokens of the adversarial string",
    knowledge=("the target's tokenizer", "log-probabilities, as far as the target returns them"),
    goal="the model says a given string exactly, decoding greedily",
)
VERSION = "1"  # of every string attack and control
# Tokens beyond the target's own that an answer may have and still be read whole.
SLACK = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class StringGoal(Checked):
    """What binds every attack and control: how long the string may be and how often the target is asked."""

    length: int = knob(20, "tokens of the adversarial string", low=1)
    max_queries: int = knob(
        256, "candidates put to the target for each string, at most; a loss learnt token by token takes several "
        "requests for one", low=1,
    )  # fmt: skip
    request: str = knob("", "text before the adversarial string; {target} stands for the string to elicit")


def request_of(config: StringGoal, goal: Goal) -> str:
    """The text before the adversarial string."""
    return config.request.replace("{target}", goal.text)


def check_model(model: LanguageModel) -> None:
    """Refuse a model whose tokens are not known.

    Raises:
        CapabilityError: it has no tokenizer.
    """
    can = model.capabilities()
    if not can.tokenizer:
        why = can.reasons.get("tokenizer", "none is configured")
        raise CapabilityError(
            f"a search needs the target's tokenizer ({why}); name one with --target-tokenizer"
        )


@dataclass
class Row:
    """One string's outcome, before it becomes a row of the artifact."""

    goal: Goal
    prompt: str
    initial: str
    state: State | None = None


# ---------------------------------------------------------------- artifact


def assemble(rows: Sequence[Row], config: StringGoal, notes: dict[str, Any], model: LanguageModel) -> Strings:
    """The artifact. A row without a state is a prompt that nothing was asked about."""
    blank = State(np.random.default_rng(0), found_at=(-1, -1, -1.0))
    states = [row.state or blank for row in rows]
    trace = [(i, *step) for i, state in enumerate(states) for step in state.trace]
    table = np.array(trace, np.float64).reshape(-1, 5)
    losses = [_loss_of(state) for state in states]
    # Where none is planned, the most that any string took: an area of its own, not one to compare runs by.
    most = (max((s.tokens for s in states), default=0), max((s.usd for s in states), default=0.0))
    caps = {
        "queries": config.max_queries, "tokens": getattr(config, "max_tokens", None) or most[0] or None,
        "usd": getattr(config, "max_usd", None) or most[1] or None,
    }  # fmt: skip
    return Strings(
        ids=tuple(r.goal.id for r in rows), targets=tuple(r.goal.text for r in rows),
        prompts=tuple(r.prompt for r in rows), initial=tuple(r.initial for r in rows),
        finish=tuple(s.finish for s in states),
        lengths=np.array([len(r.goal.tokens) for r in rows], np.int64),
        found=np.array([s.found is not None for s in states], bool),
        queries=np.array([s.queries for s in states], np.int64),
        tokens=np.array([s.tokens for s in states], np.int64), usd=np.array([s.usd for s in states], np.float64),
        queries_at=np.array([s.found_at[0] for s in states], np.int64),
        tokens_at=np.array([s.found_at[1] for s in states], np.int64),
        usd_at=np.array([s.found_at[2] for s in states], np.float64),
        proxy_queries=np.array([s.proxy_queries for s in states], np.int64),
        loss=np.array([v if math.isfinite(v) else math.nan for v in losses], np.float64),
        trace={
            "string": table[:, 0].astype(np.int64), "queries": table[:, 1].astype(np.int64),
            "tokens": table[:, 2].astype(np.int64), "usd": table[:, 3], "loss": table[:, 4],
        },
        notes={
            "caps": caps, "plain": [request_of(config, r.goal) for r in rows], "model": model.fingerprint(),
            **{name: [getattr(s, name) for s in states] for name in ("requests", "cut", "unsent")}, **notes,
        },
    )  # fmt: skip


def _loss_of(state: State) -> float:
    """The exact loss of the prompt that is handed in; not a number where none is known."""
    if state.found is not None:
        return math.nan if state.found_loss is None else state.found_loss
    return state.best.loss.value if state.best and state.best.loss.kind == "exact" else math.nan


# What each preset of a string attack and of its controls is put to, so that alone they meet the same target.
TARGETS: dict[str, dict[str, Any]] = {
    "default": {"template": "chat", "strings": 30, "target_tokens": 8},
    "smoke": {"strings": 2, "target_tokens": 4},
    "cpu": {"model": "gguf:smollm2", "strings": 30, "target_tokens": 8},
    "paper": {"model": "openai:gpt-3.5-turbo-instruct-0914"},
}


def string_spec(
    name: str,
    run: Callable[[LanguageTarget, Any, Context], Strings],
    config: type = StringGoal,
    presets: Mapping[str, StringGoal] | None = None,
    **more: Any,
) -> Spec:
    """The `SPEC` of a string attack or a control. presets: configs other than the default. more: further fields."""
    configs = dict.fromkeys(TARGETS, config()) | (presets or {})
    return Spec(
        name=name, kind="attack", version=VERSION, config=config, run=run, source="hayase2024gcq", threat=THREAT,
        presets={title: Preset(config=configs[title], target=target) for title, target in TARGETS.items()}, **more,
    )  # fmt: skip


def plain(target: LanguageTarget, config: StringGoal, ctx: Context) -> Strings:
    """The request for each string and no adversarial one; nothing is asked of the target."""
    requests = [(goal, request_of(config, goal)) for goal in target.goals]
    return assemble([Row(goal, text, text) for goal, text in requests], config, {}, target.model)
