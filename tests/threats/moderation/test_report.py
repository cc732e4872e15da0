"""The page of a moderation run: both controls beside the suffix, every text with its verdicts, and held-out texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from redteam.cli import cli
from redteam.core.context import Context
from redteam.core.device import Device
from redteam.core.hashing import digest_json
from redteam.core.record import DefensePlugin, Plugin, Record, TaskInfo
from redteam.core.seeding import SeedPath
from redteam.data.nouns import TextDataset
from redteam.threats.moderation.artifact import Suffixes
from redteam.threats.moderation.report import render
from redteam.threats.moderation.report.words import DEFINITIONS
from redteam.threats.moderation.scorer import ScoreSettings, measure
from tests.leaderboards.helpers import record as plain_record
from tests.threats.moderation.test_scorer import Scripted
from tests.threats.pages import assert_metrics, assert_refuses, assert_whole, save_run, text_of

Stored = tuple[Path, list[Record]]
TEXTS = ("do it", "go <now>\u202e", "please stay", *(f"shout {i}" for i in range(21)))
N = len(TEXTS)
SHIELD = DefensePlugin(name="perplexity", version="1", config={"cap": 3})


class Faulty(Scripted):
    """As `Scripted`, but what holds the word `late` gets no verdict."""

    def classify(self, texts: Any) -> Any:
        return [
            type(v)(scores=v.scores, flagged=True, finish="timeout") if "late" in t else v
            for t, v in zip(texts, super().classify(texts), strict=True)
        ]


def suffixes(word: str, held_out: int = 0, odd: str = "") -> Suffixes:
    split = ("train",) * (N - held_out) + ("validation",) * held_out
    sent = tuple(f"{t} {odd if odd and i == 1 else word}" for i, t in enumerate(TEXTS))
    return Suffixes(
        ids=tuple(f"t{i}" for i in range(N)), texts=TEXTS, sent=sent, control=tuple(f"{t} xyz" for t in TEXTS),
        split=split, finish=("stop",) * N, queries=np.arange(1, N + 1), score_before=np.full(N, 1.1),
        score_after=np.full(N, 0.3), notes={"alphabet": "<words>"},
    )  # fmt: skip


def write_run(
    root: Path, artifact: Suffixes, *, attack: str = "gcq-moderation", role: Any = "attack", seed: int = 0,
    defenses: tuple[DefensePlugin, ...] = (), **config: Any,
) -> Record:  # fmt: skip
    """A run scored by a classifier that lets through what holds `please`."""
    data = TextDataset("topics", artifact.ids, TEXTS, "tests", "none", benign=("please", "x"))
    ctx = Context(Device("cpu"), SeedPath(0))
    scored = measure(artifact, data, Faulty(), ScoreSettings(repeats=3, benign=2), ctx)
    config = {"length": 2, "max_queries": 100, "universal": False, **config}
    base = plain_record(metrics=())
    cell = base.cell.model_copy(update={
        "threat": "moderation", "seed": seed, "defenses": defenses,
        "task": TaskInfo(dataset="topics", digest=data.digest, target="moderation-classifier", model="embedded:",
                         config={"repeats": 3, "content": "0" * 64}),
        "attack": Plugin(name=attack, version="1", config=config, digest=digest_json([attack, config])),
    })  # fmt: skip
    return save_run(root / cell.id, base, artifact, scored.evidence, scored, cell=cell, id=cell.id, role=role)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """An attack with two seeds, a universal one, a control, and a defended run."""
    root = tmp_path_factory.mktemp("store")
    own, noise = suffixes("please", odd="late \x07"), suffixes("noise")
    records = [write_run(root, own), write_run(root, own, seed=1)]
    records.append(write_run(root, suffixes("please", held_out=8), universal=True))
    records.append(write_run(root, noise, attack="random-suffix", role="control"))
    records.append(write_run(root, noise, defenses=(SHIELD,)))
    return root, records


@pytest.fixture(scope="module")
def page(store: Stored) -> str:
    return render(store[0] / store[1][0].id, store[1], None)


def test_every_metric_stands_there_and_the_page_is_whole(store: Stored, page: str) -> None:
    assert_metrics(store[1][0], page, DEFINITIONS, victims=False)
    assert_whole(page)
    assert render(store[0] / store[1][0].id, store[1][::-1], None) == page


def test_evasion_stands_beside_both_controls_and_other_runs(page: str) -> None:
    seen = text_of(page)
    for name, value in (("evasion", "0.958"), ("base_evasion", "0.042"), ("random_evasion", "0.042")):
        assert f"{name} {value} [" in seen
    assert (
        "gcq-moderation (universal=false) this run 0.958" in seen and "random-suffix (control) 0.042" in seen
    )
    assert "Controls beside this run reached an evasion of: random-suffix (control) 0.042" in seen
    assert "so the suffix has an effect" in seen and "so the search does more than noise" in seen
    assert "1 other record was left out" in seen, "the defended run is another question"
    assert "with the suffix" in page[page.index("<svg") : page.index("</svg>")]


def test_each_text_shows_its_suffixes_and_verdicts_in_every_arm(page: str) -> None:
    seen = text_of(page)
    assert "t0 train 0/3 1.100 0/3 1.100 3/3 0.300 1 stop text do it suffix please random xyz" in seen
    assert "t1 train 0/3 1.100 0/3 1.100 0/3 (timeout) no score 2 stop" in seen
    assert "go &lt;now&gt;\\u202e" in page and "late \\x07" in page and "\u202e" not in page
    assert "4 more texts" in seen and "text shout 20 suffix" in seen
    assert page.count('class="keep hit"') == 1 + 1 + 23, "one text passes in any arm, 22 by the suffix alone"


def test_verdicts_and_cost_are_counted(page: str) -> None:
    seen = text_of(page)
    assert (
        "asked passed flagged timeout as it was 3 69 0 with a random suffix 3 69 0 with the suffix 69 0 3"
        in seen
    )
    assert "The searches put 300 texts" in seen and "train 24 12.5 24 300" in seen
    assert "Some searches or requests ended in errors or timeouts." in seen and "1.000 [" in seen


def test_held_out_texts_are_told_apart(store: Stored) -> None:
    root, records = store
    seen = text_of(render(root / records[2].id, [], None))
    assert "one suffix of at most 2 tokens for all of 24 texts" in seen
    assert "Of those 8, 1.000 [" in seen and "texts held out of the search 8 1.000" in seen
    assert "As it was" not in seen and "The controls of this run are in it" in seen


def test_a_suffix_without_effect_and_a_defended_run_say_so(store: Stored) -> None:
    root, records = store
    flags = {"no-suffix-effect": "None < some."}
    page = render(root / records[4].id, records, None, flags=flags)
    assert "so this run shows no effect of the suffix" in page and "behind perplexity (adaptive)" in text_of(
        page
    )
    assert "<code>no-suffix-effect</code>: None &lt; some." in page


def test_files_that_do_not_fit_and_runs_without_a_score_are_refused(tmp_path: Path) -> None:
    record = write_run(tmp_path, suffixes("please"))
    assert_refuses(render, tmp_path / record.id, ["artifact.npz", "outcomes.parquet"])


def test_the_command_line_writes_the_page(store: Stored, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    words = ["report", store[1][0].id, "--store", str(store[0]), "--out", str(out)]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert "Evasion beside its controls" in out.read_text()
