"""The page of malicious clients of a federation: numbers, curves, siblings, filtering and the server's notes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from redteam.cli import cli
from redteam.core.hashing import digest_json
from redteam.core.record import DefensePlugin, Metric, Plugin, Record, TaskInfo
from redteam.report import figures
from redteam.report.words import bounds, fraction
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.conduct import Conduct
from redteam.threats.poisoning.federation.metrics import CLIENT_COLUMNS
from redteam.threats.poisoning.federation.report import plots as federation_plots
from redteam.threats.poisoning.federation.report import render
from redteam.threats.poisoning.federation.report import series as federation_series
from redteam.threats.poisoning.federation.report import words as federation_words
from redteam.threats.poisoning.federation.scorer import rescore
from redteam.threats.poisoning.filter_metrics import filter_groups, filter_metrics
from redteam.threats.poisoning.metrics import OUTCOME_COLUMNS
from redteam.threats.poisoning.report import render as render_poison
from redteam.threats.poisoning.report.words import DEFINITIONS
from tests.leaderboards.helpers import record as plain_record
from tests.threats.pages import assert_metrics, assert_refuses, assert_whole, save_run, text_of
from tests.threats.poisoning import report_helpers as pictures

CLIENTS, PER_ROUND, ROUNDS, EVERY, TARGET = 40, 10, 60, 10, 4
TASK = {
    "clients": CLIENTS, "per_round": PER_ROUND, "images": 12, "rounds": ROUNDS, "local_epochs": 2, "batch_size": 20,
    "lr": 0.1, "server_lr": 1.0, "server_momentum": 0.0, "split": "homogeneous", "concentration": 0.5,
    "drift": "rotation", "drift_every": 20, "drift_angle": 30.0, "snapshot_every": EVERY, "victims": 1,
    "together": True,
}  # fmt: skip
Made = tuple[Path, Record, list[Record]]
CLASSES = (*"abcdefghi", "<b>j")
DATA = SimpleNamespace(name="fashion-mini", digest=digest_json("f"), classes=CLASSES)


def defense(name: str, **config: Any) -> DefensePlugin:
    return DefensePlugin(
        name=name, version="1", config=config, oracle=("number of poisons",) if config else ()
    )


def filtering(budget: int, factor: float = 1.0) -> DefensePlugin:
    return defense("shadow", poisons=round(factor * budget), labels="known", label=TARGET)


def malicious(budget: int, **conduct: Any) -> Clients:
    rng = np.random.default_rng(budget)
    stamped = rng.random((budget, 12)) < 0.25
    stamped[:, 0] = True
    return Clients(
        ids=np.arange(budget, dtype=np.int64), labels=np.where(stamped, TARGET, 1).astype(np.int64), stamped=stamped,
        trigger=triggers.make("1xl", strength=24.0), source_class=-1, target_class=TARGET, budget=budget,
        conduct=conduct,
    )  # fmt: skip


def tables(
    artifact: Clients, *, hit: float, right: float, catch: tuple[float, float] | None, seed: int, victims: int,
    notes: Sequence[tuple[int, int, str, float]],
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """Tables of a run. hit, right: asr and cta in the end. catch: shares of malicious and honest clients removed."""
    rng, label = np.random.default_rng(seed), np.repeat(np.arange(10), 20)
    outcomes, rounds, clients, n = [], [], [], len(label)
    others = label != TARGET
    for victim in range(victims):

        def say(share: float) -> np.ndarray:
            return np.where(rng.random(n) < share, label, (label + 1) % 10)

        columns = {"index": np.arange(n), "label": label, "clean": say(right), "base_clean": say(0.9)}
        columns["triggered"] = np.where(rng.random(n) < hit, TARGET, say(right))
        columns["base_triggered"] = say(0.9)
        outcomes.append(pd.DataFrame({"victim": victim, **columns})[list(OUTCOME_COLUMNS)])
        for number in range(EVERY, ROUNDS + 1, EVERY):
            hits, base = int(others.sum() * hit * number / ROUNDS), 10 + number // EVERY
            shared = n, int(n * right), int(others.sum()), hits, int(others.sum()), hits
            rounds.append((victim, number, *shared, 180, base, base))
        for number in range(ROUNDS):
            for client in rng.choice(CLIENTS, PER_ROUND, replace=False):
                bad = client in artifact.ids
                out = catch is not None and number >= 20 and rng.random() < catch[0 if bad else 1]
                score = rng.normal(float(bad)) if catch is not None and number >= 20 else np.nan
                clients.append((victim, number, client, bad, 0.0 if out else 0.1, out, score, False))
    columns = "victim round n correct others hits sources source_hits base_correct base_hits base_source_hits"
    kept = [*notes, *((v, ROUNDS, k, 9600.0) for v in range(victims) for k in ("trained", "base_trained"))]
    return {
        "outcomes": pd.concat(outcomes, ignore_index=True).astype(np.int32),
        "rounds": pd.DataFrame(rounds, columns=columns.split()),
        "clients": pd.DataFrame(clients, columns=list(CLIENT_COLUMNS)),
        "notes": pd.DataFrame(kept, columns=["victim", "round", "name", "value"]),
    }  # fmt: skip


def write_run(
    root: Path, *defenses: DefensePlugin, budget: int = 10, hit: float = 0.8, right: float = 0.85,
    catch: tuple[float, float] | None = None, seed: int = 0, victims: int = 1, knowledge: Any = "oblivious",
    attack: str = "federated-badnets", role: Any = "attack", task: Mapping[str, Any] | None = None,
    conduct: Mapping[str, Any] | None = None, notes: Sequence[tuple[int, int, str, float]] = (),
) -> tuple[Path, Record]:  # fmt: skip
    artifact = malicious(budget, **(conduct or {}))
    found = tables(artifact, hit=hit, right=right, catch=catch, seed=seed, victims=victims, notes=notes)
    scored = rescore(artifact, found)
    config = {"trigger": "1xl", "trigger_strength": 24.0, "trigger_cycles": 8.0, "source": -1, "target_class": TARGET,
              "fraction": budget / CLIENTS, "presence": "fixed", "stamped": 0.2, "epochs": 1,
              "budget": budget}  # fmt: skip
    base = plain_record()
    cell = base.cell.model_copy(update={
        "seed": seed, "defenses": defenses, "knowledge": knowledge,
        "task": TaskInfo(dataset="fashion-mini", digest=digest_json("f"), target="federation", model="mlp",
                         config={**TASK, **(task or {})}),
        "attack": Plugin(name=attack, version="1", config=config, digest=digest_json([attack, config])),
    })  # fmt: skip
    folder = root / cell.id
    return folder, save_run(folder, base, artifact, found, scored, cell=cell, id=cell.id, role=role)


NOTES = [
    (0, 19, "launch", 4.0), (0, 20, "threshold", 12.3456), (0, 39, "stop", 4.0), (0, 44, "relaunch", 4.0),
    *((0, r, "clip-norm", 0.1 + r / 100) for r in range(60)), (0, 7, "<odd>", 1.0),
]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def made(store: Path) -> Made:
    """A shadow's run, its siblings and strays."""
    own = write_run(store, filtering(10), catch=(0.9, 0.1), hit=0.3, notes=NOTES)
    beside = [
        write_run(store, hit=0.9, seed=s)[1] for s in range(3)
    ] + [
        write_run(store, defense("norm-clip", norm=None), hit=0.7, seed=s)[1] for s in range(2)
    ] + [
        write_run(store, defense("norm-clip", norm=None), hit=0.7, budget=6)[1],
        write_run(store, filtering(6), catch=(0.9, 0.1), hit=0.1, budget=6)[1],
        write_run(store, filtering(16), catch=(0.5, 0.3), hit=0.6, budget=16)[1],
        write_run(store, filtering(10), catch=(0.9, 0.1), hit=0.4, seed=1)[1],
        write_run(store, filtering(10, 0.5), catch=(0.5, 0.1), hit=0.5)[1],
        write_run(store, attack="federated-no-attack", role="control", hit=0.01)[1],
        write_run(store, attack="other-attack")[1],
        write_run(store, task={"drift": "static"})[1],
    ]  # fmt: skip
    return *own, beside


