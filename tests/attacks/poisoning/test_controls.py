"""The controls do what their cards say and nothing else."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from attacks.poisoning import badnets, inner_product_flips, no_attack, random_flips
from attacks.poisoning._backdoor import Backdoor
from redteam.threats.poisoning import triggers


def resolved(module, target, **changes):
    return module.SPEC.resolve(Backdoor(**{"budget": 10, **changes}), target)


def changed(artifact, target):
    return np.flatnonzero(artifact.targets != target.train.labels)


def test_no_attack_changes_nothing_whatever_the_budget(target, ctx):
    a = no_attack.run(target, resolved(no_attack, target, budget=100), ctx)
    assert len(changed(a, target)) == 0 and a.images is None and a.budget == 0


def test_random_flips_are_source_rows_given_the_target(target, ctx):
    a = random_flips.run(target, resolved(random_flips, target), ctx)
    rows = changed(a, target)
    assert len(rows) == 10 and (target.train.labels[rows] == 2).all() and (a.targets[rows] == 0).all()
    everyone = random_flips.run(target, resolved(random_flips, target, source="all", budget=60), ctx)
    assert set(target.train.labels[changed(everyone, target)]) == {1, 2}
    most = random_flips.run(target, resolved(random_flips, target, budget=200), ctx)
    known = random_flips.run(target, resolved(random_flips, target, known_fraction=0.2), ctx)
    assert changed(known, target).max() < 48
    assert len(changed(most, target)) == 80  # every source row, and no more


def test_inner_product_takes_the_rows_most_like_the_trigger(target, ctx):
    c = resolved(inner_product_flips, target)
    rows = changed(inner_product_flips.run(target, c, ctx), target)
    sources = np.flatnonzero(target.train.labels == 2)
    images = target.train.images[sources]
    added = triggers.direction(c.spec(), images, sources)
    scores = inner_product_flips.inner_products(images, added)
    chosen = np.isin(sources, rows)
    assert len(rows) == 10 and scores[chosen].min() >= scores[~chosen].max()


@given(st.integers(0, 2**31), st.integers(-50, 50))
def test_a_constant_added_to_all_images_changes_no_score(seed, shift):
    rng = np.random.default_rng(seed)
    images = rng.integers(60, 190, (6, 5, 5, 1)).astype(np.uint8)
    added = rng.normal(size=images.shape)
    shifted = (images.astype(int) + shift).astype(np.uint8)
    before, after = (inner_product_flips.inner_products(x, added) for x in (images, shifted))
    np.testing.assert_allclose(before, after, atol=1e-8)


def test_badnets_stamps_what_it_relabels(target, ctx):
    c = resolved(badnets, target)
    a = badnets.run(target, c, ctx)
    assert set(a.indices) == set(changed(a, target)) and len(a.indices) == 10
    assert np.array_equal(a.images, triggers.apply(c.spec(), target.train.images[a.indices], a.indices))
