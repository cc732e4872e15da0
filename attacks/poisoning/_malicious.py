"""What every attack by clients of a federation shares: the goal, who is malicious, and what their data say.

A malicious client holds the rows it was dealt, true labels included. Unless told otherwise it takes images of
every class but the target's (all to one, as the released code of [wang2022shadow] does), stamps a share of them
and labels these with the target class. Its other rows, those of the target class among them, stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from attacks.poisoning._backdoor import ALL_SOURCES, TRIGGERS, Triggered, aimed, class_index
from redteam.core.config import check_ranges, knob
from redteam.core.context import Context
from redteam.core.errors import ConfigError
from redteam.core.types import Preset, Role, Spec, ThreatModel
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.nouns import Federation

FEDERATED_LABEL_THREAT = ThreatModel(
    kind="poisoning",
    target="federation",
    access=("training labels", "local epochs"),
    budget="number of clients that are malicious",
    knowledge=("images and true labels of the malicious clients", "model and recipe of the federation"),
    goal="images of the source class that wear the trigger are given the target class; others as before",
)
FEDERATED_DATA_THREAT = replace(
    FEDERATED_LABEL_THREAT, access=("training labels", "local epochs", "training images")
)
FEDERATED_UPDATE_THREAT = replace(
    FEDERATED_DATA_THREAT, access=(*FEDERATED_DATA_THREAT.access, "model updates")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaliciousClients(Triggered):
    """The goal of malicious clients: which images, wearing what, are to be taken for what, and how many they are."""

    RESOLVE: ClassVar = "attacks.poisoning._malicious.resolve"

    trigger: triggers.TriggerName = knob("1xl", TRIGGERS)
    source: int | str = knob("auto", "class to be misread: name or number; auto, all: any but the target's")
    target_class: int | str = knob("auto", "class to be read instead: name or number; auto: the data set's")
    fraction: float = knob(0.15, "share of the clients that are malicious: above 0, at most 0.5")
    presence: Literal["fixed", "drawn"] = knob(
        "fixed", "fixed: the same share of every round is malicious; drawn: clients are sampled blindly"
    )
    stamped: float = knob(
        0.2, "share of a malicious client's source rows that it stamps and relabels", above=0, high=1
    )
    epochs: int = knob(1, "local epochs of a malicious client, as a multiple of the others'", low=1)
    budget: int | None = knob(None, "malicious clients; none: fraction of all clients", low=0)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.fraction <= 0:
            raise ConfigError(
                f"fraction: expected more than 0 and at most 0.5 of the clients, got {self.fraction:g}; "
                "for no malicious client at all run the control `federated-no-attack`"
            )
        if self.fraction > 0.5:
            raise ConfigError(
                f"fraction: expected more than 0 and at most 0.5 of the clients, got {self.fraction:g}; "
                "where most clients are malicious they are the federation, and no rule can tell the sides apart"
            )


C = TypeVar("C", bound=MaliciousClients)


def resolve(config: C, target: Federation) -> C:
    """Fill in what depends on the data: class numbers, and the number of malicious clients.

    Raises:
        ConfigError: no such class; source and target are one class; too many malicious clients, or so few that
            no round would have one.
    """
    clients = int(target.config.clients)
    everyone = config.source in ("auto", "all", ALL_SOURCES)
    source = ALL_SOURCES if everyone else class_index(config.source, target.train.classes, "source")
    known: C = aimed(config, target, source)
    count = client_count(config, clients)
    usual = config.budget is None or config.budget == client_count(replace(config, budget=None), clients)
    fraction = config.fraction if usual else count / clients
    known = replace(known, budget=count, fraction=fraction)
    if malicious_per_round(known, target) < 1:
        raise ConfigError(
            f"fraction: {count} of {clients} clients are malicious, which makes none of the "
            f"{target.config.per_round} of a round; raise fraction, or sample blindly with presence=drawn"
        )
    return known


def client_count(config: MaliciousClients, clients: int) -> int:
    """The budget as a number of clients: at least one, at most half of them.

    Raises:
        ConfigError: there are too few clients, or a budget was given that does not fit.
    """
    count = config.budget
    if count is None:
        count = max(1, min(round(config.fraction * clients), clients // 2))
    if not 1 <= count <= clients / 2:
        raise ConfigError(
            f"budget: expected 1 to {clients // 2} malicious clients of {clients}, at most half, got {count}"
        )
    return count


def malicious_per_round(config: MaliciousClients, target: Federation) -> int:
    """Malicious clients in each round of a resolved config; with `drawn`, their expected number, at least one."""
    count = round(config.budget / target.config.clients * target.config.per_round)
    return count if config.presence == "fixed" else max(1, count)


def draw_clients(config: MaliciousClients, target: Federation, ctx: Context) -> np.ndarray:
    """(m,) int64 ids, ascending. A smaller budget's clients are among those of a larger one."""
    drawn = ctx.rng("clients").permutation(int(target.config.clients))
    return np.sort(drawn[: config.budget])