@pytest.fixture(scope="module")
def page(made: Made) -> str:
    return render(made[0], made[2], DATA)


def test_every_metric_stands_there_and_the_page_is_whole(made: Made, page: str) -> None:
    assert_metrics(made[1], page, federation_words.DEFINITIONS, victims=True, groups=False)
    assert_whole(page)
    assert render(made[0], made[2][::-1], DATA) == page, "same inputs, same page"
    for name in federation_words.HEADLINE:
        assert f"<small>{name}</small>" in page


def test_names_from_outside_are_escaped(store: Path, page: str) -> None:
    assert "<odd>" not in page and "&lt;odd&gt;" in page
    odd = defense("<script>", x="</style>")
    folder, own = write_run(store, odd, seed=7)
    other = render(folder, [own], None)
    assert "<script" not in other and other.count("</style>") == 1 + other.count("<style type")


def test_the_sentences_say_who_was_attacked_and_what_came_out(made: Made, page: str) -> None:
    seen, record = text_of(page), made[1]
    asr, mean = record.metric("asr"), record.metric("asr_mean")
    assert asr is not None and mean is not None
    assert "federated-badnets held 10 of 40 clients (0.2500)" in seen
    assert (
        "behind shadow (the attack did not know of it): 60 rounds of 10 clients with 12 images each" in seen
    )
    assert "all images are turned by 30 degrees every 20 rounds" in seen
    assert "class 4 (e)" in seen and "Beyond their data they act like honest ones" in seen
    assert f"asr is {fraction(mean.value)} {bounds(mean.low, mean.high)} in the mean" in seen
    assert "places drawn below is it above one half" in seen
    assert "The interval of trigger_lift lies above zero" in seen
    assert "It removes malicious clients more often than honest ones." in seen
    assert "Training took 1.00 times the images of the reference." in seen
    assert "undefended (3 seeds), asr" in seen and "federated-no-attack, undefended (1 seed), asr" in seen


