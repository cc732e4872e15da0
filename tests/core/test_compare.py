"""`redteam compare` on records made by hand: what is paired with what, and what the differences are."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as sps

from redteam.cli.compare import compare as command
from redteam.core.compare import AVERAGED, Question, compare, listing, outcomes_in
from redteam.core.compare.difference import over_cells
from redteam.core.errors import ArtifactError, ConfigError, InputError, UnknownNameError
from redteam.core.record import Cell, Cost, DefensePlugin, Environment, Metric, Plugin, Record, TaskInfo
from redteam.core.stats import Estimate, across_cells, over_strata, paired_difference, rate
from redteam.core.store import Store
from redteam.threats.evasion.metrics import robust

N = 80
EPS = 0.1


def outcomes(stands, eps=EPS):
    """A table whose robust images are given, (victims, N); all are read right as they are."""
    stands = np.atleast_2d(stands)
    victims, n = stands.shape
    label = np.arange(n) % 3
    return pd.concat([
        pd.DataFrame({
            "victim": v, "eps": e, "index": np.arange(n), "label": label, "clean": label,
            "adversarial": np.where(stands[v] | (e < eps), label, label + 1), "attack": -1, "moved": 0.0,
            "forwards": 1, "backwards": 1,
        })
        for v in range(victims) for e in (eps / 2, eps)
    ])  # fmt: skip


def record(
    store, stands, *, defence=None, config=None, seed=0, dataset="a-to-b", attack="pgd", task=None, extra=None,
    evidence=True, knowledge="adaptive", threat="evasion", status="ok", role="attack", options=None,
):  # fmt: skip
    """Write one run: its metrics follow from its table."""
    table = outcomes(stands)
    t = {
        k: table[table["eps"] == EPS][k].to_numpy().reshape(-1, N) for k in ("label", "clean", "adversarial")
    }
    defenses = (DefensePlugin(name=defence, version="1", config=config or {}),) if defence else ()
    cell = Cell(
        threat=threat, knowledge=knowledge, seed=seed,
        task=TaskInfo(dataset=dataset, digest=dataset, target="classifier", model="cnn", config=task or {"lr": 1e-3}),
        attack=Plugin(name=attack, version="1", config={"eps": EPS, "curve": [EPS / 2], **(options or {})}, digest="0"),
        defenses=defenses,
    )  # fmt: skip
    metrics = [Metric.of("robust_accuracy", rate(robust(t)))]
    metrics.append(Metric.of("robust_accuracy", rate(np.ones((1, N))), "eps=0.05"))
    metrics += [Metric.of(k, Estimate(v, None, None, 10, 1, "by hand")) for k, v in (extra or {}).items()]
    made = Record(
        id=cell.id, status=status, role=role, source="measured", cell=cell,
        metrics=tuple(metrics) if status == "ok" else (), cost=Cost(wall_s=1, cpu_s=1),
        environment=Environment(
            suite="0", git_commit=None, dirty=None, python="3", packages={}, os="", cpu="", device=""
        ),
        evidence=store.save_evidence(cell.id, {"outcomes": table}) if evidence else (),
        created=datetime(2026, 1, 1, tzinfo=UTC),
        error=None if status == "ok" else {"type": "E", "message": "m"},
    )  # fmt: skip
    store.save_record(made)
    return made


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "runs")
    made.check_writable()
    return made


def standing(share, seed=0, victims=1):
    return np.random.default_rng(seed).random((victims, N)) < share


def asked(store, base="dart", **kwargs):
    question = Question(**{"metric": "robust_accuracy", "base": base, **kwargs})
    return compare(store.records(), question, outcomes_in(store.root))


def test_one_cell_is_paired_by_images(store):
    a, b, c = standing(0.7, 1), standing(0.4, 2), standing(0.1, 3)
    record(store, a, defence="dart")
    record(store, b, defence="at-source")
    record(store, c)
    rows = {r.other: r for r in asked(store).rows}
    assert set(rows) == {"at-source", "none"}
    assert rows["at-source"].difference == paired_difference(a, b)
    assert rows["none"].difference == paired_difference(a, c)
    assert rows["none"].values == (a.mean(), c.mean())
    assert rows["none"].relative == pytest.approx((a.mean() - c.mean()) / c.mean())
    assert (rows["none"].paired, rows["none"].cells) == ("images", 1)


def test_seeds_are_pooled_and_only_shared_ones_count(store):
    ours = {s: standing(0.7, s) for s in range(3)}
    theirs = {s: standing(0.4, 10 + s) for s in (1, 2, 5)}
    for seed, x in ours.items():
        record(store, x, defence="dart", seed=seed)
    for seed, x in theirs.items():
        record(store, x, defence="at-source", seed=seed)
    (row,) = asked(store).rows
    found = [paired_difference(ours[s], theirs[s]) for s in (1, 2)]
    assert row.difference == across_cells(found)
    assert row.cells == 2
    assert row.values[0] == pytest.approx(np.mean([ours[s].mean() for s in (1, 2)]))


def test_cells_that_differ_in_anything_else_are_not_compared(store):
    a, b = standing(0.7, 1), standing(0.4, 2)
    record(store, a, defence="dart")
    for n, other in enumerate(
        ({"task": {"lr": 1e-2}}, {"attack": "square"}, {"seed": 3}, {"dataset": "b-to-c"})
    ):
        record(store, standing(0.4, n), defence="at-source", **other)
    with pytest.raises(ConfigError, match="nothing to compare: no run behind another defence than 'dart'"):
        asked(store)
    record(store, b, defence="at-source")
    assert len(asked(store).rows) == 1


def test_an_attack_that_knew_is_not_compared_with_one_that_did_not(store):
    record(store, standing(0.7, 1), defence="dart", knowledge="oblivious")
    record(store, standing(0.4, 2), defence="at-source")
    record(store, standing(0.1, 3))
    (row,) = asked(store, base="dart, oblivious").rows
    assert (row.base, row.other) == ("dart, oblivious", "none")


def test_averages_give_each_task_one_weight(store):
    found = []
    for n, dataset in enumerate(("a-to-b", "b-to-c", "c-to-a")):
        a, b = standing(0.7, n), standing(0.5, 10 + n)
        record(store, a, defence="dart", dataset=dataset)
        record(store, b, defence="at-source", dataset=dataset)
        found.append(paired_difference(a, b))
    rows = asked(store).rows
    (mean,) = (r for r in rows if r.task == AVERAGED)
    assert len(rows) == 4
    assert mean.difference.value == pytest.approx(np.mean([e.value for e in found]))
    arm = sum((e.value - e.low) ** 2 for e in found) ** 0.5 / 3
    assert mean.difference.low == pytest.approx(mean.difference.value - arm)
    assert mean.difference.high > mean.difference.value
    assert (mean.cells, mean.difference.n) == (3, 3 * N)


def test_without_images_it_is_students_t_over_cells(store):
    ours, theirs = [0.7, 0.6, 0.65], [0.4, 0.5, 0.3]
    for seed in range(3):
        record(store, standing(0.5), defence="dart", seed=seed, evidence=False, extra={"m": ours[seed]})
        record(store, standing(0.5), seed=seed, extra={"m": theirs[seed]})
    (row,) = asked(store, metric="m").rows
    test = sps.ttest_rel(ours, theirs).confidence_interval()
    assert (row.difference.low, row.difference.high) == pytest.approx((test.low, test.high))
    assert row.paired == "cells"
    (row,) = asked(store).rows
    assert row.paired == "cells"


def test_one_pair_of_cells_without_images_has_no_interval_and_says_why(store):
    record(store, standing(0.7), defence="dart", evidence=False)
    record(store, standing(0.2), evidence=False)
    (row,) = asked(store).rows
    assert row.difference.low is None
    assert "no interval" in row.difference.method


def test_a_group_is_compared_by_the_images_of_its_radius(store):
    record(store, standing(0.7), defence="dart")
    record(store, standing(0.2))
    (row,) = asked(store, group="eps=0.05").rows
    assert row.difference.value == 0
    assert row.paired == "images"


def sweep(store, base_task=None):
    """dart with three strengths: the best by val_pseudo is 0.3, by val_oracle 1.0; the lone seed of 9.0 is out."""
    values = {0.3: (0.8, 0.5), 1.0: (0.6, 0.9), 3.0: (0.1, 0.2)}
    for strength, (pseudo, oracle) in values.items():
        for seed in (0, 1):
            record(store, standing(0.5 + strength / 10, seed), defence="dart", config={"strength": strength}, seed=seed,
                   extra={"val_pseudo": pseudo, "val_oracle": oracle})  # fmt: skip
    best = {"val_pseudo": 1.0, "val_oracle": 1.0}
    record(store, standing(0.5), defence="dart", config={"strength": 9.0}, extra=best)
    for seed in (0, 1):
        record(store, standing(0.2, 10 + seed), seed=seed)


@pytest.mark.parametrize(("by", "best"), [("val_pseudo", 0.3), ("val_oracle", 1.0)])
def test_a_sweep_is_chosen_by_the_stated_criterion(store, by, best):
    sweep(store)
    found = asked(store, by=by)
    (row,), (pick,) = found.rows, found.picks
    assert (row.base, row.other, row.cells) == ("dart", "none", 2)
    assert pick.setting == f"dart (strength={best})"
    assert (pick.cells, pick.among) == (2, 4)
    expected = np.mean([standing(0.5 + best / 10, s).mean() for s in (0, 1)])
    assert row.values[0] == pytest.approx(expected)


def test_hyper_parameters_of_the_training_are_chosen_too(store):
    for lr, value in ((1e-3, 0.2), (1e-2, 0.7)):
        task, extra = {"lr": lr, "eps": 0.1}, {"val_pseudo": value}
        record(store, standing(10 * lr * 5, 1), defence="dart", task=task, extra=extra)
    record(store, standing(0.2), task={"lr": 1e-3, "eps": 0.1})
    (row,), (pick,) = (found := asked(store, by="val_pseudo")).rows, found.picks
    assert pick.setting == "dart, lr 0.01"
    assert row.values[0] == standing(0.5, 1).mean()
    with pytest.raises(ConfigError, match="nothing to compare"):
        record(store, standing(0.2), defence="dann", task={"lr": 1e-3, "eps": 0.2}, extra={"val_pseudo": 1})
        asked(store, base="dann", by="val_pseudo")


def test_several_settings_without_a_choice_are_ambiguous(store):
    sweep(store)
    with pytest.raises(ConfigError, match=r"several settings; give one \(dart \(strength=0\.3\); .*--by"):
        asked(store)
    assert {r.other for r in asked(store, base="dart (strength=3.0)").rows} >= {"none", "dart (strength=0.3)"}


def test_errors_name_what_there_is(store):
    with pytest.raises(ConfigError, match="found none"):
        asked(store)
    record(store, standing(0.5), defence="dart", status="error", seed=7)
    with pytest.raises(ConfigError, match="found none"):
        asked(store)
    sweep(store)
    with pytest.raises(UnknownNameError, match="unknown defence of these runs 'darts'"):
        asked(store, base="darts")
    with pytest.raises(UnknownNameError, match="Did you mean 'robust_accuracy'"):
        asked(store, metric="robust_acuracy")
    with pytest.raises(UnknownNameError, match="eps=0.05"):
        asked(store, group="eps=0.5")
    with pytest.raises(UnknownNameError, match="val_pseudo"):
        asked(store, by="val_pseud")


def test_evidence_that_was_changed_is_refused(store):
    made = record(store, standing(0.5), defence="dart")
    record(store, standing(0.2))
    (store.folder(made.id) / "outcomes.parquet").write_bytes(b"other")
    with pytest.raises(ArtifactError, match="missing or was changed"):
        asked(store)


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 0.5)), min_size=2, max_size=6))
def test_pooled_differences_may_go_below_zero(cells):
    """Of paired differences nothing is clipped at 0: the mean and antisymmetry hold."""
    found = [Estimate(d, max(-1.0, d - w), min(1.0, d + w), 50, 1, "paired") for d, w in cells]
    mean = across_cells(found)
    assert mean.value == pytest.approx(np.mean([d for d, _ in cells]), abs=1e-9)
    assert -1 - 1e-9 <= mean.low <= mean.value + 1e-9
    assert mean.value - 1e-9 <= mean.high <= 1 + 1e-9
    mirrored = across_cells([Estimate(-e.value, -e.high, -e.low, 50, 1, "paired") for e in found])
    assert (mirrored.low, mirrored.high) == pytest.approx((-mean.high, -mean.low), abs=1e-9)


def test_an_interval_of_positive_differences_is_not_cut_at_zero():
    shares = [Estimate(0.01, 0.0, 0.02, 50, 1, "wilson"), Estimate(0.5, 0.4, 0.6, 50, 1, "wilson")]
    differences = [replace(e, method="newcombe-paired") for e in shares]
    assert across_cells(shares).low == 0
    assert across_cells(differences).low < -0.5


def test_over_cells_of_equal_differences_claims_no_certainty():
    e = over_cells([0.1, 0.1, 0.1])
    assert e.value == pytest.approx(0.1)
    assert (e.low, e.high) == (None, None)
    assert "alike" in e.method


# ---------------------------------------------------------------- worst case over attacks


CUSTOM = {"version": "custom"}


def several(store, defence, seed=0, attacks=("apgd", "autoattack", "pgd"), **more):
    """Runs of several attacks, with images of their own. Returns what stands after all."""
    found = {}
    for n, attack in enumerate(attacks):
        x = standing(0.8, 100 * seed + 10 * n + len(defence or ""), victims=2)
        options = CUSTOM if attack == "autoattack" else None
        record(store, x, defence=defence, seed=seed, attack=attack, options=options, **more)
        found[attack] = x
    noise = {"attack": "random-noise", "role": "control"}
    record(store, np.zeros((2, N), bool), defence=defence, seed=seed, **noise, **more)
    return found


def test_the_worst_case_is_by_image_over_all_attacks_and_no_control(store):
    a, b = several(store, "dart"), several(store, None)
    (row,) = asked(store, worst=True).rows
    worst_a, worst_b = (np.logical_and.reduce(list(x.values())) for x in (a, b))
    assert worst_a.mean() < min(x.mean() for x in a.values())
    assert row.attack == "worst of apgd, autoattack (custom), pgd"
    assert row.difference == paired_difference(worst_a, worst_b)
    assert row.values == (worst_a.mean(), worst_b.mean())
    assert row.paired == "images"
    (clean,) = asked(store, worst=True, metric="accuracy").rows
    assert clean.difference.value == 0


def test_a_replayed_attack_belongs_to_the_worst_case_of_the_defence(store):
    a, b = standing(0.7, 1), standing(0.5, 2)
    for attack, x, knowledge in (("pgd", a, "adaptive"), ("transfer-pgd", b, "oblivious")):
        record(store, x, defence="dart", attack=attack, knowledge=knowledge)
        record(store, standing(0.3, 3), attack=attack)
    (row,) = asked(store, worst=True).rows
    assert row.values[0] == (a & b).mean()
    record(store, a, defence="dann", attack="pgd")
    record(store, b, defence="dann", attack="transfer-pgd", knowledge="adaptive")
    found = asked(store, worst=True)
    assert [r.other for r in found.rows] == ["none"]
    reason = "some attack knew of the one defence and not of the other"
    assert found.left_out == (f"cnn on a-to-b, seed 0, dart and dann: {reason}",)


def test_pairs_that_met_other_attacks_are_left_out_and_named(store):
    for seed in (0, 1):
        several(store, "dart", seed)
    several(store, None, 0)
    several(store, None, 1, attacks=("pgd",))
    found = asked(store, worst=True)
    assert [r.cells for r in found.rows] == [1]
    assert found.left_out == ("cnn on a-to-b, seed 1, dart and none: none without apgd, autoattack (custom)",)


def test_nothing_but_pairs_that_met_other_attacks_is_nothing_to_compare(store):
    several(store, "dart")
    several(store, None, attacks=("pgd",))
    with pytest.raises(ConfigError, match="Left out, as other attacks ran: .*none without apgd"):
        asked(store, worst=True)


def test_other_radii_and_other_norms_make_no_common_worst_case(store):
    x, y = standing(0.7, 1), standing(0.5, 2)
    for defence in ("dart", None):
        record(store, x, defence=defence, options={"norm": "Linf"})
        record(store, y, defence=defence, attack="apgd", options={"norm": "L2"})
    rows = asked(store, worst=True).rows
    assert sorted(r.values[0] for r in rows) == sorted([x.mean(), y.mean()])


def test_worst_cases_average_over_tasks_and_refuse_groups_and_criteria_of_attacks(store):
    for dataset in ("a-to-b", "b-to-c"):
        several(store, "dart", dataset=dataset)
        several(store, None, dataset=dataset)
    assert AVERAGED in {r.task for r in asked(store, worst=True).rows}
    with pytest.raises(ConfigError, match="main radius alone"):
        asked(store, worst=True, group="eps=0.05")
    with pytest.raises(ConfigError, match="val_pseudo"):
        asked(store, worst=True, by="robust_accuracy")


def test_a_setting_is_chosen_whatever_attacks_it_met(store):
    """The best by val_pseudo met fewer attacks: it is chosen all the same, and its pair is left out."""
    several(store, "dart", config={"strength": 1.0}, extra={"val_pseudo": 0.2})
    several(store, "dart", attacks=("pgd",), config={"strength": 2.0}, extra={"val_pseudo": 0.9})
    several(store, None)
    with pytest.raises(ConfigError, match="dart without apgd"):
        asked(store, worst=True, by="val_pseudo")


def test_evidence_that_is_missing_is_no_worst_case(store):
    several(store, "dart")
    several(store, None)
    record(store, standing(0.5), attack="square", evidence=False)
    with pytest.raises(ArtifactError, match="kept no outcomes"):
        asked(store, worst=True)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**6))
def test_a_worst_case_is_at_most_every_attack(victims, attacks, seed):
    from redteam.core.compare.worst import worst_cases

    rng = np.random.default_rng(seed)
    made = {f"a{i}": rng.random((victims, N)) < 0.7 for i in range(attacks)}
    found = [bare(name) for name in made]
    tables = {r.id: outcomes(x) for r, x in zip(found, made.values(), strict=True)}
    (worst,) = worst_cases(found, lambda r: tables[r.id])
    value = worst.record.metric("robust_accuracy").value
    assert value == pytest.approx(np.logical_and.reduce(list(made.values())).mean())
    assert value <= min(x.mean() for x in made.values()) + 1e-12


def bare(attack):
    """A finished run without files."""

    class Nowhere:
        def save_evidence(self, *a):
            return ()

        def save_record(self, *a):
            pass

    return record(Nowhere(), np.ones((1, N), bool), attack=attack)


# ---------------------------------------------------------------- the table, names, labels


def test_the_table_has_every_attack_the_worst_case_and_averages(store):
    stands = {}
    for dataset in ("a-to-b", "b-to-c"):
        for defence in ("dart", None):
            for seed in (0, 1):
                stands[dataset, defence, seed] = several(store, defence, seed, dataset=dataset)
    several(store, "dann", dataset="a-to-b")
    found = listing(store.records(), outcomes_in(store.root)).lines
    line = {(x.task, x.defence): x for x in found}
    assert set(line) == {
        *((t, d) for t in ("cnn on a-to-b", "cnn on b-to-c", AVERAGED) for d in ("dart", "none")),
        ("cnn on a-to-b", "dann"),
    }
    one = line["cnn on a-to-b", "dart"]
    cells = [stands["a-to-b", "dart", s] for s in (0, 1)]
    assert set(one.attacks) == {"apgd", "autoattack (custom)", "pgd"}
    assert one.attacks["pgd"] == across_cells([rate(c["pgd"]) for c in cells])
    assert one.worst == across_cells([rate(np.logical_and.reduce(list(c.values()))) for c in cells])
    assert (one.n, one.victims, one.seeds, one.accuracy.value) == (N, 2, 2, 1.0)
    both = [line[f"cnn on {d}", "dart"].worst for d in ("a-to-b", "b-to-c")]
    assert line[AVERAGED, "dart"].worst == over_strata(both)


def test_the_table_says_where_fewer_attacks_ran(store):
    several(store, "dart")
    several(store, None, attacks=("pgd",))
    done = CliRunner().invoke(command, ["--store", str(store.root), "--table"])
    assert done.exit_code == 0, done.output
    assert "of 1 of 3" in done.output and "victims" in done.output
    told = json.loads(CliRunner().invoke(command, ["--store", str(store.root), "--table", "--json"]).output)
    assert {tuple(x["of"]) for x in told["lines"]} == {("apgd", "autoattack (custom)", "pgd"), ("pgd",)}


def test_either_a_base_or_a_table(store):
    several(store, "dart")
    for args in ([], ["--table", "--base", "dart"], ["--table", "--group", "eps=0.05"]):
        refused = CliRunner().invoke(command, ["--store", str(store.root), *args])
        assert isinstance(refused.exception, ConfigError)


def test_autoattack_is_told_from_an_ensemble_of_ones_own(store):
    for options in ({"version": "standard"}, CUSTOM):
        record(store, standing(0.7), defence="dart", attack="autoattack", options=options)
        record(store, standing(0.2), attack="autoattack", options=options)
    assert {r.attack for r in asked(store).rows} == {"autoattack", "autoattack (custom)"}


@pytest.mark.parametrize(("by", "used"), [("val_pseudo", False), ("val_oracle", True)])
def test_a_choice_by_labels_of_the_target_says_so(store, by, used):
    sweep(store)
    (pick,) = asked(store, by=by).picks
    assert pick.target_labels is used
    args = ["--store", str(store.root), "--base", "dart", "--by", by]
    flat = " ".join(CliRunner().invoke(command, args).output.split())
    assert ("used labels of the target domain" in flat) is used
    told = json.loads(CliRunner().invoke(command, [*args, "--json"]).output)
    assert told["picks"][0]["target_labels"] is used


# ---------------------------------------------------------------- the command


def test_the_command_prints_a_table_and_what_was_chosen(store):
    sweep(store)
    done = CliRunner().invoke(command, ["--store", str(store.root), "--base", "dart", "--by", "val_pseudo"])
    assert done.exit_code == 0, done.output
    flat = " ".join(done.output.split())
    assert "dart is dart (strength=0.3): val_pseudo 0.800 over 2 cells, best of 4 settings" in flat
    assert "robust_accuracy of dart minus that of the others: cnn on a-to-b" in flat
    assert "none" in flat


def test_the_command_as_json_and_filters(store):
    sweep(store)
    record(store, standing(0.9), defence="dann", attack="square")
    record(store, standing(0.3), attack="square")
    args = ["--store", str(store.root), "--base", "none", "--json"]
    told = json.loads(CliRunner().invoke(command, [*args, "--attack", "square"]).output)
    assert [(r["other"], r["attack"]) for r in told["rows"]] == [("dann", "square")]
    assert told["rows"][0]["difference"]["value"] < 0
    every = json.loads(CliRunner().invoke(command, args).output)
    assert len(every["rows"]) == 5
    refused = CliRunner().invoke(command, [*args, "--dataset", "other"])
    assert isinstance(refused.exception, InputError)
