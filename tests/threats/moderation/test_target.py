"""The moderation target: which texts it holds out, what it is made of, and what configures it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.config import to_json
from redteam.core.errors import ConfigError
from redteam.data.moderated import load_moderated, read_card
from redteam.data.nouns import TextDataset
from redteam.llm.moderation import open_classifier
from redteam.threats.moderation.target import SPEC, ModerationTarget, configure, pinned, split_of


def test_the_split_is_decided_by_the_texts_alone():
    texts = load_moderated().texts
    split = split_of(texts, 0.75)
    assert split.count("validation") == 78
    turned = dict(zip(texts[::-1], split_of(texts[::-1], 0.75), strict=True))
    assert turned == dict(zip(texts, split, strict=True))
    assert split_of(texts, 0.0).count("train") == len(texts)
    assert split_of(("a",), 0.99) == ("train",)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=30), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_larger_share_holds_out_the_same_texts_and_more(texts, one, other):
    low, high = (split_of(tuple(texts), share) for share in sorted((one, other)))
    assert "train" in high
    assert all(b == "validation" for a, b in zip(low, high, strict=True) if a == "validation")


def test_the_target(ctx):
    data = load_moderated()
    config = configure(data, {"strings": 20, "validation": 0.5}, {"repeats": "1"})
    sizes = {"strings": 20, "validation": 0.5, "repeats": 1, "benign": 64}
    assert to_json(config) == {"model": "embedded:", **sizes}
    target = ModerationTarget(data, config, ctx)
    assert (target.kind, SPEC.kind, SPEC.name) == ("text-classifier", "target", "moderation-classifier")
    assert target.texts.ids == data.ids[:20]
    assert len(target.validation) == 10 and sorted(target.train + target.validation) == list(range(20))
    assert target.classifier is target.undefended
    other = open_classifier("embedded:", ctx)
    defended = target.behind(other)
    assert defended.classifier is other and defended.undefended is target.undefended
    assert defended.split == target.split and target.classifier is target.undefended
    assert pinned(target) == {"content": read_card()["sha256"]}
    assert target.fingerprint() != ModerationTarget(data, configure(data, {"strings": 21}), ctx).fingerprint()
    json.dumps(target.fingerprint())


def test_configs_that_do_not_fit_are_refused():
    data = TextDataset("two", ("a", "b"), ("x", "y"), "tests", "none")
    with pytest.raises(ConfigError, match="strings: expected at most 2"):
        configure(data, {"strings": 3})
    with pytest.raises(ConfigError, match="unknown option 'split'"):
        configure(data, {"split": 1})
    with pytest.raises(ConfigError, match="validation: expected at most"):
        configure(data, {"validation": 1.0})
