"""The suite's federated defences as a strategy of Flower (`flwr`), for real federations.

    from redteam.integrations.flower import strategy
    server = strategy(["norm-clip", ("multi-krum", {"poisons": 20})], clients=100, classes=10, per_round=10, rounds=50)
    server.start(grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=50)

It is a `flwr.serverapp.strategy.FedAvg` of Flower's message API: it samples clients and evaluates as that does, and
aggregates as `aggregated` of the federation's nouns says. Only floating-point arrays are trained; others stay
as they were first sent. A reply that has other arrays, other shapes or values that are not finite is rejected
before any rule.

What a rule asks of clients while a round is aggregated goes out as messages of its own, so that a client app needs:

* `train`, as ever: it is asked again where a rule trains another model, with that model's arrays;
* `@app.query("represent")`, for rules on representations (`shadow`, `spectre`): config `label`; answers one
  `MetricRecord` with `mean`, a list of floats (empty without samples of that label), and `count`;
* `@app.query("accuracy")`, for `shadow`: config `label`; answers `right` and `count`.

The server does not know who is malicious, nor anybody's images, and clients may answer as they like. What the suite
tells a defence of an attack (number of malicious clients, target label) has to be given here as its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from redteam.core import registry
from redteam.core.config import build
from redteam.core.context import Context
from redteam.core.device import Device
from redteam.core.errors import CapabilityError, ConfigError, ThreatMismatchError
from redteam.core.seeding import SeedPath
from redteam.core.threat import of_target
from redteam.core.types import ThreatModel

if TYPE_CHECKING:
    from redteam.integrations.flower.server import RuledFedAvg

# A maker of a rule: see what the federation's threat offers.
MakeRule = Callable[..., Any]
NamedRule = MakeRule | str | tuple[str, Mapping[str, Any]]
_THREAT = ThreatModel(kind="poisoning", target="federation", access=(), budget="", knowledge=(), goal="")


@dataclass
class _Behind:
    """Stands in for the federation that a defence is put before: it has no data, and keeps the rules."""

    config: Any
    made: list[MakeRule] = field(default_factory=list)
    kind: str = "federation"
    train: Any = None
    facts: Any = None
    rows: Any = None

    def behind(self, name: str, settings: Mapping[str, Any], make: MakeRule) -> _Behind:
        """The same, with one more rule."""
        return _Behind(self.config, [*self.made, make])

    def fingerprint(self) -> dict[str, Any]:
        """Nothing: no run of the suite is stored under it."""
        return {}

    def fit(self, *ignored: Any) -> Any:
        """Refused: Flower trains."""
        raise CapabilityError("a Flower federation is trained by its strategy's start(), not by fit")

    def at(self, *ignored: Any) -> Any:
        """Refused: no images are here."""
        raise CapabilityError("a Flower server holds no images")


def make_rules(named: Sequence[NamedRule], *, clients: int, per_round: int, seed: int = 0) -> list[MakeRule]:
    """Makers of rules from makers, names of defences, or (name, settings).

    Raises:
        UnknownNameError, ConfigError: of a name or of settings. ThreatMismatchError: the defence is for other targets.
    """
    ctx = Context(Device("cpu"), SeedPath(seed, ("flower",)))
    out: list[MakeRule] = []
    for item in named:
        if callable(item):
            out.append(item)
            continue
        name, settings = (item, {}) if isinstance(item, str) else item
        spec = registry.get("defense", name)
        if not spec.fits(_THREAT):
            raise ThreatMismatchError(f"'{name}' is no defence of a federation against poisoning")
        config = build(spec.config, settings, base=spec.presets["default"].config, where=name)
        out += spec.run(_Behind(SimpleNamespace(clients=clients, per_round=per_round)), config, ctx).made
    return out


def strategy(
    rules: Sequence[NamedRule],
    *,
    clients: int,
    classes: int,
    per_round: int,
    rounds: int,
    server_lr: float = 1.0,
    server_momentum: float = 0.0,
    weighted: bool = False,
    seed: int = 0,
    timeout: float = 3600.0,
    **fedavg: Any,
) -> RuledFedAvg:
    """A Flower strategy that aggregates by rules, applied in order.

    clients, per_round, rounds: of the whole federation, of a round, of the run; rules scale what they are told by
    them. Sampling itself is FedAvg's, from Python's global generator; `fraction_train` and `min_train_nodes` are
    set for per_round clients unless given.
    weighted: by the number of examples that clients claim; otherwise all count alike.
    timeout: seconds to wait for what a rule asks of clients. fedavg: further arguments of Flower's FedAvg.

    Raises:
        ConfigError: `flwr` is not installed, or numbers that do not fit. Others: see `make_rules`.
    """
    if not 0 < per_round <= clients:
        raise ConfigError(f"per_round: expected 1 to {clients} (all clients), got {per_round}")
    if not 0 <= server_momentum < 1 or server_lr <= 0:
        raise ConfigError(
            f"expected server_lr above 0 and server_momentum in [0, 1), got {server_lr:g} and {server_momentum:g}"
        )
    made = make_rules(rules, clients=clients, per_round=per_round, seed=seed)
    if find_spec("flwr") is None:
        raise ConfigError("a Flower strategy needs the extra flower: pip install 'redteam[flower]'")
    from redteam.integrations.flower.server import RuledFedAvg

    setting = of_target("federation").offers.Setting(
        classes=classes, per_round=per_round, rounds=rounds, server_lr=server_lr
    )
    # The minimum too: FedAvg rounds the product of fraction and clients down.
    usual = {
        "fraction_train": per_round / clients,
        "min_train_nodes": per_round,
        "min_available_nodes": per_round,
    }
    return RuledFedAvg(
        made,
        setting,
        momentum=server_momentum,
        weighted=weighted,
        seed=seed,
        timeout=timeout,
        **{**usual, **fedavg},
    )
