"""The page holds the record's numbers and the run's own pictures, and refuses files that were changed."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from redteam.core.errors import DataError
from redteam.core.record import Record
from redteam.data.nouns import ImageDataset
from redteam.report.pictures import png_uri
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.report import render
from redteam.threats.poisoning.report.pictures import AMPLIFIED, amplified
from redteam.threats.poisoning.report.words import DEFINITIONS
from tests.threats.pages import assert_metrics, assert_refuses, assert_whole, decoded, text_of
from tests.threats.poisoning.report_helpers import (
    NULL,
    SOURCE,
    TARGET,
    dataset,
    poison,
    sibling,
    siblings,
    write_run,
)

DATA = dataset()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    folder = tmp_path_factory.mktemp("store") / "run"
    return folder, write_run(folder, DATA, published=(NULL,), flags=("under-budget",))


@pytest.fixture(scope="module")
def page(made: tuple[Path, Record]) -> str:
    return render(made[0], siblings(made[1]), DATA)


def test_every_metric_stands_there_and_the_page_is_whole(made: tuple[Path, Record], page: str) -> None:
    assert_metrics(made[1], page, DEFINITIONS, victims=True)
    assert_whole(page)
    assert render(made[0], siblings(made[1])[::-1], DATA) == page, "same inputs, same page"
    assert "seed 0, 2 victims" in text_of(page)


def test_names_from_outside_are_escaped(made: tuple[Path, Record], page: str) -> None:
    assert "<b>x" not in page and "class 9 (&lt;b&gt;x)" in page and "table &lt;9&gt;" in page
    odd = sibling(made[1], "<script>$x^$", lift=0.4)
    other = render(made[0], [*siblings(made[1]), odd], DATA)
    assert "<script" not in other and "&lt;script&gt;$x^$" in other


def test_pictures_decode_to_the_exact_bytes_before_and_after_the_trigger(page: str) -> None:
    rows = np.flatnonzero(DATA.test.labels == SOURCE)[:8]
    plain = DATA.test.images[rows]
    stamped = triggers.apply(poison(DATA).trigger, plain, rows)
    found = decoded(page)
    assert len(found) == 24
    for i in range(8):
        np.testing.assert_array_equal(found[3 * i], plain[i, :, :, 0])
        np.testing.assert_array_equal(found[3 * i + 1], stamped[i, :, :, 0])
        np.testing.assert_array_equal(found[3 * i + 2], amplified(plain[i], stamped[i])[:, :, 0])
    assert f"difference ×{AMPLIFIED}" in page and "image-rendering: pixelated" in page


def test_colour_pictures_with_variants_decode_too(tmp_path: Path) -> None:
    data = dataset(channels=3, size=32)
    artifact = poison(data, "3xp")
    made = write_run(tmp_path / "run", data, artifact)
    found = decoded(render(tmp_path / "run", siblings(made), data))
    rows = np.flatnonzero(data.test.labels == SOURCE)[:8]
    stamped = triggers.apply(artifact.trigger, data.test.images[rows], rows)
    for i in range(8):
        np.testing.assert_array_equal(found[3 * i + 1], stamped[i])


def test_the_difference_is_amplified_around_mid_grey() -> None:
    plain = np.array([100, 100, 100, 0], np.uint8).reshape(2, 2, 1)
    stamped = np.array([100, 102, 99, 255], np.uint8).reshape(2, 2, 1)
    assert amplified(plain, stamped).ravel().tolist() == [128, 144, 120, 255]


def test_answers_are_those_of_victim_0(made: tuple[Path, Record], page: str) -> None:
    table = pd.read_parquet(made[0] / "outcomes.parquet")
    first = table[(table["victim"] == 0) & (table["label"] == SOURCE)].head(8)
    said = re.findall(r"<strong[^>]*>class (\d+)", page)
    assert said == [str(v) for pair in zip(first["clean"], first["triggered"], strict=True) for v in pair]
    assert page.count('class="hit"') == int((first["triggered"] == TARGET).sum())


def test_the_heat_map_counts_every_change_once(made: tuple[Path, Record], page: str) -> None:
    flips = pd.read_parquet(made[0] / "flips.parquet")
    counts = [int(n) for n in re.findall(r'<td class="cell[^>]*>(\d+)</td>', page)]
    assert len(counts) == 100 and sum(counts) == len(flips)
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (flips["true"], flips["given"]), 1)
    assert counts == expected.ravel().tolist()


def test_without_the_data_the_page_says_how_to_give_it(made: tuple[Path, Record]) -> None:
    bare = render(made[0], siblings(made[1]), None)
    assert "--data-dir FOLDER" in bare and not decoded(bare) and "class 9 (" not in bare
    counts = [int(n) for n in re.findall(r'<td class="cell[^>]*>(\d+)</td>', bare)]
    assert sum(counts) == 30


def test_the_curve_pools_seeds_and_names_controls(made: tuple[Path, Record], page: str) -> None:
    seen = text_of(page)
    assert "at the budgets 10, 30, 60" in seen
    assert "random-flips (control) 60 0.300 [0.250, 0.350] 0.200 [0.150, 0.250]" in seen
    assert re.search(r"flip 10 0\.300 \[[^]]*\] 0\.200 \[[^]]*\] \S+ \[[^]]*\] 3 6", seen)
    assert "Controls of the same budget, or of none" in seen and "no-attack (control) 0.010" in seen
    assert 'aria-label="pta of flip, inner-product-flips (control), no-attack (control), random-flips' in page


def test_one_budget_gives_points_and_says_so(made: tuple[Path, Record]) -> None:
    beside = [s for s in siblings(made[1]) if s.cell.attack.config["budget"] in (0, 30)]
    assert "Only one budget, 30, is beside this run" in text_of(render(made[0], beside, None))


def test_records_of_another_goal_or_without_a_score_stay_out(made: tuple[Path, Record]) -> None:
    strays = [
        sibling(made[1], "stray", settings={"source": 1}),
        sibling(made[1], "stray", status="error"),
        sibling(made[1], "stray", dataset="elsewhere", seed=9),
    ]
    elsewhere = strays[2].cell.task.model_copy(update={"dataset": "elsewhere"})
    cell = strays[2].cell.model_copy(update={"task": elsewhere})
    strays[2] = strays[2].model_copy(update={"cell": cell, "id": cell.id})
    seen = text_of(render(made[0], [*strays, made[1]], None))
    assert "stray" not in seen and "3 other records were left out" in seen
    assert "No control of this budget was found" in seen


def test_published_numbers_nobody_has_say_so(page: str) -> None:
    assert "not available nobody2020, table <9>" in text_of(page)


def test_the_command_names_every_setting(page: str) -> None:
    seen = text_of(page)
    parts = (
        "redteam attack flip --dataset small -o target.model=preact-resnet8",
        "-o budget=30",
        "-o trigger=1xs",
    )
    for part in (*parts, "-o target.epochs=3", "--seed 0"):
        assert part in seen


@pytest.mark.parametrize(("hit", "says"), [(1.0, "lies above zero"), (0.0, "includes zero")])
def test_the_summary_says_what_the_interval_allows(tmp_path: Path, hit: float, says: str) -> None:
    data = dataset()
    write_run(tmp_path / "run", data, hit=hit)
    record = text_of(render(tmp_path / "run", [], None))
    assert f"The interval of trigger_lift {says}" in record


def test_a_run_that_changed_nothing_has_no_heat_map(tmp_path: Path) -> None:
    clean = poison(DATA)
    untouched = type(clean)(DATA.train.labels.copy(), clean.trigger, SOURCE, TARGET, 0)
    write_run(tmp_path / "run", DATA, untouched, attack="no-attack", budget=0, role="control")
    seen = text_of(render(tmp_path / "run", [], DATA))
    assert "No training row was changed." in seen and "This run is itself a control." in seen
    assert "No attack with a budget is beside this run" in seen


def test_files_that_do_not_fit_and_runs_without_a_score_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "run", DATA)
    assert_refuses(render, tmp_path / "run", ["artifact.npz", "outcomes.parquet", "flips.parquet"])


def test_another_data_set_is_refused(made: tuple[Path, Record]) -> None:
    other: ImageDataset = dataset(size=16)
    with pytest.raises(DataError, match="is not the data of this run"):
        render(made[0], [], other)


def test_png_is_lossless_for_extreme_pixels() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    raw = base64.b64decode(png_uri(image).split(",", 1)[1])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(raw))), image[:, :, 0])
