"""Algorithms of robust adaptation: their losses by hand, what they train, and what their inner steps reach."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from defenses.evasion import srouda
from defenses.evasion._adaptation import SMOKE_TARGET, Trades, answers
from defenses.evasion.dart import SPEC as DART
from redteam.core.config import build, to_json
from redteam.learn.perturb import ce, kl, lengths
from redteam.threats.evasion.adapt.config import DomainConfig
from redteam.threats.evasion.adapt.divergence import coral, mmd
from redteam.threats.evasion.target import SPEC
from tests.defenses.evasion.updates import ELEVEN, EVERY, MODULES, algorithm, make_step, update

WITH_INNER = [case for case in EVERY if case[0] != "dann"]


def name_of(case) -> str:
    return "-".join([case[0], *map(str, case[1].values())])


def images(inner) -> torch.Tensor:
    """The perturbed images of an inner maximisation: the target's, where there are both."""
    return inner if isinstance(inner, torch.Tensor) else inner.xt


def clean(case, step) -> torch.Tensor:
    return step.xs if case[0].endswith("source") or case[0] == "at-uda" else step.xt


# ---------------------------------------------------------------- by hand, in NumPy


class Hand:
    """One replica's networks in NumPy."""

    def __init__(self, step, replica: int) -> None:
        self.p = {
            group: {k: v[replica].detach().numpy() for k, v in tensors.items()}
            for group, tensors in step.nets.params.items()
        }

    def features(self, x, of="model"):
        p = self.p[of]
        return np.tanh(x.reshape(len(x), -1) @ p["body.1.weight"].T + p["body.1.bias"])

    def log_p(self, x, of="model"):
        p = self.p[of]
        logits = self.features(x, of) @ p["head.weight"].T + p["head.bias"]
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    def ce(self, x, labels, of="model"):
        return -self.log_p(x, of)[np.arange(len(x)), labels].mean()

    def kl(self, x, moved):
        p, q = self.log_p(x), self.log_p(moved)
        return (np.exp(p) * (p - q)).sum() / len(x)

    def critic(self, xs, xt):
        """Mean cross-entropy over both batches of a critic that calls the source 1."""
        p = self.p["critic"]

        def source(x):
            hidden = np.maximum(self.features(x) @ p["0.weight"].T + p["0.bias"], 0)
            return 1 / (1 + np.exp(-(hidden @ p["2.weight"].T + p["2.bias"])[:, 0]))

        return -(np.log(source(xs)).sum() + np.log(1 - source(xt)).sum()) / (len(xs) + len(xt))


def by_hand(case, hand: Hand, xs, ys, xt, pseudo, moved, moved_source) -> float:
    """The model's loss, by table 3.3 of the spec, with lambda 0.7 and lambda1 1.3."""
    match case[0]:
        case "dann":
            return hand.ce(xs, ys) - 0.7 * hand.critic(xs, xt)
        case "at-source":
            return hand.ce(moved, ys)
        case "at-target":
            return hand.ce(moved, pseudo)
        case "trades-source":
            return hand.ce(xs, ys) + 1.3 * hand.kl(xs, moved)
        case "trades-target":
            return hand.ce(xt, pseudo) + 1.3 * hand.kl(xt, moved)
        case "at-uda":
            return hand.ce(moved, ys) - 0.7 * hand.critic(moved, xt)
        case "artuda":
            apart = hand.critic(xs, moved) + hand.critic(xs, xt)
            return hand.ce(xs, ys) + 1.3 * hand.kl(xt, moved) - 0.7 * apart
        case "srouda":
            return hand.ce(moved, hand.log_p(xt, "teacher").argmax(1))
        case _:
            apart = -hand.critic(moved_source, moved)
            return hand.ce(moved_source, ys) + 1.3 * hand.ce(moved, pseudo) + 0.7 * apart


@pytest.mark.parametrize("case", ELEVEN, ids=name_of)
def test_the_models_loss_is_the_formula_by_hand(case):
    step = replace(make_step((0, 1)), critic_steps=0)
    knobs = MODULES[case[0]].SPEC.config.__dataclass_fields__
    weights = {k: v for k, v in {"weight": 0.7, "adversarial_weight": 1.3}.items() if k in knobs}
    one = algorithm(case[0], **case[1], **weights)
    inner = one.inner(step)
    moved = step.xt if inner is None else images(inner)
    moved_source = getattr(inner, "xs", step.xs)
    hands = [Hand(step, r) for r in (0, 1)]
    group, losses = next(iter(one.outer(step, inner)))
    assert group == "model"
    for r, hand in enumerate(hands):
        given_ = [t[r].numpy() for t in (step.xs, step.ys, step.xt, step.pseudo, moved, moved_source)]
        assert losses[r].item() == pytest.approx(by_hand(case, hand, *given_), rel=1e-12)


