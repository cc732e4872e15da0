"""A scripted language model, adversarial strings for it, and a run folder of them, all made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from redteam.core.errors import CapabilityError
from redteam.core.hashing import digest_json
from redteam.core.record import Cell, Cost, DefensePlugin, Metric, Plugin, Record, TaskInfo
from redteam.core.store import Store
from redteam.data.nouns import TextDataset
from redteam.llm.language import Capabilities, Completion, NextToken, Sampling, Scores
from redteam.threats.strings.artifact import Strings
from redteam.threats.strings.scorer import ScoreSettings, measure
from tests.conftest import context
from tests.leaderboards.helpers import ENVIRONMENT

TEXTS = (
    "The kettle sings at noon.",
    "Seven red boats drift past the quiet mill.",
    "Paper lanterns line the harbour road from the old lighthouse to the market square.",
    "Blue doors stay open.",
    "Rain taps the tin roof, and nobody in the long low house minds it one bit tonight.",
    "A small fox waits by the gate.",
)
BENIGN = ("Name a fruit.", "What is two and two?", "Write a line about tea.", "Say hello.")
SHIELD = DefensePlugin(name="perplexity-filter", version="1", config={"quantile": 0.99})


class Scripted:
    """Says what its script says. script: prompt to its answers by sample, the last one for all later.

    An answer is the text, or (text, finish). Words are tokens. asked: every (prompt, sampling).
    """

    kind = "language-model"
    vocabulary = np.zeros(0, np.int64)

    def __init__(
        self, script: Mapping[str, Sequence[Any]], template: Any = "raw", tokenizer: bool = True
    ) -> None:
        self.script, self.template, self.tokenizer = script, template, tokenizer
        self.asked: list[tuple[str, Sampling]] = []
        self._seen: dict[str, int] = {}

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        out = []
        for prompt in prompts:
            self.asked.append((prompt, sampling))
            told = self.script.get(prompt, ["I would rather talk about the weather."])
            place = self._seen.get(prompt, 0)
            self._seen[prompt] = place + 1
            answer = told[min(place, len(told) - 1)]
            text, finish = answer if isinstance(answer, tuple) else (answer, "stop")
            counts = {"tokens_in": len(prompt.split()), "tokens_out": len(text.split())}
            out.append(Completion(text=text, finish=finish, **counts))
        return out

    def tokenize(self, text: str) -> list[int]:
        if not self.tokenizer:
            raise CapabilityError("no tokenizer")
        return [sum(map(ord, word)) for word in text.split()]

    def target_ids(self, target: str) -> list[int]:
        return self.tokenize(target)

    def encode(self, prompt: str) -> list[int]:
        return self.tokenize(prompt)

    def detokenize(self, ids: Sequence[int]) -> str:
        raise CapabilityError("words cannot be told from their sums")

    def score(self, prompts: Sequence[str], target: str) -> list[Scores]:
        raise CapabilityError("no log-probabilities")

    def next_token(self, prompt: str, answer: Sequence[int], *, k: int, bias: Any = None) -> NextToken:
        raise CapabilityError("no log-probabilities")

    def capabilities(self) -> Capabilities:
        return Capabilities(tokenizer=self.tokenizer)

    def fingerprint(self) -> dict[str, Any]:
        return {"model": "scripted"}


def dataset(texts: Sequence[str] = TEXTS) -> TextDataset:
    ids = tuple(f"s{i}" for i in range(len(texts)))
    return TextDataset("harmless", ids, tuple(texts), "made in the tests", "none needed", benign=BENIGN)


def strings(texts: Sequence[str] = TEXTS, **parts: Any) -> Strings:
    """A search of up to 100 queries that says it found all but the last string, at 1, 12, 23, ..."""
    n = len(texts)
    found = np.arange(n) < n - 1
    at = np.where(found, 1 + 11 * np.arange(n), -1)
    fields: dict[str, Any] = {
        "ids": tuple(f"s{i}" for i in range(n)), "targets": tuple(texts),
        "prompts": tuple(f"adv {i}" for i in range(n)), "initial": tuple(f"init {i}" for i in range(n)),
        "finish": ("stop",) * n, "lengths": np.array([len(t.split()) for t in texts]), "found": found,
        "queries": np.where(found, at, 100), "tokens": np.where(found, 40 * at, 4000),
        "usd": np.zeros(n), "queries_at": at, "tokens_at": np.where(found, 40 * at, -1),
        "usd_at": np.where(found, 0.0, -1.0), "proxy_queries": np.full(n, 256),
        "loss": np.where(found, 0.5 + np.arange(n), np.nan),
        "trace": {
            "string": np.repeat(np.arange(n), 3), "queries": np.tile([1, 9, 30], n),
            "tokens": np.tile([40, 360, 1200], n), "usd": np.zeros(3 * n),
            "loss": (np.array([[30.0, 12.5, 3.0]]) + np.arange(n)[:, None]).ravel(),
        },
        "notes": {"caps": {"queries": 100, "tokens": 4000, "usd": None}, "expand_policy": "once"},
    }  # fmt: skip
    return Strings(**{**fields, **parts})


def model(
    artifact: Strings, exact: Sequence[Sequence[bool]], initial: Sequence[bool] = (), **kw: Any
) -> Scripted:
    """A model that says target i in repeat j if exact[i][j], and from the initial prompt if initial[i]."""
    script: dict[str, list[Any]] = {p: ["Fine."] for p in BENIGN}
    for i, target in enumerate(artifact.targets):
        script[artifact.prompts[i]] = [f" {target} So." if hit else "No idea." for hit in exact[i]]
        script[artifact.initial[i]] = [target if i < len(initial) and initial[i] else "Hm."]
    return Scripted(script, **kw)


def cell(
    attack: str = "gcq", *, seed: int = 0, defenses: Sequence[DefensePlugin] = (), **settings: Any
) -> Cell:
    config = {"max_queries": 100, "length": 20, "buffer": 8, **settings}
    data = dataset()
    return Cell(
        threat="strings", knowledge="adaptive", seed=seed, defenses=tuple(defenses),
        task=TaskInfo(dataset=data.name, digest=data.digest, target="language-model", model="tiny:",
                      config={"template": "raw", "dtype": "float32", "repeats": 3}),
        attack=Plugin(name=attack, version="1", config=config, digest=digest_json([attack, config])),
    )  # fmt: skip


def write_run(
    store: Path, made: Cell, artifact: Strings, clean: Scripted, target: Scripted | None = None,
    role: Any = "attack", **fields: Any,
) -> Record:  # fmt: skip
    """Score with scripted models and write the run as the runner does."""
    scored = measure(artifact, dataset(), clean, target or clean, ScoreSettings(), context())
    metrics = [Metric.of(k, e) for k, e in scored.metrics.items()]
    metrics += [Metric.of(k, e, group) for (k, group), e in scored.grouped.items()]
    files = Store(store)
    record = Record(
        id=made.id, status="ok", role=role, source="measured", cell=made, metrics=tuple(metrics),
        flags=scored.flags, environment=ENVIRONMENT, created=datetime(2026, 1, 2, tzinfo=UTC),
        cost=Cost(wall_s=10.0, cpu_s=9.0, stages={"search": 7.5}, queries=700, tokens_in=24000, tokens_out=900),
        artifact=files.save_artifact(made.id, artifact), evidence=files.save_evidence(made.id, scored.evidence),
    )  # fmt: skip
    record = record.model_copy(update=fields)
    files.save_record(record)
    return record
