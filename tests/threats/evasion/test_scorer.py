"""The scorer of evasion against networks whose every answer is known."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from redteam.core.artifacts import load
from redteam.core.errors import ArtifactError, BudgetExceededError, DataError
from redteam.core.stats import across_cells, paired_difference, rate, wilson
from redteam.data.nouns import ImageSet
from redteam.learn.perturb import Ball
from redteam.threats.evasion import metrics
from redteam.threats.evasion.artifact import SURVIVED, WRONG, Perturbed
from redteam.threats.evasion.budget import enforce_ball
from redteam.threats.evasion.domain import DomainDataset, DomainSplit
from redteam.threats.evasion.nouns import Fitted, to_tensor
from redteam.threats.evasion.scorer import enforce_threat, measure, rescore

N, CLASSES, SIDE = 100, 5, 5
ACCESS = ("network", "test images")


def images(n=N):
    """Mid-grey images whose class is the brightest row."""
    labels = np.arange(n, dtype=np.int64) % CLASSES
    pixels = np.full((n, SIDE, SIDE, 1), 100, np.uint8)
    pixels[np.arange(n), labels] = 150
    pixels[:, :, 0, 0] = (100 + np.arange(n) % 50)[:, None]
    return ImageSet(pixels, labels, tuple("abcde"))


class Brightest(nn.Module):
    """Answers with the brightest row. `errors`: of each ten images (by their left column) so many are misread."""

    def __init__(self, errors=0, scale=5.0, classes=CLASSES):
        super().__init__()
        self.errors, self.scale, self.classes = errors, scale, classes

    def forward(self, x):
        rows = self.scale * x[..., 1:].sum((1, 3))
        number = (x[:, 0, :, 0].mean(1) * 255).round().long() % 10
        wrong = (number < self.errors)[:, None]
        return torch.where(wrong, rows.roll(1, dims=1), rows)[:, : self.classes]


class Noisy(Brightest):
    def forward(self, x):
        return super().forward(x) + torch.randn(len(x), CLASSES)


@dataclass(frozen=True)
class Config:
    norm: str = "Linf"
    radius: float = 0.2
    select: str = "pseudo"
    victims: int = 1


@dataclass
class Toy:
    """A target whose networks are given. states: for each victim, network by selector, with its step."""

    networks: tuple[nn.Module, ...] = (Brightest(),)
    config: Config = Config()
    pseudo: tuple[np.ndarray | None, ...] = (None,)
    states: tuple[dict[str, Fitted], ...] = ()
    past: dict = field(default_factory=dict)
    step: int = 600
    kind: str = "classifier"
    classes: tuple[str, ...] = tuple("abcde")

    def fit(self, ctx):
        if self.states:
            return [s[self.config.select] for s in self.states]
        pseudo = self.pseudo * len(self.networks) if len(self.pseudo) == 1 else self.pseudo
        return [Fitted(n, self.step, p) for n, p in zip(self.networks, pseudo, strict=True)]

    def examples(self, ctx):
        return images()

    def split(self, ctx):
        nothing = images(5)
        labels = np.arange(20, dtype=np.int64) % CLASSES
        return DomainSplit(nothing, nothing, images(20).images, labels, nothing, images())

    def selected(self, ctx):
        return list(self.states)

    def history(self, ctx):
        return self.past


@dataclass
class Bare:
    """A target without states or history."""

    inner: Toy = field(default_factory=Toy)

    def __getattr__(self, name):
        if name in ("selected", "history"):
            raise AttributeError(name)
        return getattr(self.inner, name)


DATA = DomainDataset("toy", images(10), None, "made in the tests", "none", test=images())


def swap(x, label, by):
    """The rows of a class and its neighbour moved together by `by`: a linear network is fooled above 0.098."""
    moved = x.copy()
    moved[:, label] -= by
    moved[:, (label + 1) % CLASSES] += by
    return moved.clip(0, 1)


def perturbed(
    fooled=range(30), eps=(0.1, 0.2), main=0.2, attacks=("pgd",), victims=1, by=0.15, norm="Linf", **more
):
    """At radii of at least 0.2 the images `fooled` are moved enough to be misread, at smaller ones none."""
    x, labels = to_tensor(images().images, torch.device("cpu")).numpy(), images().labels
    broken = np.full((victims, len(eps), N), SURVIVED)
    where, moved = [], []
    for v in range(victims):
        for e, radius in enumerate(eps):
            for i in fooled if radius >= 0.2 else ():
                where.append((v, e, i))
                moved.append(swap(x[i], labels[i], by))
                broken[v, e, i] = 0
    arrays = {
        "rows": np.arange(N), "broken": broken, "where": np.array(where, dtype=np.int64).reshape(-1, 3),
        "images": np.array(moved, dtype=np.float32).reshape(-1, 1, SIDE, SIDE),
        "forwards": np.full((victims, len(eps), N), 21), "backwards": np.full((victims, len(eps), N), 20),
    }  # fmt: skip
    made = {"norm": norm, "eps": np.array(eps), "main": main, "attacks": attacks, **arrays}
    return Perturbed(**{**made, **more})


def scored(ctx, artifact=None, target=None, **kwargs):
    target = target or Toy()
    return measure(artifact or perturbed(), DATA, target, target, ctx, **kwargs)


# ---------------------------------------------------------------- what is measured


def test_known_answers_give_known_metrics(ctx):
    found = scored(ctx, target=Toy(networks=(Brightest(errors=2),)))
    m = found.metrics
    # Of the images 0 to 29, those whose number ends in 0 or 1 are misread already.
    assert m["accuracy"].value == 0.8
    assert (m["accuracy"].low, m["accuracy"].high) == pytest.approx(wilson(80, 100))
    assert m["robust_accuracy"].value == 0.56
    assert m["robust_drop"].value == pytest.approx(0.24)
    assert m["attack_success"].value == pytest.approx(24 / 80)
    assert m["attack_success"].n == 80
    assert m["forwards_mean"].value == 21
    assert m["backwards_mean"].low is None
    assert found.grouped["robust_accuracy", "eps=0.2"].value == 0.56
    assert found.grouped["robust_accuracy", "eps=0.1"].value == 0.8
    assert not any(name == "broken_by" for name, _ in found.grouped)
    assert found.flags == ()


def test_what_the_artifact_claims_does_not_count(ctx):
    """Images that fool nobody, claimed to fool, leave robust accuracy as it is, and are flagged."""
    found = scored(ctx, perturbed(by=0.01))
    assert found.metrics["robust_accuracy"].value == 1
    assert found.flags == ("not-reproduced",)
    assert scored(ctx, perturbed(by=0.01), replayed=True).flags == ()


def test_an_image_that_the_artifact_does_not_claim_counts_all_the_same(ctx):
    artifact = perturbed()
    silent = replace(artifact, broken=np.full_like(artifact.broken, SURVIVED))
    assert scored(ctx, silent).metrics["robust_accuracy"].value == 0.7


def test_saying_that_the_model_was_wrong_hides_nothing(ctx):
    artifact = perturbed()
    lying = replace(artifact, broken=np.full_like(artifact.broken, WRONG))
    assert scored(ctx, lying).metrics["robust_accuracy"].value == 0.7


def test_not_reproduced_begins_above_one_in_a_hundred(ctx):
    """The first image of 100 claimed is not moved at all: one in a hundred is allowed, two are not."""
    artifact = perturbed(fooled=range(100))
    x = to_tensor(images().images, torch.device("cpu")).numpy()
    for back, flagged in ((1, False), (2, True)):
        moved = artifact.images.copy()
        moved[:back] = x[:back]
        assert ("not-reproduced" in scored(ctx, replace(artifact, images=moved)).flags) == flagged


def ensemble(by_square, by_first=20):
    """Images 0 to by_first fall to apgd-ce, the next ones to square, the rest stand."""
    artifact = perturbed(fooled=range(by_first + by_square), attacks=("apgd-ce", "fab-t", "square"))
    broken = artifact.broken.copy()
    broken[0, 1, by_first : by_first + by_square] = 2
    return replace(artifact, broken=broken)


def test_survivors_after_each_attack(ctx):
    found = scored(ctx, ensemble(by_square=10))
    robust = {g: e.value for (name, g), e in found.grouped.items() if name == "robust_accuracy"}
    after = {g: value for g, value in robust.items() if "after" in g}
    assert after == pytest.approx({"after=apgd-ce": 0.8, "after=fab-t": 0.8, "after=square": 0.7})
    by = {g: e.value for (name, g), e in found.grouped.items() if name == "broken_by"}
    assert by == pytest.approx({"attack=apgd-ce": 0.2, "attack=fab-t": 0.0, "attack=square": 0.1})
    assert found.metrics["robust_accuracy"].value == pytest.approx(0.7)


def test_black_box_beats_white_box_by_more_than_chance(ctx):
    for by_square in (1, 10):
        artifact = ensemble(by_square)
        gain = paired_difference(np.arange(N) >= 20, np.arange(N) >= 20 + by_square)
        raised = "black-box-beats-white-box" in scored(ctx, artifact).flags
        assert raised == (gain.low > 0)
    assert raised
    alone = replace(perturbed(), attacks=("square",))
    assert "black-box-beats-white-box" not in scored(ctx, alone).flags


def test_a_curve_that_rises_is_flagged(ctx):
    """At 0.2 thirty images fall, at the larger 0.3 none, or 29: the second rise may be chance."""
    artifact = perturbed(eps=(0.2, 0.3))
    at_larger = artifact.where[:, 1] == 1
    for kept, flagged in ((0, True), (29, False)):
        keep = ~at_larger | (np.cumsum(at_larger) <= kept)
        broken = artifact.broken.copy()
        broken[0, 1, kept:] = SURVIVED
        less = replace(artifact, where=artifact.where[keep], images=artifact.images[keep], broken=broken)
        assert ("not-monotone" in scored(ctx, less).flags) == flagged
    assert "not-monotone" not in scored(ctx, artifact).flags


def test_probes_of_the_network_reach_the_flags(ctx):
    assert "randomised-output" in scored(ctx, target=Toy(networks=(Noisy(),))).flags
    assert "accuracy-at-chance" in scored(ctx, target=Toy(networks=(Brightest(errors=8),))).flags
    assert "oracle-selected" in scored(ctx, target=Toy(config=Config(select="oracle"))).flags
    assert "ensemble-cut-short" in scored(ctx, perturbed(notes={"refused": "took less"})).flags


def test_chance_is_of_each_victim_and_not_of_their_pooled_interval(ctx):
    """Two good victims far apart have a pooled interval down to 0; one collapsed among good ones hides in the mean."""
    apart = scored(ctx, perturbed(victims=2), Toy(networks=(Brightest(), Brightest(errors=4))))
    assert apart.metrics["accuracy"].low <= 1 / CLASSES
    assert "accuracy-at-chance" not in apart.flags
    one = (*(Brightest() for _ in range(9)), Brightest(errors=8))
    hidden = scored(ctx, perturbed(victims=10), Toy(networks=one))
    assert hidden.metrics["accuracy"].low > 1 / CLASSES
    assert "accuracy-at-chance" in hidden.flags


def test_the_dry_run_counts_the_predictor_once_for_trainings_that_share_it():
    from redteam.core.context import Context
    from redteam.core.device import Device
    from redteam.core.plan import Request, plan, rebuild
    from redteam.core.seeding import SeedPath
    from redteam.core.threat import DataSource
    from redteam.threats.evasion.seam import _updates

    device, source = Device("cpu"), DataSource()

    size = {"steps": 10, "victims": 3}

    def counted(dataset, *cells):
        requests = [
            Request(attack="pgd", dataset=dataset, defenses=d, seeds=s, controls="none", target=size | t)
            for d, s, t in cells
        ]  # fmt: skip
        jobs = [job for r in requests for job in plan(r, source, device)]
        ctx = Context(device, SeedPath(0))
        return _updates(jobs, lambda job: rebuild(job, source, ctx))

    dart, pair = (("dart", {}),), "syn*-to-optdigits"
    assert counted(pair, ((), (0,), {}), (dart, (0,), {})) == {"erm": 30, "dart": 30, "predictor": 30}
    radius, inner = (dart, (0,), {"eps": 0.2}), (dart, (0,), {"inner_steps": 2})
    assert counted(pair, (dart, (0,), {}), radius, inner)["predictor"] == 30
    assert counted(pair, (dart, (0, 1), {}), (dart, (0,), {"lr": 0.01}))["predictor"] == 90
    assert counted("digits", ((), (0,), {})) == {"erm": 30}


def test_labels_of_the_target_that_refresh_pseudo_labels_are_an_oracle_too(ctx):
    class Of:
        pseudo, refresh = "refreshed", "oracle"

    target = Toy()
    target.algorithm = Of()
    assert "oracle-selected" in scored(ctx, target=target).flags
    target.algorithm.refresh = "latest"
    assert "oracle-selected" not in scored(ctx, target=target).flags


def test_a_randomised_network_is_scored_alike_each_time(ctx):
    first, second = (scored(ctx, target=Toy(networks=(Noisy(),))) for _ in range(2))
    pd.testing.assert_frame_equal(first.evidence["outcomes"], second.evidence["outcomes"])
    pd.testing.assert_frame_equal(first.evidence["probes"], second.evidence["probes"])


def test_a_network_with_too_few_logits_is_refused(ctx):
    with pytest.raises(DataError, match="at least 5 logits"):
        scored(ctx, target=Toy(networks=(Brightest(classes=3),)))


def test_several_victims_are_crossed_with_images(ctx):
    target = Toy(networks=(Brightest(), Brightest(errors=2)), pseudo=(None, None))
    found = scored(ctx, perturbed(victims=2), target)
    stands = np.ones((2, N), bool)
    stands[:, :30] = False
    stands[1, np.arange(N) % 10 < 2] = False
    # The left column starts at 100, so numbers end as the images do.
    assert found.metrics["robust_accuracy"] == rate(stands)
    assert found.metrics["accuracy_sd"].value == pytest.approx(np.std([1.0, 0.8], ddof=1))
    parts = [rate(~stands[0]), rate(~stands[1][np.arange(N) % 10 >= 2])]
    assert found.metrics["attack_success"] == across_cells(parts)


# ---------------------------------------------------------------- states, validations, pseudo-labels


def states():
    """oracle and last are one state that is right on all; pseudo is misled on three of ten."""
    good, worse = Fitted(Brightest(), 600), Fitted(Brightest(errors=3), 200)
    return {"source-clean": worse, "pseudo": worse, "oracle": good, "last": good}


def test_selectors_are_compared_by_the_scorers_own_pgd(ctx):
    target = Toy(states=(states(),), config=Config(radius=0.01))
    found = scored(ctx, target=target)
    right = np.arange(N) % 10 >= 3
    assert found.grouped["selected_accuracy", "select=pseudo"] == rate(right)
    assert found.grouped["selected_accuracy", "select=oracle"].value == 1
    table = found.evidence["selection"]
    robust = {s: ((t["clean"] == t["label"]) & (t["adversarial"] == t["label"])).to_numpy()
              for s, t in table.groupby("selector")}  # fmt: skip
    assert found.metrics["selection_gap"] == paired_difference(robust["oracle"], robust["pseudo"])
    assert found.metrics["selection_gap"].value > 0
    assert found.grouped["selection_gap", "select=last"].value == 0
    assert ("selection_gap", "select=oracle") not in found.grouped


def test_a_state_that_several_selectors_take_is_asked_once(ctx, monkeypatch):
    from redteam.threats.evasion import probes

    calls = []
    original = probes.attacked
    monkeypatch.setattr(probes, "attacked", lambda net, *a, **k: calls.append(net) or original(net, *a, **k))
    found = scored(ctx, target=Toy(states=(states(),)))
    # Two states, and the probe of the network under attack.
    assert len(calls) == 3
    assert set(found.evidence["selection"]["step"]) == {200, 600}


def test_states_of_a_target_with_an_identity_are_asked_once_for_all_attacks(ctx, monkeypatch, tmp_path):
    from redteam.threats.evasion import probes

    @dataclass
    class Known(Toy):
        named: str = "a"

        def identity(self, ctx):
            return {"name": self.named}

    calls = []
    original = probes.attacked
    monkeypatch.setattr(probes, "attacked", lambda net, *a, **k: calls.append(net) or original(net, *a, **k))
    kept = replace(ctx, stage_dir=tmp_path)
    made = (states(),)
    first = scored(kept, target=Known(states=made))
    again = scored(kept, ensemble(10), Known(states=made, config=Config(select="last")))
    # Two states once, and the probe of each cell.
    assert len(calls) == 4
    assert again.evidence["selection"]["chosen"].sum() == N
    same = ["selector", "step", "index", "clean", "adversarial"]
    pd.testing.assert_frame_equal(first.evidence["selection"][same], again.evidence["selection"][same])
    scored(kept, target=Known(states=made, named="b"))
    assert len(calls) == 7


def test_the_oracle_in_use_has_no_gap(ctx):
    found = scored(ctx, target=Toy(states=(states(),), config=Config(select="oracle")))
    assert "selection_gap" not in found.metrics
    assert ("selection_gap", "select=pseudo") in found.grouped


def test_a_target_without_states_or_history_has_no_such_tables(ctx):
    found = scored(ctx, target=Bare())
    assert set(found.evidence) == {"outcomes", "probes"}
    one = {"pseudo": Fitted(Brightest(), -1)}
    assert "selection" not in scored(ctx, target=Toy(states=(one,))).evidence


def test_validations_of_the_state_in_use_become_metrics(ctx):
    past = {
        "victim": [0, 0, 0, 0], "step": [300, 600, 600, 600],
        "criterion": ["pseudo", "pseudo", "source_clean", "oracle"],
        "value": [0.2, 0.6, 0.9, 0.5], "n": [50, 50, 40, 50],
    }  # fmt: skip
    m = scored(ctx, target=Toy(past=past)).metrics
    assert m["val_pseudo"].value == 0.6
    assert (m["val_pseudo"].low, m["val_pseudo"].high) == wilson(30, 50)
    assert (m["val_source_clean"].value, m["val_source_clean"].n) == (0.9, 40)
    assert m["val_oracle"].value == 0.5
    assert "val_pseudo" not in scored(ctx, target=Toy(past=past, step=-1)).metrics


def test_pseudo_labels_are_judged_by_labels_that_training_never_saw(ctx):
    labels = np.arange(20, dtype=np.int64) % CLASSES
    wrong = labels.copy()
    wrong[:5] = (wrong[:5] + 1) % CLASSES
    found = scored(ctx, target=Toy(pseudo=(wrong,)))
    assert found.metrics["pseudo_accuracy"] == rate(wrong == labels)
    assert "pseudo_accuracy" not in scored(ctx).metrics
    with pytest.raises(ArtifactError, match="20 pseudo-labels"):
        scored(ctx, target=Toy(pseudo=(wrong[:4],)))


# ---------------------------------------------------------------- rescoring


def test_rescore_agrees_to_the_last_digit_after_the_disk(ctx, tmp_path):
    past = {"victim": [0], "step": [200], "criterion": ["pseudo"], "value": [1 / 3], "n": [30]}
    target = Toy(states=(states(),), past=past)
    artifact = ensemble(by_square=10)
    found = scored(ctx, artifact, target)
    artifact.save(tmp_path / "a.npz")
    for name, table in found.evidence.items():
        table.to_parquet(tmp_path / f"{name}.parquet", index=False)
    tables = {name: pd.read_parquet(tmp_path / f"{name}.parquet") for name in found.evidence}
    again = rescore(load(tmp_path / "a.npz"), tables)
    assert again.as_metrics() == found.as_metrics()
    assert again.flags == found.flags


@pytest.mark.parametrize("name", ["outcomes", "probes"])
def test_rescore_names_what_is_missing(ctx, name):
    found = scored(ctx)
    with pytest.raises(ArtifactError, match=f"of {name}, the table"):
        rescore(perturbed(), {k: v for k, v in found.evidence.items() if k != name})
    cut = dict(found.evidence) | {name: found.evidence[name].drop(columns="victim")}
    with pytest.raises(ArtifactError, match="victim is missing"):
        rescore(perturbed(), cut)


def test_rescore_refuses_tables_of_another_artifact_and_excess(ctx):
    found = scored(ctx)
    with pytest.raises(ArtifactError, match="1 victims, 1 radii"):
        rescore(perturbed(eps=(0.2,)), found.evidence)
    outcomes = found.evidence["outcomes"].assign(moved=0.5)
    with pytest.raises(BudgetExceededError, match=r"moved by 0\.5"):
        rescore(perturbed(), dict(found.evidence) | {"outcomes": outcomes})


# ---------------------------------------------------------------- the threat


def test_what_the_cell_planned_binds():
    planned = {"norm": "Linf", "eps": 0.2, "curve": (0.1,), "steps": 20}
    enforce_threat(perturbed(), planned, ACCESS)
    enforce_threat(perturbed(), planned | {"eps": "1/5"}, ACCESS)
    for change, said in (
        ({"norm": "L2"}, "norm L2"), ({"eps": 0.1, "curve": (0.2,)}, "planned eps 0.1"), ({"curve": ()}, "radii"),
        ({"curve": (0.05,)}, "radii"),
    ):  # fmt: skip
        with pytest.raises(BudgetExceededError, match=said):
            enforce_threat(perturbed(), planned | change, ACCESS)
    with pytest.raises(BudgetExceededError, match="changes images"):
        enforce_threat(perturbed(), planned, ("training labels",))
    with pytest.raises(ArtifactError, match="every attack once"):
        enforce_threat(perturbed(attacks=("pgd", "pgd")), planned, ACCESS)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda a: {"images": a.images * np.nan}, ArtifactError, "NaN"),
        (lambda a: {"images": a.images + 1}, BudgetExceededError, r"in \[0, 1\]"),
        (lambda a: {"images": a.images - 1}, BudgetExceededError, r"in \[0, 1\]"),
        (lambda a: {"images": a.images * 0}, BudgetExceededError, "30 images leave their ball: example 0"),
        (lambda a: {"where": a.where - np.array([0, 1, 0])}, BudgetExceededError, r"radius is 0\.1"),
        (lambda a: {"where": a.where * 0}, ArtifactError, "at most one image"),
        (lambda a: {"where": a.where + np.array([1, 0, 0])}, ArtifactError, "where"),
        (lambda a: {"rows": a.rows[::-1]}, ArtifactError, "every test image once"),
        (lambda a: {"broken": a.broken + 5}, ArtifactError, "broken"),
        (lambda a: {"images": np.zeros((30, 1, 7, 7), np.float32)}, ArtifactError, "other test images"),
        (lambda a: {"eps": a.eps[::-1]}, ArtifactError, "ascending"),
    ],
)  # fmt: skip
def test_artifacts_that_do_not_fit_are_refused_before_any_network_is_fitted(ctx, change, error, said):
    class Untouched(Toy):
        def fit(self, ctx):
            raise AssertionError("fitted")

    artifact = perturbed()
    with pytest.raises(error, match=said):
        scored(ctx, replace(artifact, **change(artifact)), Untouched())


def test_an_artifact_of_fewer_rows_or_victims_is_refused(ctx):
    a = perturbed()
    half = {k: getattr(a, k)[..., :50] for k in ("rows", "broken", "forwards", "backwards")}
    with pytest.raises(ArtifactError, match="every test image once"):
        scored(ctx, replace(a, **half))
    with pytest.raises(ArtifactError, match="2 victims, got 1"):
        scored(ctx, a, Toy(networks=(Brightest(), Brightest())))


@given(
    st.sampled_from(["Linf", "L2"]), st.sampled_from([1e-4, 2 / 255, 8 / 255, 0.1, 0.3, 1.0, 3.0]), st.integers(0, 999)
)  # fmt: skip
def test_what_a_projection_leaves_is_within_the_ball_and_a_little_more_is_not(norm, eps, seed):
    """Float32 rounding is no excess over the radius; a hundredth is."""
    rng = np.random.default_rng(seed)
    x = to_tensor(rng.integers(0, 256, (4, 6, 6, 3)).astype(np.uint8), torch.device("cpu"))
    moved = Ball(norm, eps).project(x + torch.from_numpy(rng.normal(0, 2, x.shape)).float(), x)
    where = np.stack([np.zeros(4), np.zeros(4), np.arange(4)], 1).astype(np.int64)
    counts = np.zeros((1, 1, 4), np.int64)
    artifact = Perturbed(
        norm=norm, eps=np.array([eps]), main=eps, attacks=("a",), rows=np.arange(4), broken=counts, where=where,
        images=moved.numpy(), forwards=counts, backwards=counts,
    )  # fmt: skip
    found = enforce_ball(artifact, x.numpy())
    assert (found <= eps * 1.01 + 1e-4).all()
    if found.max() > 0.5 * eps:
        small = float(found.max()) * 0.99 - 1e-5
        with pytest.raises(BudgetExceededError, match="leave their ball"):
            enforce_ball(replace(artifact, eps=np.array([small]), main=small), x.numpy())


# ---------------------------------------------------------------- invariants of the metrics


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 4), st.integers(0, 10**6))
def test_what_every_table_of_outcomes_obeys(victims, n, attacks, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    radii = [0.1, 0.3]
    parts = [
        pd.DataFrame({
            "victim": v, "eps": e, "index": np.arange(n), "label": labels, "clean": rng.integers(0, 3, n),
            "adversarial": rng.integers(0, 3, n), "attack": rng.integers(WRONG, attacks, n), "moved": 0.0,
            "forwards": rng.integers(0, 9, n), "backwards": 1,
        })
        for v in range(victims) for e in radii
    ]  # fmt: skip
    outcomes = pd.concat(parts).sample(frac=1, random_state=seed % 1000)
    names = [f"a{i}" for i in range(attacks)]
    m, grouped = metrics.evasion_metrics(outcomes, 0.3), metrics.evasion_groups(outcomes, 0.3, names)
    assert grouped["robust_accuracy", "eps=0.3"] == m["robust_accuracy"]
    assert m["robust_drop"].value == pytest.approx(m["accuracy"].value - m["robust_accuracy"].value)
    assert m["robust_drop"].value >= 0
    if attacks > 1:
        after = [grouped["robust_accuracy", f"after={a}"].value for a in names]
        assert after == sorted(after, reverse=True)
        assert grouped["robust_accuracy", f"after={names[-1]}"] == m["robust_accuracy"]
        broken = sum(grouped["broken_by", f"attack={a}"].value for a in names)
        assert m["accuracy"].value - broken == pytest.approx(m["robust_accuracy"].value)
    for e in (*m.values(), *grouped.values()):
        assert e.low is None or e.low <= e.value <= e.high


def test_victims_on_other_images_are_refused():
    table = pd.DataFrame({"victim": [0, 0, 1, 1], "index": [0, 1, 0, 2]})
    with pytest.raises(ValueError, match="same images"):
        metrics.crossed(table, ("victim", "index"))
    with pytest.raises(ValueError, match="same images"):
        metrics.crossed(table[:3], ("victim", "index"))