@pytest.mark.parametrize(("name", "divergence"), [("mmd", mmd), ("coral", coral)])
def test_darts_other_divergences_take_the_place_of_the_critic(name, divergence):
    step = make_step(groups=("model",))
    one = algorithm("dart", divergence=name, weight=0.7, adversarial_weight=1.3)
    inner = one.inner(step)
    with torch.no_grad():
        nets = step.nets
        zs, zt = nets.features(step.xs), nets.features(inner.xt)
        expected = ce(nets.head(zs), step.ys).mean(-1) + 1.3 * ce(nets.head(zt), step.pseudo).mean(-1)
        expected = expected + 0.7 * divergence(zs, zt)
    ((group, losses),) = one.outer(step, inner)
    assert group == "model" and torch.allclose(losses, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "case", [c for c in EVERY if "critic" in algorithm(c[0], **c[1]).groups], ids=name_of
)
def test_the_critic_lowers_what_the_model_raises(case):
    """Updated often enough on what it is given, the critic's own loss falls, and the model's loss rises with that."""
    step = make_step((0, 1), critic_steps=30)
    one = algorithm(*case[:1], **case[1])
    inner = one.inner(step)
    (_, before) = next(iter(one.outer(replace(step, critic_steps=0), inner)))
    seen = update(one, step, lr=0.3, inner=inner)
    critic = [s.losses for s in seen if s.group == "critic"]
    assert len(critic) == 30 and (critic[-1] < critic[0]).all()
    assert (seen[-1].losses > before).all()


# ---------------------------------------------------------------- what is trained


@pytest.mark.parametrize("case", EVERY, ids=name_of)
def test_one_update_trains_the_groups_it_names_and_each_loss_reaches_its_own(case):
    """The testbed's eleven, four of which cannot run as released, and more."""
    one, step = algorithm(*case[:1], **case[1]), make_step((0, 1), critic_steps=2)
    before = {g: [p.clone() for p in tensors.values()] for g, tensors in step.nets.params.items()}
    seen = update(one, step)
    assert {s.group for s in seen} == set(one.groups)
    for s in seen:
        assert s.losses.shape == (2,) and torch.isfinite(s.losses).all()
        own = s.gradients[s.group]
        assert all(g is not None and torch.isfinite(g).all() and g.abs().sum() > 0 for g in own)
        if s.group != "model":
            # Features reach the critic and answers the teacher, without a gradient.
            assert all(g is None for g in s.gradients["model"])
    for group, tensors in step.nets.params.items():
        moved = any(not torch.equal(a, b) for a, b in zip(before[group], tensors.values(), strict=True))
        assert moved == (group in one.groups)


@pytest.mark.parametrize("case", EVERY, ids=name_of)
def test_an_inner_maximisation_leaves_no_gradient_behind(case):
    one, step = algorithm(*case[:1], **case[1]), make_step((0,))
    inner = one.inner(step)
    for value in [inner] if isinstance(inner, torch.Tensor) else vars(inner).values() if inner else []:
        assert not value.requires_grad
    assert all(p.grad is None for tensors in step.nets.params.values() for p in tensors.values())
    assert not step.xs.requires_grad and not step.xt.requires_grad


@pytest.mark.parametrize("case", EVERY, ids=name_of)
def test_replicas_together_are_each_what_they_are_alone(case):
    seeds = (3, 4, 5)
    together = make_step(seeds)
    one = algorithm(*case[:1], **case[1])
    losses = [s.losses for s in update(one, together)]
    for position, seed in enumerate(seeds):
        alone = make_step((seed,))
        for a, b in zip(update(one, alone), losses, strict=True):
            assert torch.allclose(a.losses[0], b[position], rtol=1e-9)
        for group, tensors in alone.nets.params.items():
            for key, value in tensors.items():
                assert torch.allclose(value[0], together.nets.params[group][key][position], atol=1e-10)


# ---------------------------------------------------------------- what the inner steps reach


def objective(case, step):
    """What the inner maximisation raises, image by image or batch by batch, as a function of the perturbed images."""
    nets, name = step.nets, case[0]
    if name == "dart":
        return algorithm(name, **case[1]).objective(step, algorithm(name, **case[1]).inner(step).xs)
    x, labels = (step.xs, step.ys) if clean(case, step) is step.xs else (step.xt, step.pseudo)
    if name.startswith("trades") or name == "artuda":
        reference = answers(step, x)
        return lambda moved: kl(nets.logits(moved), reference)
    if name == "srouda":
        labels = answers(step, x, "teacher").argmax(-1)
    return lambda moved: ce(nets.logits(moved), labels)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("case", WITH_INNER, ids=name_of)