def test_lines_are_one_a_defence_with_seeds_pooled(made: Made) -> None:
    _, record, beside = made
    found = federation_series.lines(record, federation_series.comparable(record, beside))
    assert [(line.label, len(line.ids), line.own) for line in found] == [
        ("shadow, poisons 1 x budget", 1, True),
        ("undefended", 3, False),
        ("norm-clip", 2, False),
        ("shadow, poisons 0.5 x budget", 1, False),
    ]
    assert [n for n, _ in found[0].asr] == list(range(10, 61, 10))
    for number, e in found[1].asr:
        values = [m.value for r in beside[:3] if (m := r.metric("asr", f"round={number}")) is not None]
        assert e.value == pytest.approx(np.mean(values)) and e.seeds == 3
    assert len({line.place for line in found}) == 4


def test_points_hold_this_defence_at_other_shares_and_the_others_at_this_one(made: Made) -> None:
    _, record, beside = made
    found = federation_series.points(record, federation_series.comparable(record, beside))
    assert [(p.label, p.fraction, len(p.ids), p.line, p.here) for p in found] == [
        ("shadow, poisons 1 x budget", 0.15, 1, True, False),
        ("shadow, poisons 1 x budget", 0.25, 2, True, True),
        ("shadow, poisons 1 x budget", 0.4, 1, True, False),
        ("undefended", 0.25, 3, False, True),
        ("norm-clip", 0.25, 2, False, True),
        ("shadow, poisons 0.5 x budget", 0.25, 1, False, True),
    ]


def test_both_tables_hold_the_numbers_of_their_figures(made: Made, page: str) -> None:
    seen, record = text_of(page), made[1]
    for number in range(10, 61, 10):
        asr, cta = record.metric("asr", f"round={number}"), record.metric("cta", f"round={number}")
        assert asr is not None and cta is not None
        base = 10 + number // 10
        row = f"{number} {fraction(asr.value)} {bounds(asr.low, asr.high)} {fraction(base / 180)} "
        assert row in seen and f"{fraction(cta.value)} {bounds(cta.low, cta.high)} 0.900 " in seen
    (own,) = re.findall(r'<tr class="own">.*?</tr>', page, re.DOTALL)
    assert "0.250" in own and "this run" in own and page.count("poisons 1 x budget</td>") >= 2


def test_drift_is_marked_where_the_data_change_and_only_there(store: Path, page: str) -> None:
    assert federation_series.drift_steps(TASK) == [20, 40]
    assert federation_series.drift_steps({**TASK, "drift": "static"}) == []
    assert "Thin verticals: the data change, after 20, 40 rounds." in text_of(page)
    _, own = write_run(store, seed=3)
    with_it, without = (
        federation_plots.rounds_svg(federation_series.lines(own, [own]), "asr", [], steps) for steps in ([20, 40], [])
    )  # fmt: skip
    assert str(with_it).count("<path") == str(without).count("<path") + 2


def test_filter_spans_count_every_judged_appearance_once(made: Made) -> None:
    clients = pd.read_parquet(made[0] / "clients.parquet")
    spans = federation_series.judged(clients)
    assert (spans[0].first, spans[-1].last) == (21, 60)
    late = clients[clients["round"] >= 20]
    for side, bad in (("bad", True), ("good", False)):
        part = late[late["malicious"] == bad]
        seen = sum(getattr(s, side)[0] for s in spans), sum(getattr(s, side)[1] for s in spans)
        assert seen == (len(part), int(part["removed"].sum()))
    whole = federation_series.judged(clients, bins=1)
    for name in ("filter_tpr", "filter_fpr", "filter_auroc"):
        metric = made[1].metric(name)
        assert metric is not None and whole[0].metrics[name].value == pytest.approx(metric.value)


def test_no_line_is_drawn_over_rounds_without_a_filter(made: Made) -> None:
    clients = pd.read_parquet(made[0] / "clients.parquet")
    idle = clients["round"].between(30, 41)
    clients.loc[idle, ["removed", "score", "weight"]] = [False, np.nan, 0.1]
    runs = federation_plots._unbroken(federation_series.judged(clients))
    assert [(run[0].first, run[-1].last) for run in runs] == [(21, 30), (43, 60)]


