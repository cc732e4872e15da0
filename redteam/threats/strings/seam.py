"""Language models: prompts in, text out; the target of attacks that make a model say a given string."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from redteam.core import registry
from redteam.core.config import to_json
from redteam.core.context import Context
from redteam.core.pairing import Pairing
from redteam.core.record import Cell
from redteam.core.scored import Scored
from redteam.core.threat import TableLayout, TargetType, Tiny, Work
from redteam.data.nouns import TextDataset
from redteam.data.texts import load_texts
from redteam.llm.language import LanguageModel, Sampling
from redteam.llm.opening import content_named
from redteam.threats.strings import metrics
from redteam.threats.strings.artifact import Strings
from redteam.threats.strings.scorer import ScoreSettings, enforce, measure, paired, rescore
from redteam.threats.strings.target import SPEC, LanguageTarget, configure, pinned

Tables = Mapping[str, pd.DataFrame]
_REMOTE = ("openai", "llama")


def _score(
    artifact: Strings, cell: Cell, access: Sequence[str], dataset: TextDataset, target: LanguageTarget,
    defended: LanguageTarget, ctx: Context,
) -> Scored:  # fmt: skip
    config = target.config
    settings = ScoreSettings(repeats=config.repeats, benign=config.benign)
    scored = measure(
        artifact, dataset.first(config.strings), target.undefended, defended.model, settings, ctx
    )
    if cell.defenses and cell.knowledge == "oblivious":
        # What the search saw, it saw without the defence: that it does not come again is the defence at work.
        flags = (*(f for f in scored.flags if f != "not-reproduced"), "searched-undefended")
        return replace(scored, flags=flags)
    return scored


def _work(jobs: Sequence[Any], rebuild: Callable[..., Any], ctx: Context) -> Work:
    """Prompts put to the target at most. A model behind a wire is not asked, so no rate is known of it."""
    items: dict[str, float] = {}
    target: LanguageTarget | None = None
    for job in jobs:
        _, target, config = rebuild(job)
        spec = registry.get("attack", job.cell.attack.name)
        settings = to_json(config)
        strings = len(target.dataset.first(target.config.strings))
        # Attacks that ask nothing have no batch.
        searched = strings * settings["max_queries"] if "batch" in settings else 0
        items[spec.name] = items.get(spec.name, 0.0) + searched
        items["score"] = items.get("score", 0.0) + strings * (target.config.repeats + 2)
    assert target is not None
    rate = None if target.config.backend in _REMOTE else _rate(target)
    return Work({k: v for k, v in items.items() if v}, "prompts put to the target, at most", rate)


def _rate(target: LanguageTarget) -> float:
    """Prompts scored a second here, from one timed batch."""
    model, batch = target.undefended, target.config.batch
    prompts = [f"{text} {i}" for i, text in enumerate([target.goals[0].text] * batch)]
    model.score(prompts, target.goals[0].text)
    start = time.perf_counter()
    model.score(prompts, target.goals[0].text)
    return batch / (time.perf_counter() - start)


def _enforce(
    artifact: Strings, config: Mapping[str, Any], access: Sequence[str], target: LanguageTarget
) -> None:
    planned = target.dataset.first(target.config.strings)
    enforce(artifact, config, access, planned, target.undefended.tokenize)


def _tiny(ctx: Context) -> LanguageTarget:
    words = TextDataset("toy", ("a", "b"), ("Quiz 7!", "zebra"), "made for tests", "none needed")
    return LanguageTarget(words, configure(words, {}), ctx)


def _use(target: LanguageTarget, ctx: Context) -> None:
    assert isinstance(target.model, LanguageModel) and target.model.kind == "language-model"
    (answer,) = target.model.generate(["What is two and two?"], Sampling(max_tokens=4))
    assert answer.finish in ("stop", "length", "refused")


LANGUAGE_MODEL = TargetType(
    spec=SPEC, artifact=Strings, dataset="harmless-strings", prefix="target-",
    flags={
        "model": "target", "template": "template", "system": "system", "strings": "strings",
        "target_tokens": "target-tokens",
    },
    load=lambda name, source: load_texts(name), configure=configure, pinned=pinned, content=content_named,
    wrap=lambda target, spec, config, ctx: target.behind(spec.run(target.model, config, ctx)),
    enforce=_enforce, score=_score, rescore=rescore, work=_work,
    report="redteam.threats.strings.report:render",
    pairing=Pairing(difference=lambda ours, theirs: {"success": paired(ours, theirs)}), offers=metrics,
    layout=TableLayout(
        columns=("success", "success_found", "initial_success", "search_lift"), budget="max_queries",
        base=("said with no adversarial string, undefended", "base_success"),
    ),
    tiny=Tiny(
        make=_tiny, knobs={"max_queries": 40, "length": 6}, untouched=lambda target: str(target.dataset.digest),
        use=_use, fingerprint=lambda target: target.model.fingerprint(),
    ),
)  # fmt: skip