def test_inner_maximisations_stay_in_the_ball_and_rise_from_the_random_start(case, norm):
    eps = 0.1 if norm == "Linf" else 0.4
    step = make_step((0, 1, 2), norm=norm, eps=eps)
    one, x = algorithm(*case[:1], **case[1]), clean(case, step)
    raised = objective(case, step)
    moved = images(one.inner(make_step((0, 1, 2), norm=norm, eps=eps)))
    assert (lengths(moved - x, norm) <= eps * (1 + 1e-9)).all() and moved.min() >= 0 and moved.max() <= 1
    # A divergence may have its maximum inside the ball, for some images.
    assert lengths(moved - x, norm).mean() > 0.5 * eps
    assert not x.requires_grad
    with torch.no_grad():
        high = raised(moved).flatten(1).mean(1) if raised(moved).ndim > 1 else raised(moved)
        for seed in range(5):
            start = step.ball.start(x, lambda shape, seed=seed: torch.rand(
                shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))  # fmt: skip
            low = raised(start).flatten(1).mean(1) if raised(start).ndim > 1 else raised(start)
            assert (high > low).all()


def test_dart_perturbs_by_the_models_own_answers_and_trains_on_the_pseudo_labels():
    one, step = algorithm("dart", weight=0.0), make_step((0, 1))
    other = replace(make_step((0, 1)), pseudo=(step.pseudo + 1) % 3)
    inner, again = one.inner(step), one.inner(other)
    assert torch.equal(inner.xt, again.xt)
    assert not torch.allclose(*(next(iter(one.outer(s, inner)))[1] for s in (step, other)))
    # One step from a start at rest goes along the gradient of the CE with the model's own clean answers.
    half = lambda shape: torch.full(shape, 0.5, dtype=torch.float64)  # noqa: E731
    still = replace(step, inner_steps=1, draw=half, inner_step=0.05)
    x = step.xt.clone().requires_grad_()
    logits = step.nets.logits(x)
    (gradient,) = torch.autograd.grad(ce(logits, logits.argmax(-1)).sum(), x)
    expected = (step.xt + 0.05 * gradient.sign()).clamp(0, 1)
    assert torch.allclose(one.inner(still).xt, expected)


def test_at_target_perturbs_by_the_pseudo_labels():
    step = make_step((0, 1))
    other = replace(make_step((0, 1)), pseudo=(step.pseudo + 1) % 3)
    assert not torch.allclose(algorithm("at-target").inner(step), algorithm("at-target").inner(other))


def test_darts_source_options_perturb_the_source():
    step = make_step((0,))
    before = answers(step, step.xs)
    found = {o: algorithm("dart", source=o).inner(make_step((0,))).xs for o in ("clean", "adversarial", "kl")}
    assert torch.equal(found["clean"], step.xs)
    for option in ("adversarial", "kl"):
        assert (lengths(found[option] - step.xs, "Linf") <= 0.2 + 1e-9).all()
    wrong = {o: ce(answers(step, xs), step.ys).mean() for o, xs in found.items()}
    apart = {o: kl(answers(step, xs), before).mean() for o, xs in found.items()}
    assert wrong["adversarial"] > max(wrong["kl"], wrong["clean"])
    assert apart["kl"] > max(apart["adversarial"], 0)


# ---------------------------------------------------------------- the traps


@given(copies=st.integers(2, 4), batch=st.integers(1, 5), weight=st.floats(0, 10))
def test_the_weight_of_kl_terms_does_not_depend_on_the_size_of_the_batch(copies, batch, weight):
    for one in (
        Trades(MODULES["trades-source"].SPEC.config(adversarial_weight=weight), "source"),
        algorithm("artuda", adversarial_weight=weight),
    ):
        step = make_step((0,), batch=batch, critic_steps=0)
        inner = one.inner(step)
        (_, once) = next(iter(one.outer(step, inner)))

        def often(t):
            return t.repeat(1, copies, *[1] * (t.ndim - 2))

        longer = replace(step, xs=often(step.xs), ys=often(step.ys), xt=often(step.xt))
        (_, more) = next(iter(one.outer(longer, often(inner))))
        assert torch.allclose(once, more, rtol=1e-10)


def test_groups_name_a_critic_only_where_there_is_one():
    assert algorithm("dart").groups == ("model", "critic")
    for values in ({"divergence": "mmd"}, {"divergence": "coral"}, {"weight": 0.0}):
        assert algorithm("dart", **values).groups == ("model",)