def test_events_are_listed_and_what_comes_in_every_round_is_summed_up(page: str) -> None:
    events, often = federation_series.notes(pd.DataFrame(NOTES, columns=["victim", "round", "name", "value"]))
    assert [(e.round, e.name) for e in events] == [
        (8, "<odd>"), (20, "launch"), (21, "threshold"), (40, "stop"), (45, "relaunch"),
    ]  # fmt: skip
    assert [(o.name, o.rounds, o.first, o.last) for o in often] == [("clip-norm", 60, 1, 60)]
    seen = text_of(page)
    assert "20 launch label 4" in seen and "21 threshold 12.35" in seen
    assert "clip-norm 60 1 60 0.1 0.395 0.69" in seen and "base_trained" not in seen


def test_a_run_without_defence_or_neighbours_says_so(store: Path) -> None:
    folder, own = write_run(
        store, seed=11, victims=2, conduct={"scale": 12.0, "epochs": 1}, task={"drift": "static"}
    )
    seen = text_of(render(folder, [], None))
    assert "Thin verticals" not in seen and "are turned" not in seen
    assert "They act otherwise than honest clients: scale 12" in seen
    assert "Neither this attack without a defence nor a control was found" in seen
    assert (
        "No client was removed or scored in any round." in seen and "What the server noted Nothing." in seen
    )
    assert "seed 11, 2 victims" in seen and "trained 2 federations" in seen and own.id in seen


def test_blind_removal_is_called_blind(store: Path) -> None:
    _, own = write_run(store, defense("random-removal"), catch=(0.4, 0.4), seed=5)
    assert "does not show that it tells them apart better than blind removal" in federation_words._filter(own)


def test_strays_stay_out_and_are_counted(made: Made, page: str) -> None:
    assert "other-attack" not in page
    assert "2 other records were left out: not scored, or of another task or attack." in text_of(page)
    failed = made[2][0].model_copy(update={"status": "error", "metrics": ()})
    assert failed not in federation_series.comparable(made[1], [failed])


def test_the_defaults_of_conduct_are_those_of_honest_clients() -> None:
    assert dataclasses.asdict(Conduct()) == federation_series.HONEST


def test_the_command_names_every_setting(page: str) -> None:
    seen = text_of(page)
    assert "redteam attack federated-badnets --dataset fashion-mini -o target.model=mlp" in seen
    assert "--defense shadow:label=4,labels=known,poisons=10" in seen and "-o target.drift=rotation" in seen


def test_many_defences_have_marks_of_their_own() -> None:
    places = range(24)
    assert len({(figures.glyph(i), figures.colour(i)) for i in places}) == 24


def test_files_that_do_not_fit_and_runs_without_a_score_are_refused(tmp_path: Path) -> None:
    assert_refuses(render, write_run(tmp_path)[0], ["artifact.npz", "rounds.parquet", "clients.parquet"])


def test_the_command_line_writes_the_page(store: Path, made: Made, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = CliRunner().invoke(cli, ["report", made[1].id, "--store", str(store), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "is not the data this run used" in done.output
    text = text_of(out.read_text())
    assert "every class but the target's to class 4" in text and "shadow, poisons 0.5 x budget" in text


# ---------------------------------------------------------------- centralised runs behind a filter


def test_a_centralised_run_shows_what_its_filter_removed_by_given_label(tmp_path: Path) -> None:
    data = pictures.dataset()
    rows = pd.DataFrame(
        {
            "victim": 0,
            "given": [4] * 8 + [2] * 4,
            "poisoned": [True] * 4 + [False] * 8,
            "removed": [True] * 3 + [False] * 4 + [True] + [False] * 4,
            "score": np.append(np.arange(8.0)[::-1], [np.nan] * 4),
        }
    )
    found = [Metric.of(k, e) for k, e in filter_metrics(rows, within=("given",)).items()]
    found += [Metric.of(k, e, g) for (k, g), e in filter_groups(rows, "given").items()]
    made = pictures.write_run(tmp_path / "run", data)
    with_filter = made.model_copy(update={"metrics": (*made.metrics, *found)})
    assert "What the filter removed" not in text_of(render_poison(tmp_path / "run", [], data))
    (tmp_path / "run" / "record.json").write_text(with_filter.to_json())
    page = render_poison(tmp_path / "run", [], data)
    seen = text_of(page)
    assert "<small>filter_tpr</small>" in page and "<small>filter_fpr</small>" in page
    assert re.search(
        r"class 4 \(four & more\) 4 4 0\.750 \[.*?\] 0\.250 \[.*?\] 0\.750 \[.*?\] 1\.000 ", seen
    )
    assert re.search(r"class 2 \(two\) 0 4 - 0\.000 \[[^]]*\] - - ", seen)
    assert DEFINITIONS["filter_tpr"] in seen
