"""The scorer of moderation suffixes: it asks afresh, agrees with itself, and takes nothing on the attack's word."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from redteam.core.artifacts import load
from redteam.core.errors import ArtifactError, BudgetExceededError
from redteam.data.nouns import TextDataset
from redteam.llm.language import Verdict
from redteam.threats.moderation.artifact import Suffixes
from redteam.threats.moderation.scorer import ScoreSettings, enforce, measure, rescore


class Scripted:
    """Flags a text unless it holds the word `please`; the score of `rude` falls with it."""

    kind = "text-classifier"
    categories = ("rude", "loud")

    def __init__(self) -> None:
        self.asked: list[str] = []

    def classify(self, texts):
        self.asked += texts
        judged = [(t, "please" in t) for t in texts]
        return [Verdict(scores=np.array([0.1 if ok else 0.9, 0.2]), flagged=not ok) for t, ok in judged]

    def fingerprint(self):
        return {"backend": "scripted"}


TEXTS = ("do it", "go", "please stay")
DATA = TextDataset("tests", ("a", "b", "c"), TEXTS, "tests", "none", benign=("please", "x"))
SPLIT = ("train", "train", "train")


def artifact(**changes: object) -> Suffixes:
    zeros = np.zeros(3)
    parts: dict[str, object] = {
        "ids": DATA.ids, "texts": DATA.texts, "sent": tuple(f"{t} please" for t in DATA.texts),
        "control": tuple(f"{t} xyzxyz" for t in DATA.texts), "split": SPLIT, "finish": ("stop",) * 3,
        "queries": np.array([5, 6, 7]), "score_before": zeros, "score_after": zeros,
    }  # fmt: skip
    return Suffixes(**{**parts, **changes})  # type: ignore[arg-type]


def test_measure_asks_afresh_and_rescore_gives_the_same_digits(ctx, tmp_path):
    classifier = Scripted()
    scored = measure(artifact(), DATA, classifier, ScoreSettings(repeats=2, benign=1), ctx)
    assert len(classifier.asked) == 3 * 3 * 2 + 1
    m = scored.metrics
    assert (m["evasion"].value, m["base_evasion"].value, m["random_evasion"].value) == (
        1,
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
    )
    assert m["score_drop"].value == pytest.approx(0.8 * 2 / 3)
    assert m["benign_pass"].value == 1
    assert list(scored.evidence["outcomes"])[-2:] == ["score.rude", "score.loud"]
    assert ("evasion", "split=train") in scored.grouped
    scored.evidence["outcomes"].to_parquet(tmp_path / "o.parquet")
    artifact().save(tmp_path / "a.npz")
    tables = {"outcomes": pd.read_parquet(tmp_path / "o.parquet"), "benign": scored.evidence["benign"]}
    again = rescore(load(tmp_path / "a.npz"), tables)
    assert (again.metrics, again.grouped, again.flags) == (scored.metrics, scored.grouped, scored.flags)


def test_flags(ctx):
    def flags(**changes: object) -> tuple[str, ...]:
        return measure(artifact(**changes), DATA, Scripted(), ScoreSettings(repeats=1, benign=2), ctx).flags

    assert flags(sent=DATA.texts) == ("high-base-rate", "no-suffix-effect", "defence-blocks-benign")
    assert "errors-in-denominator" in flags(finish=("stop", "error", "stop"))
    many = tuple(f"text {i}" for i in range(30))
    data = TextDataset("many", many, many, "tests", "none")
    sent = tuple(f"{t} please" for t in many)
    parts = {
        "ids": many, "texts": many, "split": ("train",) * 30, "finish": ("stop",) * 30, "queries": np.ones(30, int),
        "score_before": np.ones(30), "score_after": np.ones(30), "sent": sent,
    }  # fmt: skip
    random = tuple(f"{t} no" for t in many)
    good = measure(artifact(**parts, control=random), data, Scripted(), ScoreSettings(), ctx)
    assert good.flags == ()
    noise = measure(artifact(**parts, control=sent), data, Scripted(), ScoreSettings(), ctx)
    assert noise.flags == ("noise-does-the-work",)


def test_an_error_of_the_classifier_is_an_outcome(ctx):
    class Broken(Scripted):
        def classify(self, texts):
            lost = {"scores": np.full(2, np.nan), "flagged": True, "finish": "timeout"}
            return [replace(v, **lost) for v in super().classify(texts)]

    scored = measure(artifact(), DATA, Broken(), ScoreSettings(repeats=1, benign=0), ctx)
    assert scored.metrics["evasion_worst"].value == 0 and scored.metrics["evasion_best"].value == 1
    assert "score_drop" not in scored.metrics and "errors-in-denominator" in scored.flags


@pytest.mark.parametrize(
    ("changes", "config", "split", "message"),
    [
        ({"ids": ("a", "b", "z")}, {}, SPLIT, "may leave none out"),
        ({"texts": ("do IT", "go", "please stay")}, {}, SPLIT, "change none"),
        ({"sent": ("dont please", "go please", "please stay")}, {}, SPLIT, "sent: 'a' does not begin"),
        ({"control": ("do it", "go x", "please stay y")}, {}, SPLIT, "has no random suffix"),
        ({"queries": np.array([5, 6, 70])}, {"max_queries": 69}, SPLIT, "took 70 queries; its budget is 69"),
        ({"split": ("validation", "train", "train")}, {}, SPLIT, "as it likes"),
        (
            {"sent": ("do it please sir", "go please", "please stay please")}, {"length": 1}, SPLIT,
            "sent: the suffix of 'a' has 2",
        ),
        ({"control": ("do it x x", "go x", "please stay x")}, {"length": 1}, SPLIT, "control: the suffix of 'a' has 2"),
        (
            {"split": ("validation", "train", "train"), "sent": ("do it now", "go please", "please stay please")},
            {}, ("validation", "train", "train"), "is not universal",
        ),
    ],
)  # fmt: skip
def test_the_scorer_takes_nothing_on_the_attacks_word(changes, config, split, message):
    with pytest.raises(BudgetExceededError, match=message):
        enforce(artifact(**changes), config, DATA, split, str.split)
    enforce(artifact(), {"max_queries": 7, "length": 1}, DATA, SPLIT, str.split)
    universal = ("validation", "train", "train")
    enforce(artifact(split=universal), {}, DATA, universal)


def test_evidence_of_other_texts_is_refused(ctx):
    scored = measure(artifact(), DATA, Scripted(), ScoreSettings(repeats=1), ctx)
    with pytest.raises(ArtifactError, match="is missing"):
        rescore(artifact(), {})
    with pytest.raises(ArtifactError, match="of other texts"):
        rescore(artifact(finish=("stop", "stop", "error")), scored.evidence)
    with pytest.raises(ArtifactError, match="as many verdicts"):
        rescore(artifact(), {"outcomes": scored.evidence["outcomes"].iloc[1:]})
