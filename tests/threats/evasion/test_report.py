"""The page of evasion: numbers, the curve and its neighbours, ensembles, selectors, pictures, probes and flags."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from redteam.cli import cli
from redteam.core.artifacts import load
from redteam.core.config import build, to_json
from redteam.core.errors import ArtifactError, DataError
from redteam.core.record import Record
from redteam.core.stats import Estimate
from redteam.report.words import bounds, fraction
from redteam.threats.evasion.adapt.config import SELECTORS, DomainConfig
from redteam.threats.evasion.report import examples_of, render
from redteam.threats.evasion.report import pictures as evasion_pictures
from redteam.threats.evasion.report import plots as evasion_plots
from redteam.threats.evasion.report import series as evasion_series
from redteam.threats.evasion.report import words as evasion_words
from tests.threats.evasion.report_helpers import CLASSES, DATA, MAIN, K, blank, defense, domain, write_run
from tests.threats.pages import assert_metrics, assert_refuses, assert_whole, decoded, text_of

ROOT = Path(__file__).parents[3]
ENSEMBLE = ("apgd-ce", "apgd-t", "square")
Made = tuple[Path, Record, list[Record]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def made(store: Path) -> Made:
    """A run behind dart, its siblings, other attacks on its networks, and strays."""
    dart = defense("dart", source="clean")
    own = write_run(store, dart)
    beside = [
        write_run(store, stands=(0.3, 0.05, 0.0), seed=s)[1] for s in range(2)
    ] + [
        write_run(store, dart, seed=1, stands=(0.6, 0.5, 0.1))[1],
        write_run(store, defense("dart", source="kl"), stands=(0.7, 0.6, 0.2))[1],
        # Other further radii: comparable all the same.
        write_run(store, defense("at-source"), eps=(MAIN, 0.3), stands=(0.35, 0.0))[1],
        write_run(store, dart, attack="square", stands=(0.7, 0.3, 0.1))[1],
        write_run(store, dart, attack="no-perturbation", role="control", stands=(0.8, 0.8, 0.8))[1],
        # Strays: other networks, another radius, another task.
        write_run(store, attack="square", seed=1)[1],
        write_run(store, dart, attack="square", settings={"eps": 0.2})[1],
        write_run(store, task={"steps": 401})[1],
    ]  # fmt: skip
    return *own, beside


@pytest.fixture(scope="module")
def page(made: Made) -> str:
    return render(made[0], made[2], DATA)


@pytest.fixture(scope="module")
def ensemble(store: Path) -> tuple[Path, Record, str]:
    folder, record = write_run(store, attack="autoattack", attacks=ENSEMBLE, seed=3, victims=1)
    return folder, record, render(folder, [], DATA)


def test_every_metric_stands_there_and_the_page_is_whole(
    made: Made, page: str, ensemble: tuple[Path, Record, str]
) -> None:
    assert_metrics(made[1], page, evasion_words.DEFINITIONS, victims=True)
    assert_whole(page)
    assert render(made[0], made[2][::-1], DATA) == page, "same inputs, same page"
    assert_whole(ensemble[2])
    for name in evasion_words.HEADLINE:
        assert f"<small>{name}</small>" in page


def test_names_from_outside_are_escaped(store: Path, page: str) -> None:
    assert "<b>four" not in page and "&lt;b&gt;four" in page
    folder, own = write_run(store, defense("<script>", x="</style>"), seed=7)
    other = render(folder, [own], None)
    assert "<script" not in other and other.count("</style>") == 1 + other.count("<style type")


def test_the_sentences_say_what_was_done_and_what_came_out(made: Made, page: str) -> None:
    seen, record = text_of(page), made[1]
    clean, stands, success = (record.metric(n) for n in ("accuracy", "robust_accuracy", "attack_success"))
    assert clean is not None and stands is not None and success is not None
    assert "pgd was allowed to move each of 40 test images of noise-to-hiss by at most 0.1 in Linf" in seen
    assert "2 networks of the architecture digit-cnn-small, trained by dart, misread it" in seen
    assert "The attack held the very networks" in seen
    assert f"As they are, 0.800 {bounds(clean.low, clean.high)} of the images are read right" in seen
    assert f"left them, 0.400 {bounds(stands.low, stands.high)}" in seen
    assert f"0.500 {bounds(success.low, success.high)} were turned" in seen
    drop = record.metric("robust_drop")
    assert drop is not None and drop.low is not None and drop.low <= 0, "two victims tell little"
    assert "The interval of the difference includes zero" in seen and "3 radii were attacked" in seen
    assert "this run shows no price of choosing without them" in seen and "right at a rate of 0.750" in seen


def test_the_curve_is_one_line_a_defence_from_radius_zero(made: Made) -> None:
    _, record, beside = made
    found = evasion_series.lines(record, evasion_series.comparable(record, beside))
    assert [(line.label, len(line.ids), line.own) for line in found] == [
        ("dart, source clean", 1, True), ("undefended", 2, False), ("at-source", 1, False),
        ("dart, source kl", 1, False),
    ]  # fmt: skip
    assert [(eps, round(e.value, 6)) for eps, e in found[0].points] == [
        (0, 0.8), (0.05, 0.7), (MAIN, 0.4), (0.2, 0.1),
    ]  # fmt: skip
    assert [eps for eps, _ in found[2].points] == [0, MAIN, 0.3]
    undefended = dict(found[1].points)
    assert undefended[MAIN].value == pytest.approx(0.05) and undefended[MAIN].seeds == 2
    assert len({line.place for line in found}) == 4


def test_a_radius_of_zero_is_not_mixed_with_the_clean_images(store: Path) -> None:
    _, own = write_run(store, eps=(0.0, MAIN), stands=(0.75, 0.4), seed=9)
    (line,) = evasion_series.lines(own, [own])
    assert [(eps, e.value) for eps, e in line.points] == [(0.0, 0.8), (MAIN, 0.4)]


def test_tables_hold_the_numbers_of_the_figure(made: Made, page: str) -> None:
    seen = text_of(page)
    for group, eps in (("eps=0.05", "0.05"), ("eps=0.1", "0.1"), ("eps=0.2", "0.2")):
        m = made[1].metric("robust_accuracy", group)
        assert m is not None
        drop = 0.8 - m.value
        start = re.escape(f" {eps} {fraction(m.value)} {bounds(m.low, m.high)} {fraction(drop)} [")
        assert re.search(rf"{start}[^]]*\] 22\.0 20\.0 ", seen)
    row = next(r for r in re.findall(r"<tr.*?</tr>", page, re.DOTALL) if "this run<" in r and "0.450" in r)
    assert 'class="own"' in row and "0.450" in row and '<td class="n">2</td>' in row, "both seeds of dart"


def test_other_attacks_on_the_same_networks_and_only_those(made: Made, page: str) -> None:
    _, record, beside = made
    others = evasion_series.other_attacks(record, beside)
    assert [r.cell.attack.name for r in others] == ["square", "no-perturbation"]
    seen = text_of(page)
    assert "The least of these is that of square: believe it, and not the number above." in seen
    assert "no-perturbation, control 0.800" in seen
    assert "3 other records were left out" in seen


def test_further_radii_do_not_part_runs_but_settings_do(made: Made) -> None:
    _, record, beside = made
    ids = {r.id for r in evasion_series.comparable(record, beside)}
    assert beside[4].id in ids
    assert not {r.id for r in beside[5:]} & ids
    failed = beside[0].model_copy(update={"status": "error", "metrics": ()})
    assert failed not in evasion_series.comparable(record, [failed])


def test_an_ensemble_shows_what_stands_after_each_attack(ensemble: tuple[Path, Record, str]) -> None:
    folder, record, page = ensemble
    seen, last = text_of(page), 0.8
    for name in ENSEMBLE:
        stands = record.metric("robust_accuracy", f"after={name}")
        broke = record.metric("broken_by", f"attack={name}")
        assert stands is not None and broke is not None
        assert stands.value == pytest.approx(last - broke.value)
        last = stands.value
        assert (
            f"{name} {fraction(stands.value)} {bounds(stands.low, stands.high)} {fraction(broke.value)} "
            f"{bounds(broke.low, broke.high)} {'21 20' if name == 'apgd-ce' else '- -'}" in seen
        )
    assert last == pytest.approx(0.4)
    assert "The interval of the difference lies above zero" in seen
    assert "what ran is: custom ensemble: <few>." in seen
    assert "fell to apgd-t" in seen and "share of the images that fell to a black-box attack" in seen
    found = evasion_series.survivors(record, load(folder / "artifact.npz"))
    assert str(evasion_plots.survivors_svg(None, found)).count("after ") == 3


def test_a_single_attack_has_no_section_of_attacks(page: str) -> None:
    assert "Attack by attack" not in page


def test_selectors_show_their_step_and_their_gap(made: Made, page: str) -> None:
    found = evasion_series.selected(made[1], _table(made[0], "selection"))
    assert [(s.name, s.chosen, s.steps) for s in found] == [
        ("source-clean", False, (400, 400)), ("source-pgd", False, (300, 300)), ("pseudo", True, (200, 200)),
        ("oracle", False, (300, 300)), ("last", False, (400, 400)),
    ]  # fmt: skip
    gaps = {s.name: s.gap.value if s.gap else None for s in found}
    assert gaps == pytest.approx(
        {"source-clean": 0.3, "source-pgd": 0.0, "pseudo": 0.1, "oracle": None, "last": 0.3}
    )
    seen = text_of(page)
    assert "pseudo in use" in seen and "200, 200 1.000" in seen
    assert set(SELECTORS) == set(evasion_words.SELECTORS)


def test_validations_are_means_with_the_least_and_the_most(made: Made, page: str) -> None:
    found = evasion_series.validations(_table(made[0], "history"))
    assert [v.step for v in found] == [100, 200, 300, 400]
    assert [v.chosen for v in found] == [(), (0, 1), (), ()]
    assert found[0].values["oracle"] == pytest.approx((0.425, 0.4, 0.45))
    seen = text_of(page)
    assert "100 0.125 0.100 to 0.150" in seen and "victims 0, 1" in seen
    for criterion, meaning in evasion_words.CRITERIA.items():
        assert f"{criterion} {meaning}" in seen


def test_pictures_are_the_attacked_images_and_the_change_is_magnified(made: Made, page: str) -> None:
    images, artifact = examples_of(made[1], DATA), load(made[0] / "artifact.npz")
    table = _table(made[0], "outcomes")
    found = evasion_pictures.examples(artifact, table, images)
    assert found.factor == 5.0 and len(found.fooled) == evasion_pictures.FOOLED and not found.stood
    pngs = decoded(page)
    assert len(pngs) == 3 * len(found.fooled)
    for e, (plain, moved, change) in zip(found.fooled, zip(*[iter(pngs)] * 3, strict=True), strict=True):
        assert (plain == images.images[e.index]).all() and e.label == images.labels[e.index]
        assert np.abs(moved.astype(int) - plain.astype(int)).max() == pytest.approx(25.5, abs=1)
        assert set(np.unique(change)) <= {0, 255}
        assert ((change == 255) == (moved > plain)).all()
        assert (e.said_plain, e.said_moved) == (e.label, (e.label + 2) % K) and e.by == "pgd"
    first = [
        int(i)
        for i in np.flatnonzero((table["victim"] == 0) & (table["eps"] == MAIN) & (table["attack"] == 0))
    ]
    assert [e.index for e in found.fooled] == [int(table.loc[i, "index"]) for i in first[: len(found.fooled)]]


def test_images_that_stood_are_shown_where_they_were_kept(store: Path) -> None:
    folder, _ = write_run(store, attack="transfer-pgd", every=True, seed=4, replayed=1.0)
    seen = text_of(page := render(folder, [], DATA))
    assert "Still read right" in seen and "these were then asked about the same images" in seen
    assert len(decoded(page)) == 3 * (evasion_pictures.FOOLED + evasion_pictures.STOOD)


@given(st.floats(1e-4, 1.0), st.integers(0, 2**32 - 1))
def test_the_magnified_change_is_never_clipped_and_nearly_spans_the_range(eps: float, seed: int) -> None:
    change = np.random.default_rng(seed).uniform(-eps, eps, (1, 4, 4))
    change[0, 0, 0] = eps
    factor = evasion_pictures.factor_for([change])
    assert 0.45 < factor * eps <= 0.5 * (1 + 2e-5)
    shown = evasion_pictures.magnified(change, factor)[:, :, 0].astype(float) / 255
    assert np.abs(shown - (0.5 + factor * change[0])).max() < 1 / 255


def test_without_the_data_there_are_no_pictures_and_classes_are_numbers(made: Made) -> None:
    page = render(made[0], [], None)
    assert "data:image" not in page
    assert "The data set was not at hand" in page
    assert html.escape(CLASSES[3]) not in page
    assert "Neither a control, nor another attack" in text_of(page)


def test_other_data_are_refused(made: Made) -> None:
    other = dataclasses.replace(DATA, target=domain(3))
    with pytest.raises(DataError, match="not the data of this run"):
        render(made[0], [], other)
    with pytest.raises(DataError, match="got 250 others"):
        evasion_pictures.examples(load(made[0] / "artifact.npz"), _table(made[0], "outcomes"), domain(2))


def test_probes_and_flags_are_explained(store: Path) -> None:
    folder, record = write_run(store, seed=5, victims=1)
    assert not record.flags and "None was raised" in text_of(render(folder, [], None))
    folder, record = write_run(
        store, seed=6, victims=1, stands=(0.2, 0.4, 0.6), zero_gradient_ce=12, target_labels_used=1.0
    )
    assert set(record.flags) == {"zero-gradients", "oracle-selected", "not-monotone"}
    seen = text_of(raised := render(folder, [], None))
    for flag in record.flags:
        assert f"{flag} : {evasion_words.FLAGS[flag]}" in seen
        assert f'<span class="raised">{flag}</span>' in raised
    assert "12 of 30 zero-gradients" in seen and "yes oracle-selected" in seen
    assert re.search(r"3; most from 0\.05 to 0\.2: 0\.400 \[", seen)
    assert "ours" in text_of(render(folder, [], None, flags={"not-monotone": "ours"}))


def test_every_flag_of_the_documentation_has_a_meaning_here() -> None:
    text = (ROOT / "docs" / "flags.md").read_text()
    section = text[text.index("\nOf evasion.") :].split("\nOf ", 2)[1]
    assert set(re.findall(r"^- `([a-z-]+)`", section, re.MULTILINE)) == set(evasion_words.FLAGS)
    assert {flag for _, flag in evasion_words.PROBES.values() if flag} <= set(evasion_words.FLAGS)


def test_a_radius_far_beyond_the_others_stretches_the_axis() -> None:
    def line(*radii: float) -> evasion_series.Line:
        e = Estimate(0.5, 0.4, 0.6, 10, 1, "wilson")
        return evasion_series.Line("x", 0, True, frozenset(), tuple((r, e) for r in radii))

    assert evasion_plots.stretched([line(0, 0.02, 0.1, 0.2)]) is None
    assert evasion_plots.stretched([line(0, 0.02, 0.1, 1.0)]) == 0.02
    assert evasion_plots.curve_svg([line(0)], "Linf", 0.1, 0.1) is None


def test_networks_that_were_given_have_nothing_to_choose(store: Path) -> None:
    folder, _ = write_run(store, seed=8, victims=1, trained=False, task={"model_sha256": "0" * 64})
    seen = text_of(render(folder, [], None))
    assert "Nothing was trained here" in seen and "given with its weights" in seen
    assert "model_sha256=" not in seen and "the selector pseudo takes" not in seen


def test_the_command_gives_the_same_configs(made: Made, page: str) -> None:
    (command,) = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    words = html.unescape(command)
    assert words.startswith("redteam attack pgd --dataset noise-to-hiss")
    assert "--defense dart:source=clean" in words
    given = dict(re.findall(r"-o '?target\.(\w+)=([^ ']*)", words))
    assert to_json(build(DomainConfig, given)) == to_json(
        build(DomainConfig, {**made[1].cell.task.config, "model": "digit-cnn-small"})
    )


def test_files_that_do_not_fit_and_runs_without_a_score_are_refused(tmp_path: Path) -> None:
    folder, _ = write_run(tmp_path)
    assert_refuses(render, folder, ["artifact.npz", "outcomes.parquet", "selection.parquet"])
    (folder / "record.json").write_text(blank().to_json())
    with pytest.raises(ArtifactError, match="no artifact"):
        render(folder, [], None)


def test_the_command_line_writes_the_page_also_without_the_data(
    store: Path, made: Made, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    words = ["--dataset", "mnist-to-usps", "--data-dir", str(tmp_path), "--offline"]
    done = CliRunner().invoke(cli, ["report", made[1].id, "--store", str(store), "--out", str(out), *words])
    assert done.exit_code == 0, done.output
    assert "Note: " in done.output and "The data set was not at hand" in out.read_text()
    assert "dart, source kl" in text_of(out.read_text())


def _table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / f"{name}.parquet")
