"""Moderation classifiers: text in, flags out; the target of suffixes that slip a text past a filter."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from redteam.core import registry
from redteam.core.context import Context
from redteam.core.record import Cell
from redteam.core.scored import Scored
from redteam.core.threat import TableLayout, TargetType, Tiny, Work
from redteam.data.nouns import TextDataset
from redteam.data.texts import load_texts
from redteam.threats.moderation.artifact import Suffixes
from redteam.threats.moderation.scorer import ScoreSettings, enforce, measure, rescore
from redteam.threats.moderation.target import SPEC, ModerationTarget, configure, pinned

_COUNT: dict[str, Callable[[str], Sequence[Any]]] = {"words": str.split, "characters": list}


def _score(
    artifact: Suffixes, cell: Cell, access: Sequence[str], dataset: TextDataset, target: ModerationTarget,
    defended: ModerationTarget, ctx: Context,
) -> Scored:  # fmt: skip
    settings = ScoreSettings(repeats=target.config.repeats, benign=target.config.benign)
    return measure(artifact, target.texts, defended.classifier, settings, ctx)


def _work(jobs: Sequence[Any], rebuild: Callable[..., Any], ctx: Context) -> Work:
    """Texts put to the classifier at most. One behind a wire is not asked, so no rate is known of it."""
    items: dict[str, float] = {}
    target: ModerationTarget | None = None
    for job in jobs:
        _, target, config = rebuild(job)
        name = registry.get("attack", job.cell.attack.name).name
        items[name] = items.get(name, 0.0) + len(target.train) * config.max_queries
        items["score"] = items.get("score", 0.0) + 3 * target.config.repeats * len(target.texts)
    assert target is not None
    rate = None if target.config.model.startswith("openai:") else _rate(target)
    return Work(items, "texts put to the classifier, at most", rate)


def _rate(target: ModerationTarget) -> float:
    texts = list(target.texts.texts)[:16]
    start = time.perf_counter()
    target.undefended.classify(texts)
    return len(texts) / (time.perf_counter() - start)


def _enforce(
    artifact: Suffixes, config: Mapping[str, Any], access: Sequence[str], target: ModerationTarget
) -> None:
    enforce(artifact, config, target.texts, target.split, _COUNT.get(str(config.get("alphabet"))))


def _tiny(ctx: Context) -> ModerationTarget:
    dataset = load_texts("moderated-topics")
    return ModerationTarget(dataset, configure(dataset, {"strings": 2}), ctx)


def _use(target: ModerationTarget, ctx: Context) -> None:
    (verdict,) = target.classifier.classify(["What is two and two?"])
    assert verdict.finish == "stop"


TEXT_CLASSIFIER = TargetType(
    spec=SPEC, artifact=Suffixes, dataset="moderated-topics", prefix="target-",
    flags={"model": "target", "strings": "strings"}, load=lambda name, source: load_texts(name),
    configure=configure, pinned=pinned, enforce=_enforce, score=_score, rescore=rescore, work=_work,
    wrap=lambda target, spec, config, ctx: target.behind(spec.run(target.classifier, config, ctx)),
    report="redteam.threats.moderation.report:render",
    layout=TableLayout(
        columns=("evasion", "base_evasion", "random_evasion", "evasion_lift"), budget="max_queries"
    ),
    tiny=Tiny(
        make=_tiny, knobs={"max_queries": 20, "length": 6}, untouched=lambda target: str(target.texts.digest), use=_use,
        uncounted=2,  # the first look at each of its two texts
    ),
)  # fmt: skip
