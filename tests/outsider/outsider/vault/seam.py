"""The target plug-in, the scorer, and all else that the core asks of this threat."""

from __future__ import annotations

import numpy as np
import pandas as pd

from outsider.vault.nouns import BELOW, Guesses, Secrets, Vault, VaultConfig
from redteam.core.config import build
from redteam.core.errors import ArtifactError, BudgetExceededError, UnknownNameError
from redteam.core.pairing import Pairing
from redteam.core.scored import Scored
from redteam.core.seeding import SeedPath
from redteam.core.stats import paired_difference, rate
from redteam.core.threat import TableLayout, TargetType, Tiny, Work
from redteam.core.types import Preset, Spec


def load(name, source):
    if name != "vault-mini":
        raise UnknownNameError("set of secrets", name, ["vault-mini"])
    return Secrets(name, SeedPath(0, ("vault",)).numpy().integers(BELOW, size=60))


def configure(dataset, *layers):
    config = VaultConfig()
    for layer in layers:
        config = build(VaultConfig, layer, base=config, where="target")
    return config


def enforce(artifact, config, access, target):
    if len(artifact.guesses) != len(target):
        raise ArtifactError(f"expected {len(target)} guesses, got {len(artifact.guesses)}")
    if (most := int(artifact.tries.max())) > config["tries"]:
        raise BudgetExceededError(
            f"the attack asked {most} times about a secret; its budget is {config['tries']}"
        )


def score(artifact, cell, access, dataset, target, defended, ctx):
    secrets = dataset.values[: len(target)]
    table = pd.DataFrame({"index": np.arange(len(secrets)), "secret": secrets, "guess": artifact.guesses})
    return rescore(artifact, {"outcomes": table})


def rescore(artifact, tables):
    table = tables["outcomes"]
    opened, base = table["guess"] == table["secret"], table["secret"] == 0
    metrics = {
        "opened": rate(opened.to_numpy()), "base_opened": rate(base.to_numpy()),
        "opened_lift": paired_difference(opened.to_numpy()[None], base.to_numpy()[None]),
    }  # fmt: skip
    return Scored(metrics, tables)


def work(jobs, rebuild, ctx):
    return Work(
        {"asked": float(sum(rebuild(j)[2].tries * len(rebuild(j)[1]) for j in jobs))},
        "questions, at most",
        None,
    )


def examples(record, table, metric, group):
    return (
        (table["guess"] == table["secret"]).to_numpy()[None] if (metric, group) == ("opened", None) else None
    )


def difference(ours, theirs):
    a, b = ((t["outcomes"]["guess"] == t["outcomes"]["secret"]).to_numpy()[None] for t in (ours, theirs))
    return {"opened": paired_difference(a, b)}


def use(target, ctx):
    assert target.ask(0, int(target.dataset.values[0]))


SPEC = Spec(
    name="outsider-vault", kind="target", version="1", config=VaultConfig, run=Vault, source="none",
    presets={"default": Preset(config=VaultConfig())},
)  # fmt: skip

VAULT = TargetType(
    spec=SPEC, artifact=Guesses, dataset="vault-mini", prefix="vault-", load=load, configure=configure,
    enforce=enforce, score=score, rescore=rescore, work=work, report="outsider.vault.page:render",
    layout=TableLayout(columns=("opened", "base_opened", "opened_lift"), budget="tries", together=True),
    pairing=Pairing(examples=examples, difference=difference),
    tiny=Tiny(
        make=lambda ctx: Vault(load("vault-mini", None), VaultConfig(secrets=12), ctx), use=use,
        untouched=lambda target: target.dataset.digest, knobs={"tries": 3},
    ),
)  # fmt: skip