def true_labels(target: Federation, ids: np.ndarray) -> np.ndarray:
    """(m, n) int64: the true labels of the rows that clients hold."""
    return target.train.labels[target.rows[ids]]


def choose(
    labels: np.ndarray, ids: np.ndarray, config: MaliciousClients, shares: Sequence[float], ctx: Context
) -> np.ndarray:
    """(m, n) bool: a share of each client's source rows, drawn at random, each client by a stream of its own.

    labels: (m, n) true ones. shares: (m,) in [0, 1]; a share above 0 is at least one row where there is any.
    """
    chosen = np.zeros(labels.shape, bool)
    for index, (client, share) in enumerate(zip(ids, shares, strict=True)):
        own = labels[index]
        wanted = own != config.target_class if config.source == ALL_SOURCES else own == config.source
        rows = np.flatnonzero(wanted)
        count = max(int(share > 0), round(share * len(rows)))
        chosen[index, ctx.rng("rows", int(client)).permutation(rows)[:count]] = True
    return chosen


def malicious(
    config: MaliciousClients,
    ids: np.ndarray,
    labels: np.ndarray,
    stamped: np.ndarray,
    conduct: Mapping[str, Any],
) -> Clients:
    """The artifact of a resolved config. conduct: beyond the number of epochs."""
    return Clients(
        ids=ids.astype(np.int64), labels=labels.astype(np.int64), stamped=stamped, trigger=config.spec(),
        source_class=int(config.source), target_class=int(config.target_class),
        budget=config.budget,
        presence=config.presence, conduct={"epochs": config.epochs, **conduct},
    )  # fmt: skip


def relabelled(
    target: Federation,
    config: MaliciousClients,
    ctx: Context,
    *,
    stamp: bool,
    shares: Callable[[np.ndarray], Sequence[float]] | None = None,
    conduct: Mapping[str, Any] | None = None,
) -> Clients:
    """Malicious clients that give a share of their source rows the target label.

    stamp: whether these rows wear the trigger too. shares: of ids, another share for each client than `stamped`.
    """
    ids = draw_clients(config, target, ctx)
    labels = true_labels(target, ids)
    chosen = choose(labels, ids, config, shares(ids) if shares else [config.stamped] * len(ids), ctx)
    given = np.where(chosen, int(config.target_class), labels)
    return malicious(config, ids, given, chosen if stamp else np.zeros_like(chosen), conduct or {})


# The released code has 1,000 clients of 100 images; the federation's own defaults stand here.
SMOKE_TARGET: Mapping[str, Any] = {
    "clients": 40, "per_round": 8, "images": 20, "rounds": 10, "snapshot_every": 5,
}  # fmt: skip


def federated_spec(
    name: str,
    run: Callable[..., Clients],
    source: str,
    *,
    config: type[MaliciousClients] = MaliciousClients,
    smoke: MaliciousClients | None = None,
    resolver: Callable[..., Any] = resolve,
    threat: ThreatModel = FEDERATED_DATA_THREAT,
    role: Role = "attack",
    controls: tuple[str, ...] = ("federated-no-attack", "federated-label-flips"),
    **more: Any,
) -> Spec:
    """The `SPEC` of an attack on federations, with presets `default` and `smoke`. more: further fields of it."""
    presets = {
        "default": Preset(config=config()),
        "smoke": Preset(config=smoke or config(), target=SMOKE_TARGET, dataset="digits"),
    }
    return Spec(
        name=name, kind="attack", role=role, version="1", config=config, run=run, resolve=resolver,
        presets=presets, source=source, threat=threat, controls=controls, **more,
    )  # fmt: skip
