"""Grouping, aggregation and ranks against closed forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboards.rules import Ranking, load_rules
from leaderboards.sections import Row, rank_ranges, sections
from redteam.core.errors import RecordError
from redteam.core.record import Record
from redteam.core.stats import Estimate, across_cells
from tests.leaderboards.helpers import SHADOW, metric, record

RULES = load_rules()["poisoning"]


def rows(*records: Record) -> list[Row]:
    return [row for section in sections(records, RULES) for row in section.rows]


def ranks(*records: Record) -> dict[str, tuple[int, int] | None]:
    return {row.name: row.rank for row in rows(*records)}


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([], []),
        ([(0.1, 0.2)], [(1, 1)]),
        ([(0.1, 0.2), (0.3, 0.4)], [(2, 2), (1, 1)]),
        ([(0.5, 0.7), (0.6, 0.8)], [(1, 2), (1, 2)]),
        ([(0.8, 0.9), (0.5, 0.7), (0.6, 0.75), (0.1, 0.2)], [(1, 1), (2, 3), (2, 3), (4, 4)]),
        # A chain: the ends are told apart, the middle overlaps with both.
        ([(0.5, 0.6), (0.35, 0.52), (0.2, 0.4)], [(1, 2), (1, 3), (2, 3)]),
        ([(0.2, 0.4), (0.4, 0.6)], [(1, 2), (1, 2)]),
    ],
)
def test_rank_ranges_of_known_intervals(
    intervals: list[tuple[float, float]], expected: list[tuple[int, int]]
) -> None:
    assert rank_ranges(intervals) == expected


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)).map(lambda p: (min(p), max(p))), max_size=12))
def test_rank_ranges_hold_the_sorted_place_of_every_midpoint(intervals: list[tuple[float, float]]) -> None:
    places = rank_ranges(intervals)
    middles = [(low + high) / 2 for low, high in intervals]
    for (first, last), middle in zip(places, middles, strict=True):
        assert 1 <= first <= last <= len(intervals)
        assert first <= 1 + sum(m > middle for m in middles) <= last


def test_seeds_are_aggregated_as_across_cells_does() -> None:
    cells = [record(seed=s, lift=lift) for s, lift in enumerate((0.4, 0.5, 0.7))]
    (row,) = rows(*cells)
    expected = across_cells([Estimate(v, v - 0.05, v + 0.05, 36, 2, "two-way-t") for v in (0.4, 0.5, 0.7)])
    found = row.metrics["trigger_lift", None]
    assert found.estimate == expected
    assert (found.cells, found.victims, expected.seeds) == (3, 6, 3)
    assert found.estimate.value == pytest.approx(1.6 / 3)


def test_one_cell_keeps_its_own_interval_and_victims() -> None:
    (row,) = rows(record(lift=0.5))
    found = row.metrics["trigger_lift", None]
    assert (found.estimate.low, found.estimate.high, found.cells, found.victims) == (0.45, 0.55, 1, 2)


def test_a_metric_that_some_cells_lack_counts_only_the_cells_that_have_it() -> None:
    (row,) = rows(record(seed=0), record(seed=1, metrics=[metric("cta", 0.9)]))
    assert row.metrics["cta", None].cells == 2
    assert row.metrics["trigger_lift", None].cells == 1


def test_mixed_confidence_levels_are_refused() -> None:
    odd = metric("cta", 0.9).model_copy(update={"confidence": 0.99})
    with pytest.raises(RecordError, match=r"one confidence level.*0\.95, 0\.99"):
        rows(record(seed=0), record(seed=1, metrics=[odd]))


def test_settings_defences_and_data_part_what_is_not_the_same() -> None:
    others = [record(settings={"passes": 3}), record(dataset="other"), record(defenses=(SHADOW,))]
    found = sections([record(), *others], RULES)
    assert [len(s.rows) for s in found] == [2, 1, 1]
    assert [s.held["task.dataset"] for s in found] == ["digits", "digits", "other"]
    assert [s.knowledge for s in found] == [None, "adaptive", None]
    assert {str(r.settings) for r in found[0].rows} == {"{}", "{'attack.config.passes': 3}"}


def test_controls_reported_numbers_and_rows_without_an_interval_are_never_ranked() -> None:
    assert ranks(
        record("a", lift=0.2),
        record("control", lift=0.9, role="control"),
        record("paper", lift=0.95, source="reported"),
        record("bare", lift=0.8, half=None),
        record("submitted", lift=0.5, source="external"),
    ) == {"submitted": (1, 1), "a": (2, 2), "control": None, "paper": None, "bare": None}


def test_only_attacks_of_equal_budget_meet() -> None:
    found = rows(record("a", lift=0.2, budget=10), record("b", lift=0.9, budget=30))
    assert [(r.name, r.rank) for r in found] == [("a", (1, 1)), ("b", (1, 1))]


def test_rows_come_by_budget_then_rank_with_controls_last() -> None:
    found = rows(
        record("control", lift=0.99, role="control"), record("weak", lift=0.1), record("strong", lift=0.9),
        record("small", lift=0.5, budget=10),
    )  # fmt: skip
    assert [r.name for r in found] == ["small", "strong", "weak", "control"]


def test_where_adaptive_cells_exist_oblivious_ones_are_not_ranked() -> None:
    oblivious = record(defenses=(SHADOW,), knowledge="oblivious", lift=0.9)
    assert rows(oblivious)[0].rank == (1, 1)
    found = sections([oblivious, record(defenses=(SHADOW,), lift=0.1)], RULES)
    assert [(s.knowledge, s.ranked, s.rows[0].rank) for s in found] == [
        ("adaptive", True, (1, 1)),
        ("oblivious", False, None),
    ]
    failed = record(defenses=(SHADOW,), status="error")
    assert [s.ranked for s in sections([oblivious, failed], RULES)] == [True, True]


def test_a_row_needs_the_stated_number_of_cells_to_be_ranked() -> None:
    strict = RULES.model_copy(update={"min_cells": 2})
    (section,) = sections([record("a"), record("b", seed=0), record("b", seed=1)], strict)
    assert {r.name: r.rank for r in section.rows} == {"a": None, "b": (1, 1)}


def test_ascending_rules_rank_the_smallest_first() -> None:
    rules = RULES.model_copy(update={"ranking": Ranking(metric="trigger_lift", order="ascending")})
    (section,) = sections([record("a", lift=0.1), record("b", lift=0.5)], rules)
    assert [(r.name, r.rank) for r in section.rows] == [("a", (1, 1)), ("b", (2, 2))]


def test_a_second_record_of_one_seed_cannot_slip_into_a_row() -> None:
    first = record()
    attack = first.cell.attack.model_copy(update={"digest": "0" * 64})
    forged = first.cell.model_copy(update={"attack": attack})
    second = first.model_copy(update={"cell": forged, "id": forged.id})
    assert [len(r.records) for r in rows(first, second)] == [1, 1]