def test_pseudo_labels_and_what_the_defender_is_told():
    wanted = {"at-target": "frozen", "trades-target": "frozen", "dart": "refreshed"}
    for name in MODULES:
        one = algorithm(name)
        assert one.pseudo == wanted.get(name, "none") and one.name == name
        assert one.adapts == (name not in ("at-source", "trades-source"))
    assert algorithm("dart").refresh == "source-pgd"
    assert algorithm("dart", refresh="never").pseudo == "frozen"
    for rule in ("latest", "source-clean", "source-pgd", "never"):
        assert DART.oracle(DART.config(refresh=rule)) == ()
    assert DART.oracle(DART.presets["paper"].config) == ("target validation labels",)


def test_settings_tell_every_two_algorithms_apart_and_baselines_are_the_others():
    seen = {(a.name, str(sorted(dict(a.settings).items()))) for a in (algorithm(n, **v) for n, v in EVERY)}
    assert len(seen) == len(EVERY)
    assert set(DART.baselines) == set(MODULES) - {"dart"}


def test_the_papers_preset_has_the_papers_numbers():
    """Section 3.5 of the notes on DART: the defaults of its search, its network, its radius, its selector."""
    stated = {
        "model": "digit-cnn", "size": 32, "eps": 2 / 255, "steps": 25_001, "batch_size": 128, "lr": 1e-3,
        "lr_critic": 1e-3, "beta1": 0.9, "weight_decay": 0.0, "critic_width": 1024, "critic_layers": 5,
        "inner_steps": 5, "inner_step": 1 / 255, "check_every": 100, "val_steps": 20, "select": "oracle",
    }  # fmt: skip
    for target in (DART.presets["paper"].target, to_json(SPEC.presets["paper"].config)):
        assert {k: target[k] for k in stated} == stated
    build(DomainConfig, SMOKE_TARGET)


# ---------------------------------------------------------------- SROUDA's teacher


def test_sroudas_feedback_is_to_first_order_the_product_of_both_gradients():
    """The student's loss on the source falls by lr <gradient of it, gradient of what it was trained on>."""
    lr, step = 1e-6, make_step((0,))
    params = list(step.nets.params["model"].values())
    one = algorithm("srouda")
    inner = one.inner(step)
    on_source = torch.autograd.grad(ce(step.nets.logits(step.xs), step.ys).mean(), params)
    on_target = torch.autograd.grad(ce(step.nets.logits(inner.xt), inner.labels).mean(), params)
    product = sum((a * b).sum() for a, b in zip(on_source, on_target, strict=True)).item()
    hand = Hand(step, 0)
    xs, ys, xt = step.xs[0].numpy(), step.ys[0].numpy(), step.xt[0].numpy()
    log_p = hand.log_p(xt, "teacher")
    entropy = -(np.exp(log_p) * log_p).sum(1)[np.exp(log_p).max(1) >= 0.4].sum() / len(xt)
    assert entropy > 0
    rest = hand.ce(xs, ys, "teacher") + 2.0 * entropy
    own = hand.ce(xt, log_p.argmax(1), "teacher")
    for feedback, sign in (("new-old", -1), ("old-new", 1)):
        again = make_step((0,))
        told = algorithm("srouda", feedback=feedback, confidence=0.4, entropy_weight=2.0)
        loss = update(told, again, lr=lr)[-1].losses.item()
        assert (loss - rest) / own == pytest.approx(sign * lr * product, rel=1e-3)


def test_the_released_masked_entropy_has_no_gradient_and_ours_has():
    logits = (
        4 * torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ).requires_grad_()
    p = logits.softmax(-1)
    mask = (p.amax(-1) >= 0.6).double()
    assert 0 < mask.sum() < 6
    released = (-(p.detach() * logits.log_softmax(-1)).sum(-1) * mask).mean()
    ours = srouda.masked_entropy(logits, 0.6)
    assert released.item() == pytest.approx(ours.item())
    (none,) = torch.autograd.grad(released, logits)
    (some,) = torch.autograd.grad(ours.sum(), logits)
    assert none.abs().max() < 1e-15 and some[mask.bool()].abs().min() > 1e-6
    assert (some[~mask.bool()] == 0).all()


@given(k=st.integers(2, 6), sure=st.booleans())
def test_masked_entropy_of_even_answers_is_ln_k_where_it_counts(k, sure):
    even = torch.zeros(1, 4, k, dtype=torch.float64)
    expected = math.log(k) if sure else 0.0
    confidence = 1 / k - 1e-9 if sure else 1 / k + 1e-9
    assert srouda.masked_entropy(even, confidence).item() == pytest.approx(expected)
