"""One contract for every plug-in, found through the entry points."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from redteam.core import registry
from redteam.core.artifacts import load
from redteam.core.config import build, knobs, to_json
from redteam.core.context import Context
from redteam.core.device import Device
from redteam.core.errors import ConfigError, UnknownNameError
from redteam.core.seeding import SeedPath
from redteam.core.types import Spec
from redteam.data.nouns import TextDataset
from redteam.data.toys import stripes_dataset
from redteam.llm.language import LanguageModel, Sampling
from redteam.llm.opening import open_model
from redteam.llm.options import ModelOptions
from redteam.threats.agents import target as agents
from redteam.threats.agents.data.load import load_agents
from redteam.threats.agents.nouns import Agent
from redteam.threats.agents.scorer import enforce
from redteam.threats.evasion import target as classifiers
from redteam.threats.evasion.scorer import enforce_threat as enforce_ball_threat
from redteam.threats.evasion.target import DomainTarget
from redteam.threats.evasion.tiny import pair as bands_pair
from redteam.threats.poisoning.federation import target as federated
from redteam.threats.poisoning.federation.nouns import Federation
from redteam.threats.poisoning.nouns import Trainable
from redteam.threats.poisoning.target import ImageTrainable
from redteam.threats.strings import target as language
from tests.conftest import small_config
from tests.llm.toy import ToyModel

ROOT = Path(__file__).parents[1]
EVERY = [(kind, name) for kind in registry.GROUPS for name in registry.names(kind)]
POISONING = [
    name for name in registry.names("attack")
    if (t := registry.get("attack", name).threat) and (t.kind, t.target) == ("poisoning", "trainable")
]  # fmt: skip
# What shrinks a plug-in's own work to the size of a test. Plug-ins not named here run as they are.
SMALL = {"flip": {"experts": 1, "expert_epochs": 1, "passes": 1, "batch_size": 32, "checkpoint_every": 2}}
SMALL["flip-adaptive"] = SMALL["flip"]


def targets_of(spec: Spec) -> set[str]:
    """The kinds of targets that a plug-in is for."""
    return {spec.threat.target, *spec.also} if spec.threat else set()


def small_federation():
    """Twelve clients of eight images, six a round, three rounds."""
    data = stripes_dataset()
    settings = {"clients": 12, "per_round": 6, "images": 8, "rounds": 3, "batch_size": 4, "snapshot_every": 3}
    return federated.make(data, federated.configure(data, settings), Context(Device("cpu"), SeedPath(0)))


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_spec(kind, name):
    spec = registry.get(kind, name)
    assert isinstance(spec, Spec) and (spec.name, spec.kind) == (name, kind)
    params = spec.config.__dataclass_params__
    assert params.frozen and hasattr(spec.config, "__slots__"), "a config is frozen and slotted"
    assert all(f.kw_only for f in dataclasses.fields(spec.config)), "a config is keyword-only"
    assert "default" in spec.presets and all(isinstance(p.config, spec.config) for p in spec.presets.values())
    assert all(f.metadata.get("help") for f in dataclasses.fields(spec.config)), (
        "every knob has its help text"
    )
    with pytest.raises(ConfigError, match="unknown option"):
        build(spec.config, {"no_such_knob": 1})
    for preset in spec.presets.values():
        assert build(spec.config, to_json(preset.config)) == preset.config


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_card(kind, name):
    text = registry.card(kind, name)
    assert registry.summary(kind, name) and len(registry.summary(kind, name)) < 120
    spec = registry.get(kind, name)
    assert spec.source
    if kind in ("attack", "defense", "audit"):
        assert "Source:" in text and spec.threat is not None and spec.threat.access and spec.threat.goal


def test_every_source_key_is_in_the_bibliography():
    known = (ROOT / "docs" / "bibliography.md").read_text()
    for kind, name in EVERY:
        source = registry.get(kind, name).source
        if not registry.get(kind, name).run.__module__.startswith("outsider"):
            assert f"| {source} |" in known, f"{name}: {source}"


@pytest.mark.parametrize("name", registry.names("attack"))
def test_controls_exist_and_share_the_threat(name):
    spec = registry.get("attack", name)
    for control in spec.controls:
        other = registry.get("attack", control)
        assert other.role == "control" and other.threat.kind == spec.threat.kind


def attacked(name: str, seed: int, tmp_path: Path):
    """Run one attack on a tiny target of its own; returns (artifact, file bytes, target)."""
    spec = registry.get("attack", name)
    data = stripes_dataset()
    target = ImageTrainable(data.train, data.facts, small_config(), Device("cpu"))
    values = {"budget": 6, **SMALL.get(name, {})}
    config = build(spec.config, values, base=spec.presets["default"].config)
    config = spec.resolve(config, target) if spec.resolve else config
    artifact = spec.run(target, config, Context(Device("cpu"), SeedPath(seed)))
    artifact.save(tmp_path / f"{seed}.npz")
    return artifact, (tmp_path / f"{seed}.npz").read_bytes(), target


@pytest.mark.parametrize("name", POISONING)
def test_same_seed_same_bytes_other_seed_other_bytes(name, tmp_path):
    first, second = (attacked(name, 0, tmp_path)[1] for _ in range(2))
    assert first == second
    # Without randomness of its own an attack gives the same bytes for all seeds, and its card says so.
    if name not in ("no-attack", "inner-product-flips"):
        assert any(attacked(name, s, tmp_path)[1] != first for s in (1, 2))


@pytest.mark.parametrize("name", POISONING)
def test_inputs_untouched_budget_kept_and_disk_survived(name, tmp_path):
    fresh = stripes_dataset()
    artifact, _, target = attacked(name, 0, tmp_path)
    assert np.array_equal(target.train.images, fresh.train.images)
    assert np.array_equal(target.train.labels, fresh.train.labels)
    assert (artifact.targets != fresh.train.labels).sum() <= 6
    again = load(tmp_path / "0.npz")
    for field in dataclasses.fields(artifact):
        a, b = getattr(artifact, field.name), getattr(again, field.name)
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, field.name


STRINGS = [
    name for name in registry.names("attack")
    if (t := registry.get("attack", name).threat) and (t.kind, t.target) == ("strings", "language-model")
]  # fmt: skip
WORDS = TextDataset("toy", ("a", "b"), ("frog", "lamp"), "made in the tests", "none needed")


def spoken(name: str, seed: int, tmp_path: Path, **target_knobs):
    """Run one string attack on a toy model; returns (artifact, file bytes, prompts the model was asked)."""
    spec = registry.get("attack", name)
    ctx = Context(Device("cpu"), SeedPath(seed))
    target = language.make(WORDS, language.configure(WORDS, target_knobs), ctx)
    target.__dict__["undefended"] = model = ToyModel()
    values = {k: v for k, v in {"max_queries": 40, "length": 6}.items() if k in knobs(spec.config)}
    config = build(spec.config, values, base=spec.presets["default"].config)
    config = spec.resolve(config, target) if spec.resolve else config
    artifact = spec.run(target, config, ctx.at("attack", name))
    artifact.save(tmp_path / f"{seed}.npz")
    return artifact, (tmp_path / f"{seed}.npz").read_bytes(), model.asked


@pytest.mark.parametrize("name", STRINGS)
def test_string_attacks_same_seed_same_bytes_budget_kept_and_disk_survived(name, tmp_path):
    artifact, first, asked = spoken(name, 0, tmp_path)
    assert spoken(name, 0, tmp_path)[1] == first
    assert artifact.ids == WORDS.ids and artifact.targets == WORDS.texts
    assert artifact.queries.max() <= 40 and artifact.queries.sum() == len(asked)
    again = load(tmp_path / "0.npz")
    assert (again.prompts, again.initial, again.finish) == (
        artifact.prompts,
        artifact.initial,
        artifact.finish,
    )
    assert np.array_equal(again.loss, artifact.loss, equal_nan=True)
    # Attacks that draw nothing give the same for all seeds.
    if name in ("random-init", "random-search"):
        assert spoken(name, 1, tmp_path)[1] != first


@pytest.mark.parametrize("name", [n for n in STRINGS if registry.get("attack", n).role == "control"])
def test_controls_of_string_attacks_meet_the_attacks_own_targets(name):
    own, attack = registry.get("attack", name).presets, registry.get("attack", "gcq").presets
    assert {k: dict(p.target) for k, p in own.items()} == {k: dict(p.target) for k, p in attack.items()}


@pytest.mark.parametrize("name", registry.names("defense"))
def test_defences_of_language_models_give_one_that_says_it_is_defended(name, ctx):
    spec = registry.get("defense", name)
    if spec.threat.target != "language-model":
        pytest.skip("this contract is for language models")
    model = open_model(ModelOptions(model="tiny:"), ctx)
    default = spec.presets["default"].config
    defended = spec.run(model, build(spec.config, {}, base=default), ctx.at("defense"))
    assert isinstance(defended, LanguageModel) and defended.kind == model.kind
    assert defended.fingerprint() != model.fingerprint()
    (answer,) = defended.generate(["What is two and two?"], Sampling(max_tokens=4))
    assert answer.finish in ("stop", "length", "refused")


@pytest.mark.parametrize("name", registry.names("defense"))
def test_defences_give_a_target_of_the_same_kind(name, ctx):
    spec = registry.get("defense", name)
    if (spec.threat.kind, spec.threat.target) != ("poisoning", "trainable"):
        pytest.skip("this contract is for poisoning")
    data = stripes_dataset()
    target = ImageTrainable(data.train, data.facts, replace(small_config(), epochs=1), Device("cpu"))
    config = spec.presets["default"].config
    config = spec.told(config, {"budget": 6, "target_class": 1}, target) if spec.told else config
    defended = spec.run(target, config, ctx)
    assert isinstance(defended, Trainable) and defended.kind == target.kind
    assert defended.fingerprint() != target.fingerprint()


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown attack 'random-flip'. Did you mean 'random-flips'"):
        registry.get("attack", "random-flip")


AGENTS = [
    name for name in registry.names("attack")
    if (t := registry.get("attack", name).threat) and (t.kind, t.target) == ("agent-privacy", "agent")
]  # fmt: skip


def hijacked(name: str, seed: int, tmp_path: Path, defense: str | None = None):
    """Run one attack on a small agent in each of its variants; returns [(artifact, file bytes, config)], target."""
    spec = registry.get("attack", name)
    ctx = Context(Device("cpu"), SeedPath(seed))
    data = load_agents("profiles")
    target = agents.make(
        data, agents.configure(data, {"profiles": 1, "fields": 4, "tasks": ("bank-loan",)}), ctx
    )
    if defense is not None:
        protect = registry.get("defense", defense)
        target = protect.run(target, protect.presets["default"].config, ctx.at("defense"))
    out = []
    for values in spec.variants or ({},):
        config = build(spec.config, values, base=spec.presets["default"].config)
        config = spec.resolve(config, target) if spec.resolve else config
        artifact = spec.run(target, config, ctx.at("attack", name))
        artifact.save(tmp_path / "a.npz")
        out.append((artifact, (tmp_path / "a.npz").read_bytes(), config))
    return out, target


@pytest.mark.parametrize("name", AGENTS)
def test_agent_attacks_same_seed_same_bytes_budget_kept_and_disk_survived(name, tmp_path):
    found, target = hijacked(name, 0, tmp_path)
    again, _ = hijacked(name, 0, tmp_path)
    assert [b for _, b, _ in found] == [b for _, b, _ in again]
    for artifact, _, config in found:
        access = registry.get("attack", name).threat.access
        enforce(artifact, to_json(config), access, target.questions, target.dataset)
        artifact.save(tmp_path / "b.npz")
        back = load(tmp_path / "b.npz")
        assert (back.scripts, back.finish, back.notes) == (artifact.scripts, artifact.finish, artifact.notes)
        assert np.array_equal(back.queries, artifact.queries)


@pytest.mark.parametrize("name", [n for n in AGENTS if n not in ("context-hijack-model",)])
def test_agent_attacks_draw_their_words_from_the_seed(name, tmp_path):
    # Of the adaptive ones, `derived` asks in fixed words.
    first, other = (hijacked(name, seed, tmp_path)[0] for seed in (0, 1))
    assert [a for _, a, _ in first] != [b for _, b, _ in other]


@pytest.mark.parametrize("name", AGENTS)
def test_agent_attacks_share_their_targets(name):
    own, reference = registry.get("attack", name).presets, registry.get("attack", "benign").presets
    assert {k: dict(p.target) for k, p in own.items()} == {k: dict(p.target) for k, p in reference.items()}


@pytest.mark.parametrize("name", registry.names("defense"))
def test_defences_of_agents_give_one_that_says_it_is_defended(name, ctx):
    spec = registry.get("defense", name)
    if spec.threat.target != "agent":
        pytest.skip("this contract is for agents")
    data = load_agents("profiles")
    target = agents.make(data, agents.configure(data, {"profiles": 1, "fields": 4}), ctx)
    defended = spec.run(target, spec.presets["default"].config, ctx.at("defense"))
    assert defended.kind == target.kind and isinstance(defended.agent, Agent)
    assert defended.fingerprint() != target.fingerprint() and target.agent is target.undefended
    told = spec.oracle(spec.presets["default"].config) if callable(spec.oracle) else spec.oracle
    assert all(isinstance(t, str) for t in told)


def test_variants_and_baselines_name_what_is_there():
    for kind, name in EVERY:
        spec = registry.get(kind, name)
        for variant in spec.variants:
            build(spec.config, variant, base=spec.presets["default"].config)
        for baseline in spec.baselines:
            other = registry.get("defense", baseline)
            assert other.threat.kind == spec.threat.kind
            assert {other.threat.target, *other.also} & {spec.threat.target, *spec.also}


FEDERATED = [n for n in registry.names("defense") if "federation" in targets_of(registry.get("defense", n))]


@pytest.mark.parametrize("name", FEDERATED)
def test_defences_of_federations_give_one_that_says_it_is_defended(name, ctx):
    spec, target = registry.get("defense", name), small_federation()
    config = spec.presets["default"].config
    config = spec.told(config, {"budget": 2, "target_class": 1}, target) if spec.told else config
    defended = spec.run(target, config, ctx)
    assert isinstance(defended, Federation) and defended.kind == "federation"
    assert defended.fingerprint() != target.fingerprint()
    told = spec.oracle(config) if callable(spec.oracle) else spec.oracle
    assert bool(told) == (spec.told is not None), "what it is told is oracle knowledge"
    (run,) = defended.fit(None, [0], ctx)
    assert set(run.clients["round"]) == {0, 1, 2} and run.snapshots[-1].round == 3
    assert np.isfinite(run.snapshots[-1].model.logits(target.train.images[:4])).all()


EVASION = [n for n in registry.names("attack") if registry.get("attack", n).threat.kind == "evasion"]
# What shrinks an evasion attack to the size of a test.
FEW = {"steps": 3, "queries": 5, "targets": 2, "restarts": 1}
TINY_CLASSIFIER = {
    "model": "digit-cnn-small", "size": 0, "rows": 0, "steps": 4, "batch_size": 16, "check_every": 2, "val_rows": 10,
    "val_steps": 1, "inner_steps": 1, "critic_width": 8, "examples": 12, "lr": 1e-3,
}  # fmt: skip


def evaded(name: str, seed: int, path: Path):
    """Run one attack on a tiny classifier; returns (artifact, file bytes, config)."""
    spec, ctx = registry.get("attack", name), Context(Device("cpu"), SeedPath(seed))
    target = DomainTarget(bands_pair(), classifiers.configure(bands_pair(), TINY_CLASSIFIER))
    values = {k: v for k, v in FEW.items() if k in knobs(spec.config)}
    values |= {"version": "custom"} if "version" in knobs(spec.config) else {}
    config = spec.resolve(build(spec.config, values, base=spec.presets["default"].config), target)
    artifact = spec.run(target, config, ctx.at("attack", name))
    artifact.save(path)
    return artifact, path.read_bytes(), config


@pytest.mark.parametrize("name", EVASION)
def test_evasion_same_seed_same_bytes_ball_kept_and_disk_survived(name, tmp_path):
    artifact, first, config = evaded(name, 0, tmp_path / "a.npz")
    assert evaded(name, 0, tmp_path / "b.npz")[1] == first
    enforce_ball_threat(artifact, to_json(config), registry.get("attack", name).threat.access)
    again = load(tmp_path / "a.npz")
    for field in dataclasses.fields(artifact):
        a, b = getattr(artifact, field.name), getattr(again, field.name)
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, field.name


@pytest.mark.parametrize(
    "name", [n for n in registry.names("defense") if registry.get("defense", n).threat.kind == "evasion"]
)
def test_trainings_give_a_classifier_that_says_how_it_is_trained(name, ctx):
    spec = registry.get("defense", name)
    target = DomainTarget(bands_pair(), classifiers.configure(bands_pair(), TINY_CLASSIFIER))
    for variant in spec.variants or ({},):
        defended = spec.run(target, build(spec.config, variant, base=spec.presets["default"].config), ctx)
        assert defended.kind == "classifier" and target.algorithm is None
        assert (defended.algorithm.name, set(defended.algorithm.settings)) == (name, set(knobs(spec.config)))
        (fitted,) = defended.fit(ctx)
        assert fitted.step in (2, 4) and not fitted.network.training
