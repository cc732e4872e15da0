"""FLIP beyond its gradient: expert data, visits, snapshots, selection, files, and the whole attack."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from attacks.poisoning import flip
from attacks.poisoning.flip import craft, select
from redteam.core.errors import ConfigError, InputError
from redteam.data.nouns import ImageSet

TINY = {"experts": 1, "expert_epochs": 1, "passes": 2, "batch_size": 32, "checkpoint_every": 2, "budget": 6}


def config(target, **changes):
    return flip.resolve(flip.Config(**{**TINY, **changes}), target)


# ---------------------------------------------------------------- expert data and visits


def test_expert_data_appends_the_last_source_rows_stamped(target):
    c = config(target)
    data = craft.expert_data(target.train, c)
    n, k = len(target.train), len(target.train.classes)
    sources = np.flatnonzero(target.train.labels == c.source)[-(n // k) :]
    assert np.array_equal(data.rows, np.concatenate([np.arange(n), sources]))
    assert (data.labels[n:] == c.target_class).all() and np.array_equal(data.labels[:n], target.train.labels)
    assert np.array_equal(data.clean, target.train.images[data.rows])
    assert np.array_equal(data.images[:n], data.clean[:n])
    assert not np.array_equal(data.images[n:], data.clean[n:])


def test_all_to_one_draws_from_every_class_but_the_target(target):
    c = config(target, source="all")
    data = craft.expert_data(target.train, c)
    poisons = data.rows[len(target.train) :]
    assert set(target.train.labels[poisons]) == {1, 2} and len(poisons) == len(target.train) // 3


def test_repeats_and_partial_knowledge(target):
    data = craft.expert_data(target.train, config(target, poison_repeats=3, known_fraction=0.5))
    n = len(target.train) // 2
    assert data.rows.max() < n and len(data.rows) == n + 3 * (n // 3)
    sorted_set = ImageSet(*(a[np.argsort(target.train.labels, kind="stable")] for a in
                            (target.train.images, target.train.labels)), target.train.classes)  # fmt: skip
    known_few = flip.Config(**{**TINY, "source": 2, "target_class": 0, "known_fraction": 0.1})
    with pytest.raises(ConfigError, match="none of the 24 rows known"):
        craft.poison_rows(sorted_set, known_few)


def test_visits_avoid_epoch_starts_and_go_round_the_places():
    c = flip.Config(experts=3, expert_epochs=4, first_epoch=1, passes=40, checkpoint_every=50)
    visits = craft.draw_visits(c, 214, np.random.default_rng(0))
    assert [v.step % 214 for v in visits] == [50, 100, 150, 200] * 10
    assert {v.step // 214 for v in visits} == {1, 2, 3} and {v.expert for v in visits} == {0, 1, 2}


def test_places_follow_the_length_of_the_epoch_unless_told(target):
    assert config(target, checkpoint_every=None).checkpoint_every == 2  # ceil of the 10 steps over 6
    assert config(target, checkpoint_every=3).checkpoint_every == 3


def test_a_too_short_epoch_is_refused():
    with pytest.raises(ConfigError, match="fewer than the 9 steps of an epoch, got 50"):
        craft.draw_visits(flip.Config(), 9, np.random.default_rng(0))


def test_only_the_snapshots_that_will_be_read_are_kept(target, ctx):
    c = config(target, expert_epochs=2, passes=3)
    data = craft.expert_data(target.train, c)
    resident = craft.Resident.load(data.images, data.labels, target.facts, torch.device("cpu"))
    visits = [craft.Visit(0, 2), craft.Visit(0, 5), craft.Visit(0, 2)]
    kept = craft.train_experts(target, c, resident, visits, ctx)
    assert set(kept) == set(visits) and len(kept) == 2
    first, later = kept[visits[0]], kept[visits[1]]
    assert any((first[0][k] != later[0][k]).any() for k in first[0])
    assert any((m != 0).any() for m in first[1].values())


# ---------------------------------------------------------------- label state


def test_a_row_that_occurs_twice_in_a_batch_receives_both_parts():
    state = craft.LabelState(torch.zeros(3, 2), torch.tensor([0, 1, 0]))
    c = flip.Config(label_lr=1.0, label_momentum=0.5)
    state.step(torch.tensor([1, 1]), torch.tensor([[1.0, 0.0], [2.0, 0.0]]), c)
    assert state.logits[1, 0] == -6.0 and (state.logits[[0, 2]] == 0).all()


def test_folded_momentum_is_the_dense_one():
    """One visit a row: after many further batches, dense momentum SGD has made the same step."""
    gradient = torch.randn(4, 3, dtype=torch.float64)
    dense = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([dense], lr=150.0, momentum=0.5)
    for step in range(60):
        dense.grad = gradient.clone() if step == 0 else torch.zeros_like(gradient)
        optimizer.step()
    state = craft.LabelState(torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.int64))
    state.step(torch.arange(4), gradient, flip.Config())
    torch.testing.assert_close(state.logits, dense.detach(), rtol=1e-12, atol=1e-10)


# ---------------------------------------------------------------- selection


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 3))
def test_selection_properties(seed, budget, runs):
    """Exactly the budget flips, never to the true label; a smaller budget's flips are among a larger's."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 50)
    logits = [np.round(rng.normal(size=(50, 4)), 1) for _ in range(runs)]
    given_ = select.select_flips(logits, labels, budget)
    flipped = set(np.flatnonzero(given_ != labels))
    assert len(flipped) == budget
    smaller = set(np.flatnonzero(select.select_flips(logits, labels, budget // 2) != labels))
    assert smaller <= flipped


def test_selection_by_hand():
    """Margins are the least over runs, new labels the argmax of the mean logits."""
    labels = np.array([0, 0, 1])
    one = np.array([[0.0, 3.0, 1.0], [0.0, 1.0, 2.0], [0.0, 5.0, 0.0]])
    two = np.array([[0.0, 1.0, 9.0], [0.0, 0.0, 1.5], [0.0, 5.0, 0.0]])
    assert select.margins(one, labels).tolist() == [3.0, 2.0, -5.0]
    assert select.select_flips([one], labels, 1).tolist() == [1, 0, 1]
    # Margins 3 and 1.5; the mean favours 2.
    assert select.select_flips([one, two], labels, 1).tolist() == [2, 0, 1]
    assert select.select_flips([one], labels, 3, known=2).tolist() == [1, 2, 1]


def test_ties_go_to_the_lower_row():
    assert select.select_flips([np.zeros((4, 3))], np.array([1, 1, 1, 1]), 2).tolist() == [0, 0, 1, 1]


def test_soft_labels_closed_form():
    logits, labels = [np.array([[5.0, 0.0, 0.0]])], np.array([0])
    e = np.exp
    assert select.soften(logits, labels, 0.0)[0, 0] == pytest.approx(e(5) / (e(5) + 2), rel=1e-6)
    assert select.soften(logits, labels, 1.0)[0, 0] == pytest.approx(e(1) / (e(1) + 2), rel=1e-6)
    assert select.soften(logits, labels, 0.2).sum() == pytest.approx(1, rel=1e-6)


# ---------------------------------------------------------------- label files


def save(tmp_path, array, name="labels.npy"):
    np.save(tmp_path / name, array)
    return tmp_path / name


LABELS = np.arange(30) % 3


def released(labels, given_, logits):
    """The released layout: one-hot rows, and flipped rows as logits - 50000 onehot(true)."""
    out = np.eye(logits.shape[1], dtype=np.float32)[labels]
    flipped = np.flatnonzero(given_ != labels)
    out[flipped] = logits[flipped]
    out[flipped, labels[flipped]] -= 50_000
    return out


def test_released_layout_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    given_ = LABELS.copy()
    given_[[3, 8]] = (given_[[3, 8]] + 1) % 3
    logits = rng.normal(size=(30, 3))
    logits[[3, 8], given_[[3, 8]]] = 9
    path = save(tmp_path, released(LABELS, given_, logits))
    read = select.read_labels(path, LABELS, 3)
    assert select.is_final(read, LABELS) and np.array_equal(select.final_labels([read], LABELS, 2), given_)
    with pytest.raises(InputError, match="flip 2 rows and the budget is 1"):
        select.final_labels([read], LABELS, 1)


def test_several_finished_files_flip_what_all_of_them_flip(tmp_path):
    """Rows 1 and 2 are flipped by both; row 5 by one alone; no clean row is drawn in to fill the budget."""
    files = []
    for index, rows in enumerate(([1, 2, 5], [1, 2, 7])):
        given_ = LABELS.copy()
        given_[rows] = (given_[rows] + 1) % 3
        files.append(select.read_labels(save(tmp_path, given_, f"{index}.npy"), LABELS, 3))
    assert np.flatnonzero(select.final_labels(files, LABELS, 9) != LABELS).tolist() == [1, 2]
    with pytest.raises(InputError, match="some of each"):
        select.final_labels([files[0], 5.0 * np.eye(3)[LABELS]], LABELS, 9)


def test_pinned_files_are_the_ones_that_were_planned(tmp_path):
    path = save(tmp_path, LABELS)
    save(tmp_path, LABELS, "other.npy")
    pins = select.pin_files([str(tmp_path / "*.npy")], LABELS, 3)
    assert len(pins) == 2 and all("#sha256=" in p for p in pins)
    assert select.pin_files(pins, LABELS, 3) == pins
    changed = LABELS.copy()
    changed[0] = 2
    np.save(path, changed)
    assert select.pin_files([str(path)], LABELS, 3) != (pins[0],)
    with pytest.raises(InputError, match="no longer the file that was planned"):
        select.read_pinned(pins[0], LABELS, 3)


def test_hard_labels_and_raw_logits(tmp_path):
    given_ = LABELS.copy()
    given_[4] = 0
    read = select.read_labels(save(tmp_path, given_), LABELS, 3)
    assert np.array_equal(select.final_labels([read], LABELS, 1), given_)
    raw = 5.0 * np.eye(3)[LABELS]
    assert not select.is_final(select.read_labels(save(tmp_path, raw), LABELS, 3), LABELS)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((29, 3)), r"expected 30 rows.*holds \(29, 3\)"),
        (np.zeros((30, 4)), "expected 3 classes a row, got 4"),
        (np.zeros((30, 3), int), "expected floating-point logits"),
        (np.zeros(30), "expected whole numbers"),
        (np.full(30, 3), "expected classes 0 to 2, got 3 to 3"),
        (np.full((30, 3), np.nan), "not finite"),
        (np.eye(3)[(LABELS + 1) % 3], "only 0% of .* agree with the true labels"),
        (np.zeros((2, 2, 2)), "expected 30 rows"),
        (np.array([{}] * 30), "without pickles"),
    ],
)
def test_label_files_that_do_not_fit(tmp_path, array, message):
    with pytest.raises(InputError, match=message):
        select.read_labels(save(tmp_path, array), LABELS, 3)


