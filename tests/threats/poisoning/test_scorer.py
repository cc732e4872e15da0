"""The scorer against hand-counted tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.errors import ArtifactError, BudgetExceededError
from redteam.core.stats import Estimate
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.artifact import Poison
from redteam.threats.poisoning.metrics import OUTCOME_COLUMNS, poisoning_metrics
from redteam.threats.poisoning.scorer import changes, enforce_threat, measure, poisoned_training_set, rescore

# label, clean, triggered, base_clean, base_triggered; source 2, target 0
ROWS = [
    (0, 0, 0, 0, 0),  # the target's own images count towards no success
    (0, 0, 0, 0, 0),
    (1, 1, 0, 1, 1),
    (1, 1, 1, 1, 1),
    (2, 2, 0, 2, 2),
    (2, 2, 0, 2, 0),
    (2, 0, 0, 2, 2),
    (2, 2, 2, 2, 2),
]


def table(rows=ROWS, victims=1):
    found = [(v, i, *row) for v in range(victims) for i, row in enumerate(rows)]
    return pd.DataFrame(found, columns=list(OUTCOME_COLUMNS))


def test_metrics_counted_by_hand():
    m = {k: e.value for k, e in poisoning_metrics(table(), 2, 0).items()}
    assert m == pytest.approx({
        "cta": 7 / 8, "pta": 3 / 4, "trigger_lift": 3 / 4 - 1 / 4, "asr": 4 / 6, "ra": 2 / 6,
        "base_cta": 1.0, "base_pta": 1 / 4, "cta_drop": 1 / 8,
    })  # fmt: skip
    assert poisoning_metrics(table(), 2, 0)["pta"].n == 4
    all_to_one = poisoning_metrics(table(), -1, 0)
    assert all_to_one["pta"].value == pytest.approx(4 / 6) and all_to_one["pta"].n == 6


@given(st.permutations(range(len(ROWS))))
def test_row_order_does_not_matter(order):
    shuffled = table().iloc[list(order)]
    assert poisoning_metrics(shuffled, 2, 0) == poisoning_metrics(table(), 2, 0)


def test_victims_must_have_been_asked_the_same():
    with pytest.raises(ValueError, match="same images"):
        poisoning_metrics(table(victims=2).iloc[:-1], 2, 0)
    with pytest.raises(ValueError, match="source class 7"):
        poisoning_metrics(table(), 7, 0)


def poison(labels, **changes_):
    goal = {"trigger": triggers.make("1xl"), "source_class": 2, "target_class": 0, "budget": 3}
    return Poison(**{"targets": labels, **goal, **changes_})


def test_changes_list_every_changed_row(dataset):
    labels = dataset.train.labels.copy()
    labels[[2, 5]] = 0
    images = dataset.train.images[[5, 8, 11]].copy()
    images[:2] += 1
    found = changes(poison(labels, indices=np.array([5, 8, 11]), images=images), dataset.train)
    assert found["index"].tolist() == [2, 5, 8]
    assert found["image_changed"].tolist() == [False, True, True]
    assert found["given"].tolist() == [0, 0, 2] and found["true"].tolist() == [2, 2, 2]


def test_soft_labels_that_leave_one_hot_are_changes(dataset):
    soft = np.eye(3, dtype=np.float32)[dataset.train.labels]
    soft[4] = [0.4, 0.3, 0.3]
    found = changes(poison(soft), dataset.train)
    assert found["index"].tolist() == [4] and found["given"].tolist() == [0]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.zeros(7, np.int64), r"expected targets \(240,\) int64"),
        (np.zeros(240, np.float64), "float64"),
        (np.full(240, 3, np.int64), "expected labels 0 to 2"),
        (np.zeros((240, 4), np.float32), r"\(240, 3\) float32"),
    ],
)
def test_artifacts_that_do_not_fit_the_data(dataset, targets, message):
    with pytest.raises(ArtifactError, match=message):
        poisoned_training_set(poison(targets), dataset.train)


def test_over_budget_is_refused_before_training(dataset, target, ctx):
    labels = dataset.train.labels.copy()
    labels[np.flatnonzero(labels == 2)[:4]] = 0
    with pytest.raises(BudgetExceededError, match="changes 4 training rows; its budget is 3"):
        measure(poison(labels), dataset, target, target, 1, ctx)


@pytest.mark.parametrize(
    ("config", "changes_", "access", "message"),
    [
        ({"budget": 2}, {}, ["training labels"], "planned budget 2, the artifact says 3"),
        ({"source": 1}, {}, ["training labels"], "planned source 1, the artifact says 2"),
        ({"target_class": 1}, {}, ["training labels"], "planned target_class 1"),
        ({"trigger": "1xs"}, {}, ["training labels"], "planned trigger 1xs, the artifact says 1xl"),
        (
            {},
            {"images": np.zeros((0, 8, 8, 1), np.uint8)},
            ["training labels"],
            "changes images; its threat allows",
        ),
    ],
)
def test_the_scorer_takes_nothing_on_the_attacks_word(dataset, config, changes_, access, message):
    artifact = poison(dataset.train.labels.copy(), **changes_)
    with pytest.raises(BudgetExceededError, match=message):
        enforce_threat(artifact, config, access)
    planned = {"budget": 3, "source": 2, "trigger": "1xl"}
    enforce_threat(artifact, planned, ["training labels", "training images"])


def test_measure_then_rescore_agree_to_the_last_digit(dataset, target, ctx, tmp_path):
    labels = dataset.train.labels.copy()
    labels[np.flatnonzero(labels == 2)[:3]] = 0
    scored = measure(poison(labels), dataset, target, target, 2, replace(ctx, stage_dir=tmp_path))
    assert scored.metrics["trigger_lift_sd"].n == 2 and scored.metrics["cta"].seeds == 2
    assert len(scored.evidence["outcomes"]) == 240
    path = tmp_path / "o.parquet"
    scored.evidence["outcomes"].to_parquet(path)
    again = rescore(poison(labels), {**scored.evidence, "outcomes": pd.read_parquet(path)})
    assert again.metrics == scored.metrics
    with pytest.raises(ArtifactError, match="outcomes is missing"):
        rescore(poison(labels), {"flips": scored.evidence["flips"]})


def test_the_clean_reference_of_an_untouched_set_is_the_victim_itself(dataset, target, ctx):
    scored = measure(poison(dataset.train.labels.copy()), dataset, target, target, 1, ctx)
    assert scored.metrics["cta_drop"].value == 0
    assert scored.metrics["base_pta"].value == scored.metrics["pta"].value


def test_flags():
    from redteam.threats.poisoning.scorer import _flags

    def e(v, low=None):
        return Estimate(v, low, 1.0, 10, 1, "x")

    good = {"cta": e(0.9), "base_cta": e(0.9), "base_pta": e(0.0), "trigger_lift": e(0.5, 0.3)}
    a = poison(np.zeros(3, np.int64))
    assert _flags(good, a, 3) == ()
    assert _flags({**good, "cta": e(0.3)}, a, 3) == ("clean-accuracy-collapsed",)
    assert _flags({**good, "base_pta": e(0.3)}, a, 3) == ("high-base-rate",)
    assert _flags({**good, "trigger_lift": e(0.1, -0.1)}, a, 2) == ("no-trigger-effect", "under-budget")
