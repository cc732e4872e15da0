"""The frontier of two metrics: closed forms, properties, and the boards of agents."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboards import frontier, table
from leaderboards.rules import load_rules
from redteam.core.errors import ConfigError
from redteam.core.hashing import digest_json
from redteam.core.record import Cell, DefensePlugin, Metric, Plugin, Record, TaskInfo
from redteam.core.stats import Estimate
from redteam.core.threat import threats
from tests.leaderboards.helpers import golden_records, record

RULES = load_rules()
TARGET = {"interface": "text", "profiles": 20, "fields": None, "tasks": ["restaurant", "clinic"],
          "template": "chat", "max_tokens": 64, "rules": "0" * 64}  # fmt: skip
PROMPT = DefensePlugin(name="privacy-prompt", version="1", config={"directive": "Share little, and gladly."})

numbers = st.integers(0, 10).map(lambda n: n / 10)
pairs = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8)


def airgap(minimiser: str = "rules", **config: Any) -> DefensePlugin:
    config = {"minimiser": minimiser, "repairs": 2, "escalate": True, **config}
    return DefensePlugin(name="airgap", version="1", config=config)


def agent_record(
    attack: str = "context-hijack", strategy: str | None = "preserving", *, privacy: float | None = 0.5,
    utility: float | None = 0.5, half: float = 0.05, turns: int = 1, seed: int = 0, model: str = "rules:",
    defenses: Sequence[DefensePlugin] = (), knowledge: Any = "oblivious", target: Mapping[str, Any] | None = None,
    **rest: Any,
) -> Record:  # fmt: skip
    """A record of an attack on an agent, around a privacy and a utility."""
    found = {k: v for k, v in (("privacy", privacy), ("utility", utility)) if v is not None}
    metrics = [
        Metric(name=k, value=v, low=max(0.0, v - half), high=min(1.0, v + half), n=120 if k == "privacy" else 80,
               confidence=0.95, method="two-way-clustered", seeds=1)
        for k, v in found.items()
    ]  # fmt: skip
    config = {"turns": turns, **({} if strategy is None else {"strategy": strategy})}
    cell = Cell(
        threat="agent-privacy", knowledge=knowledge, seed=seed, defenses=tuple(defenses),
        task=TaskInfo(dataset="profiles", digest=digest_json("profiles"), target="agent", model=model,
                      config={**TARGET, **(target or {})}),
        attack=Plugin(name=attack, version="1", config=config, digest=digest_json([attack, config])),
    )  # fmt: skip
    base = record(metrics=metrics, **{"role": "control" if attack == "benign" else "attack", **rest})
    return base.model_copy(update={"cell": cell, "id": cell.id})


def board_records() -> list[Record]:
    """Two attacks and the control, each undefended and behind three defences, and a second interface."""
    out = []
    for attack, strategy, lost in (
        ("context-hijack", "preserving", 0.5),
        ("context-hijack", "agnostic", 0.25),
        ("context-hijack-adaptive", "poisoned-task", 0.38),
        ("benign", None, 0.1),
    ):
        settings: list[tuple[float, float, list[DefensePlugin]]] = [
            (1 - lost, 0.9, []), (1 - lost / 2, 0.85, [PROMPT]), (1.0, 0.88, [airgap()]),
            (0.97, 0.2, [airgap("random")]),
        ]  # fmt: skip
        out += [agent_record(attack, strategy, privacy=p, utility=u, defenses=d) for p, u, d in settings]
    out.append(agent_record(privacy=0.3, utility=0.9, target={"interface": "tools"}))
    return out


# ---------------------------------------------------------------- maths


@pytest.mark.parametrize(
    ("points", "on"),
    [
        ([(0.5, 0.5)], [True]),
        ([(0.5, 0.5), (0.6, 0.6)], [False, True]),
        ([(0.0, 1.0), (1.0, 0.0), (0.5, 0.5)], [True, True, True]),
        ([(0.0, 1.0), (0.9, 1.0)], [False, True]),
        ([(0.5, 0.5), (0.5, 0.5), (0.4, 0.5)], [True, True, False]),
    ],
)
def test_frontiers_of_known_points(points: list[tuple[float, float]], on: list[bool]) -> None:
    assert frontier.frontier(points) == on


@given(pairs)
def test_a_point_on_the_frontier_is_never_dominated_and_every_other_is_by_one_that_is(
    points: list[tuple[float, float]],
) -> None:
    on = frontier.frontier(points)
    best = [p for p, yes in zip(points, on, strict=True) if yes]
    assert best, "something is always on it"
    for point, yes in zip(points, on, strict=True):
        above = [p for p in best if frontier.dominates(p, point)]
        assert bool(above) != yes
        assert not frontier.dominates(point, point)


@given(pairs, st.data())
def test_adding_a_dominated_point_changes_nothing(
    points: list[tuple[float, float]], data: st.DataObject
) -> None:
    above = data.draw(st.sampled_from(points))
    below = (above[0] * data.draw(numbers), above[1] * data.draw(numbers))
    if below == above:
        return
    assert frontier.frontier([*points, below]) == [*frontier.frontier(points), False]


@given(pairs, st.randoms(use_true_random=False))
def test_the_order_of_the_points_does_not_matter(points: list[tuple[float, float]], rng: Any) -> None:
    moved = list(range(len(points)))
    rng.shuffle(moved)
    on = frontier.frontier(points)
    assert frontier.frontier([points[i] for i in moved]) == [on[i] for i in moved]


def estimate(value: float, half: float | None = 0.05) -> Estimate:
    low, high = (None, None) if half is None else (max(0.0, value - half), min(1.0, value + half))
    return Estimate(value, low, high, 100, 1, "wilson")


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1, max_size=6))
def test_clearly_is_only_said_of_what_holds_at_the_point_values(
    drawn: list[tuple[float, float, float, float]],
) -> None:
    named = [(f"s{i}", estimate(x, a / 2), estimate(y, b / 2)) for i, (x, y, a, b) in enumerate(drawn)]
    told = frontier.places(named)
    on = frontier.frontier([(x.value, y.value) for _, x, y in named])
    for i, (place, yes) in enumerate(zip(told, on, strict=True)):
        assert place.startswith("yes") == yes
        if not yes:
            above = int(place.rsplit("s", 1)[1])
            assert frontier.dominates(*((named[j][1].value, named[j][2].value) for j in (above, i)))
        if place.startswith("no, clearly"):
            assert any(frontier.clearly_below(named[i][1:], o[1:]) for o in named)
        if place == "yes, clearly":
            assert not any(frontier.clearly_below(named[i][1:], o[1:]) for o in named)


def test_intervals_say_how_sure_the_frontier_is() -> None:
    def told(*points: tuple[float, float], half: float | None = 0.05) -> list[str]:
        named = [(chr(97 + i), estimate(x, half), estimate(y, half)) for i, (x, y) in enumerate(points)]
        return frontier.places(named)

    assert told((0.5, 0.5), (0.9, 0.9)) == ["no, clearly: b", "yes, clearly"]
    assert told((0.5, 0.5), (0.55, 0.55)) == ["no: b", "yes"]
    assert told((0.9, 0.5), (0.5, 0.9)) == ["yes, clearly", "yes, clearly"]
    assert told((0.5, 0.5), (0.9, 0.9), half=None) == ["no: b", "yes"], "no interval, nothing is clear"
    assert told((0.5, 0.5)) == ["yes"], "alone, there is nothing to be clear of"
    assert told((0.1, 0.1), (0.9, 0.12), (0.5, 0.5))[0] == "no, clearly: c", "a clear one is named first"


# ---------------------------------------------------------------- boards


def test_each_attack_gets_a_table_of_all_defence_settings() -> None:
    board = table.to_markdown(board_records(), RULES)
    heads = [line for line in board.splitlines() if line.startswith("### ")]
    assert heads == [
        "### privacy against utility: context-hijack, agnostic, oblivious",
        "### privacy against utility: context-hijack, preserving, oblivious",
        "### privacy against utility: context-hijack-adaptive, poisoned-task, oblivious",
        "### privacy against utility: benign, control, oblivious",
    ]
    part = board.split(heads[1])[1].split("### ")[0]
    rows = [line for line in part.splitlines() if line.startswith("| ")][2:]
    assert [r.split(" | ")[0] for r in rows] == [
        "| undefended", "| airgap (minimiser random)", "| airgap (minimiser rules)", "| privacy-prompt",
    ]  # fmt: skip
    assert rows[0] == "| undefended | 0.500 [0.45, 0.55] | 0.900 [0.85, 0.95] | 120 | 80 | 1 | yes |"
    assert rows[1].endswith("| no: airgap (minimiser rules) |")
    # The undefended one may have more utility, but far less privacy.
    assert rows[2].endswith("| yes, clearly |")
    assert rows[3].endswith("| no: airgap (minimiser rules) |")


def test_tables_of_one_task_stand_together_and_tasks_do_not_mix() -> None:
    board = table.to_markdown(board_records(), RULES)
    titles = [line for line in board.splitlines() if line.startswith("##") and "privacy against" not in line]
    text = "## profiles, rules:, chat template, text interface"
    assert [t for t in titles if "text interface" in t] == [
        text,
        f"{text}; behind airgap (minimiser random), oblivious",
        f"{text}; behind airgap (minimiser rules), oblivious",
        f"{text}; behind privacy-prompt, oblivious",
    ]
    places = [i for i, t in enumerate(titles) if "text interface" in t]
    assert places == list(range(places[0], places[0] + 4))
    assert board.count("### ") == 4, "the tools interface has one setting, so nothing to compare"


def test_seeds_of_one_setting_are_pooled() -> None:
    more = [agent_record(privacy=p, utility=0.9, seed=s) for s, p in ((1, 0.4), (2, 0.45))]
    board = table.to_markdown([*board_records(), *more], RULES)
    part = board.split("### privacy against utility: context-hijack, preserving")[1]
    assert "| undefended | 0.450 [" in part and " | 120 | 80 | 3 | " in part.split("| undefended")[1]


def test_adaptive_and_oblivious_attacks_are_compared_apart() -> None:
    adaptive = agent_record(privacy=0.7, utility=0.5, defenses=[airgap()], knowledge="adaptive")
    board = table.to_markdown([*board_records(), adaptive], RULES)
    part = board.split("### privacy against utility: context-hijack, preserving, adaptive")[1]
    rows = [line for line in part.split("### ")[0].splitlines() if line.startswith("| ")][2:]
    assert [r.split(" | ")[0] for r in rows] == ["| undefended", "| airgap (minimiser rules)"]


def test_settings_of_one_defence_are_told_apart() -> None:
    other = airgap(user_error=0.1)
    long = DefensePlugin(name="privacy-prompt", version="1", config={"directive": "Say nothing. " * 10})
    more = [agent_record(privacy=0.9, utility=0.4, defenses=[d]) for d in (other, long)]
    board = table.to_markdown([*board_records(), *more], RULES)
    assert "| airgap (minimiser rules), user_error 0.1 |" in board
    assert "| airgap (minimiser rules) |" in board, "that one does not say how often its user errs"
    assert "| privacy-prompt, directive Say nothing. Say n... (" in board


def test_a_setting_without_one_of_the_metrics_is_listed_and_not_judged() -> None:
    bare = agent_record(privacy=0.99, utility=None, defenses=[airgap("model")])
    board = table.to_markdown([*board_records(), bare], RULES)
    assert "| airgap (minimiser model) | 0.990 [0.94, 1.00] | - | 120 | - | 1 | - |" in board


def test_rows_rank_by_the_least_privacy_and_strategies_are_rows() -> None:
    board = table.to_markdown(board_records(), RULES)
    assert "ranked by privacy, ascending" in board
    first = board.split("## ")[1]
    rows = [line.split(" | ") for line in first.splitlines() if line.startswith("| ")][2:]
    assert [(r[0], r[1], r[2]) for r in rows] == [
        ("| 1", "context-hijack", "strategy=preserving"), ("| 2", "context-hijack-adaptive", "strategy=poisoned-task"),
        ("| 3", "context-hijack", "strategy=agnostic"), ("| -", "benign", ""),
    ]  # fmt: skip


def test_commands_of_agents_name_what_makes_another_experiment() -> None:
    board = table.to_markdown(board_records(), RULES)
    commands = [shlex.split(line) for line in board.splitlines() if line.startswith("redteam attack")]
    wanted = {"airgap:escalate=true,minimiser=rules,repairs=2", "preserving"}
    behind = next(c for c in commands if wanted <= set(c))
    assert " ".join(behind) == (
        "redteam attack context-hijack --dataset profiles --target rules: -o target.template=chat "
        "-o target.profiles=20 -o target.tasks=restaurant,clinic -o target.interface=text --strategy preserving "
        "--defense airgap:escalate=true,minimiser=rules,repairs=2 --turns 1 --seeds 1"
    )
    assert any(c[-6:-4] == ["--defense", "privacy-prompt"] for c in commands), "a comma cannot be given"
    benign = next(c for c in commands if c[2] == "benign")
    assert "--strategy" not in benign


def test_the_terminal_board_fits_100_columns() -> None:
    names = [agent_record("context-hijack-adaptive", s, defenses=[airgap("openai:a-very-long-name-of-a-model-v1.5")],
                          knowledge="adaptive", turns=12) for s in ("derived", "union", "refusals")]  # fmt: skip
    text = table.show([*board_records(), *names], RULES).plain
    assert max(map(len, text.splitlines())) <= 100
    assert "privacy against utility: context-hijack, preserving, oblivious" in text
    assert "context-hijack-adaptive" in text and "no, clearly" not in text.split("\n")[0]


def test_the_order_of_records_changes_no_byte() -> None:
    found = board_records()
    assert table.to_markdown(found[::-1], RULES) == table.to_markdown(found, RULES)


def test_the_csv_has_the_lines_it_had() -> None:
    found = list(csv.DictReader(io.StringIO(table.to_csv(board_records(), RULES))))
    assert len({(f["table"], f["record_ids"], f["metric"]) for f in found}) == len(found)
    assert {f["metric"] for f in found} == {"privacy", "utility"}


def test_kinds_without_a_frontier_have_no_such_table() -> None:
    without = {**RULES, "poisoning": RULES["poisoning"].model_copy(update={"frontier": None})}
    board = table.to_markdown([*golden_records(), *board_records()], without)
    assert "### " not in board.split("# Leaderboard: poisoning")[1]
    assert {k for k in RULES if RULES[k].frontier} == {
        "agent-privacy", "evasion", "poisoning", "poisoning-federation",
    }  # fmt: skip


def test_of_a_metric_in_lower_less_is_better() -> None:
    rules = RULES["poisoning"]
    assert rules.frontier is not None and rules.frontier.lower == ("pta",)
    names = ("weak", "strong", "costly")
    points = {"weak": (0.9, 0.8), "strong": (0.9, 0.1), "costly": (0.7, 0.1)}
    kept = [
        (n, estimate(points[n][0]), frontier._kept(estimate(points[n][1]), "pta", rules.frontier))
        for n in names
    ]
    assert frontier._kept(estimate(0.3), "cta", rules.frontier) == estimate(0.3)
    assert [p.split(",")[0].split(":")[0] for p in frontier.places(kept)] == ["no", "yes", "no"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('x = "utility"', 'x = "usefulness"', "'usefulness' is not among the metrics"),
        ('x = "utility"', 'x = "privacy"', "expected two metrics"),
        ('x = "utility", ', "", "frontier.x: Field required"),
        ('x = "utility"', 'x = "utility", z = "privacy"', "frontier.z"),
    ],
)
def test_bad_frontiers_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = threats()["agents"].board.read_text()
    assert text.count(old) == 1
    path = tmp_path / "rules.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        load_rules(path)


def test_a_frontier_without_defences_held_fixed_is_refused(tmp_path: Path) -> None:
    head, tail = threats()["agents"].board.read_text().split("[agent-privacy]")
    path = tmp_path / "rules.toml"
    path.write_text(head + "[agent-privacy]" + tail.replace('    "defenses",\n', ""))
    with pytest.raises(ConfigError, match="expected 'defenses' in table"):
        load_rules(path)