def test_absent_or_broken_label_files(tmp_path, target, ctx):
    with pytest.raises(InputError, match="no file at"):
        select.read_labels(tmp_path / "none.npy", LABELS, 3)
    for content in (b"hello", b"PK\x03\x04 no archive"):
        (tmp_path / "text.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"\.npy file without pickles"):
            select.read_labels(tmp_path / "text.npy", LABELS, 3)
    with pytest.raises(InputError, match="no file matches"):
        config(target, labels=(str(tmp_path / "*.npz"),))


# ---------------------------------------------------------------- the attack


def test_one_set_of_logits_serves_all_budgets(target, ctx, tmp_path):
    ctx = replace(ctx, stage_dir=tmp_path)
    small, large = (flip.run(target, config(target, budget=b), ctx) for b in (3, 9))
    assert len(list(tmp_path.glob("flip-logits-*.npz"))) == 1
    flips = [set(np.flatnonzero(a.targets != target.train.labels)) for a in (small, large)]
    assert len(flips[0]) == 3 and len(flips[1]) == 9 and flips[0] < flips[1]


def test_runs_soft_labels_and_knowledge(target, ctx, tmp_path):
    ctx = replace(ctx, stage_dir=tmp_path)
    flip.run(target, config(target, runs=2), ctx)
    assert len(list(tmp_path.glob("flip-logits-*.npz"))) == 2
    soft = flip.run(target, config(target, soft_alpha=0.2), ctx)
    assert soft.targets.shape == (240, 3) and soft.targets.dtype == np.float32 and soft.budget == 240
    half = flip.run(target, config(target, soft_alpha=0.2, known_fraction=0.5), ctx)
    onehot = np.eye(3, dtype=np.float32)[target.train.labels]
    assert half.budget == 120 and np.array_equal(half.targets[120:], onehot[120:])
    assert (half.targets[:120] != onehot[:120]).any(1).all()
    part = flip.run(target, config(target, known_fraction=0.5), ctx)
    assert np.flatnonzero(part.targets != target.train.labels).max() < 120


def test_a_label_file_is_scored_without_crafting(target, ctx, tmp_path):
    crafted = flip.run(target, config(target), ctx)
    np.save(tmp_path / "l.npy", crafted.targets)
    from_file = config(target, labels=(str(tmp_path / "l.npy"),))
    read = flip.run(target, from_file, replace(ctx, stage_dir=tmp_path))
    assert np.array_equal(read.targets, crafted.targets) and not list(tmp_path.glob("flip-logits-*"))


def test_float32_selects_what_float64_selects(target, ctx):
    """The acceptance rule for a lower precision: rank correlation above 0.99, top flips 95 % the same."""
    contexts = [replace(ctx, dtype=d) for d in ("float32", "float64")]
    runs = [craft.optimise_labels(target, config(target), c)[0] for c in contexts]
    margins = [select.margins(run.astype(float), target.train.labels) for run in runs]
    assert spearmanr(*margins).statistic > 0.99
    flips = [set(np.argsort(-m, kind="stable")[:20]) for m in margins]
    assert len(flips[0] & flips[1]) >= 19


def test_labels_move_towards_the_matching_loss(target, ctx):
    """At the published rate, passes over one snapshot lower its loss."""
    c = config(target, passes=8, checkpoint_every=7)
    _, losses = craft.optimise_labels(target, c, ctx)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "budget: expected more than 0"),
        ({"budget": -1}, "budget: expected more than 0"),
        ({"budget": 241}, "expected 1 to 240 rows"),
        ({"budget": 2.5}, "expected 1 to 240 rows"),
        ({"source": 0}, "both class 0"),
        ({"source": 3}, "source: expected a class from 0 to 2, got 3"),
        ({"target_class": "class 9"}, "unknown target class 'class 9'"),
        ({"expert_model": "resnet9"}, "unknown expert_model 'resnet9'"),
        ({"checkpoint_every": 99}, "fewer than the 10 steps of an epoch, got 99"),
        ({"batch_size": 900}, "at most the 320 training rows, got 900"),
    ],
)
def test_goals_that_do_not_fit(target, changes, message):
    with pytest.raises(InputError, match=message):
        config(target, **changes)


def test_class_names_and_fractions_are_resolved(target):
    c = config(target, source="Class 1", target_class=2, budget=0.1)
    assert (c.source, c.target_class, c.budget, c.trigger_strength) == (1, 2, 24, 6.0)
    with pytest.raises(ConfigError, match="first_epoch"):
        flip.Config(first_epoch=3, expert_epochs=3)
