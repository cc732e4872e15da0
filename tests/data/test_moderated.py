"""The embedded texts for moderation: what was published, what the script writes, and damage."""

from __future__ import annotations

import json
import shutil

import pytest

from redteam.core.errors import DataError, UnknownNameError
from redteam.data.moderated import TEXTS, load_moderated
from redteam.data.shipped import EMBEDDED_DIR
from scripts import build_moderation as script

# What evidence and records of older versions were made with: a change here is a change of the data set.
DIGEST = "c0faccdf7edbe9b1faea30e1c56d65600bf88a33a591378a54df89f5d34586ef"


def test_the_data_set_is_the_one_that_was_published():
    data = load_moderated("moderated-topics")
    assert data.digest == DIGEST
    assert len(data) == 104 and len(set(data.texts)) == 104 and len(data.benign) == 52
    topics = {i.rsplit("-", 1)[0] for i in data.first(12).ids}
    assert len(topics) == 4, "the first few texts are of all topics"


def test_the_texts_are_what_the_script_writes_and_not_what_the_classifier_was_fitted_on():
    assert json.loads((EMBEDDED_DIR / TEXTS).read_text()) == script.texts()
    data = load_moderated()
    fitted, _ = script.corpus(script.TRAIN_SEED, 500)
    assert not set(fitted) & {*data.texts, *data.benign}
    kept = {w for topic in script.WORDS for w in script.pools(topic)[1]}
    assert not any(word in kept for text in fitted for word in text.lower().split())


def test_unknown_and_damaged_data(tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean 'moderated-topics'"):
        load_moderated("moderated-topic")
    for name in EMBEDDED_DIR.glob("moderat*"):
        shutil.copy(name, tmp_path)
    (tmp_path / TEXTS).write_text("{}")
    with pytest.raises(DataError, match=r"was changed.*reinstall"):
        load_moderated(folder=tmp_path)
    (tmp_path / TEXTS).unlink()
    with pytest.raises(DataError, match="is missing"):
        load_moderated(folder=tmp_path)
