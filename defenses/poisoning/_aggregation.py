"""What the rules of a server share: their threat, what they are told, and the geometry of a round's updates.

Everything is computed in float64: an attacker may send an update so long that the others' distances would
drown in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from redteam.core.config import Checked, knob, to_json
from redteam.core.context import Context
from redteam.core.errors import ConfigError
from redteam.core.types import Spec, ThreatModel
from redteam.threats.poisoning.federation.nouns import Federation, Round, Rule, Setting

FEDERATED_THREAT = ThreatModel(
    kind="poisoning",
    target="federation",
    access=("the clients' updates of each round",),
    budget="no images and no clean data",
    knowledge=("not who is malicious", "what it is told is recorded as oracle knowledge"),
    goal="a model without a backdoor, as accurate as before",
)

# Assumed beside a control that changes nothing: the share that `fraction` of the attacks defaults to.
_USUAL_SHARE = 0.25


# ---------------------------------------------------------------- what a rule is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed(Checked):
    """A number of malicious clients: a defender would not know it, so it is recorded as oracle knowledge."""

    poisons: int | None = knob(
        None, "malicious clients of the whole federation to assume; none: told the attack's budget", low=0
    )
    factor: float = knob(1.0, "the number assumed, times this: what a wrong number does", above=0)

    def per_round(self, clients: int, setting: Setting) -> int:
        """Malicious clients to expect in a round.

        Raises:
            ConfigError: nobody has said how many there are, or more than there are clients.
        """
        if self.poisons is None:
            raise ConfigError(
                "poisons: expected a number of malicious clients; give poisons=N, or attack with a budget"
            )
        assumed = self.factor * self.poisons
        if assumed > clients:
            raise ConfigError(
                f"poisons: expected at most the {clients} clients, got {self.poisons} times factor {self.factor:g}"
            )
        return min(setting.per_round, round(assumed * setting.per_round / clients))


T = TypeVar("T", bound=Assumed)


def told(config: T, attack: Mapping[str, Any], target: Any) -> T:
    """The config with the attack's number of clients: `Spec.told`. The no-attack control tells a usual one."""
    if config.poisons is not None:
        return config
    share = attack.get("fraction") or _USUAL_SHARE
    return replace(config, poisons=int(attack.get("budget") or max(1, round(share * target.config.clients))))


def oracle(config: Assumed) -> tuple[str, ...]:
    """What of this a defender would not know: `Spec.oracle`."""
    return ("number of malicious clients" + ("" if config.factor == 1 else f", times {config.factor:g}"),)


# ---------------------------------------------------------------- cards


MakeRule = Callable[[Any, Setting, int], Rule]
"""(config, setting, clients of the whole federation) -> the rule of one run."""


def behind(target: Federation, name: str, version: str, config: Any, make: MakeRule) -> Federation:
    """The federation behind a rule."""
    clients = target.config.clients
    return target.behind(f"{name} {version}", to_json(config), lambda setting: make(config, setting, clients))


def rule_spec(
    name: str, config: type, make: MakeRule, source: str, *, version: str = "1", **more: Any
) -> Spec:
    """The `SPEC` of a rule. more: further fields."""

    def run(target: Federation, config: Any, ctx: Context) -> Federation:
        """The federation behind the rule."""
        return behind(target, name, version, config, make)

    return Spec(
        name=name, kind="defense", version=version, config=config, run=run, source=source,
        threat=FEDERATED_THREAT, **more,
    )  # fmt: skip


# ---------------------------------------------------------------- a round, in and out


def present(round: Round, name: str) -> torch.Tensor:
    """Indices (k,) of the clients that have weight: those left out before count nowhere.

    Raises:
        ConfigError: a rule before this one has already made the aggregate, so that this one would do nothing.
    """
    if round.mean is not None:
        raise ConfigError(
            f"{name}: a rule before it has already made the round's aggregate; name {name} before that rule"
        )
    return torch.nonzero(round.weights > 0)[:, 0].to(round.updates.device)


def with_rows(round: Round, rows: torch.Tensor, updates: torch.Tensor) -> Round:
    """The round with the updates (k, P) of `rows` replaced."""
    return replace(round, updates=round.updates.index_copy(0, rows, updates.to(round.updates)))


def reweighted(round: Round, rows: torch.Tensor, factors: torch.Tensor, scores: torch.Tensor) -> Round:
    """The round with the weights of `rows` times `factors` (k,), and their scores (k,); others' scores are NaN."""
    there = rows.to(round.weights.device)
    scores = scores.clamp(max=torch.finfo(torch.float32).max)
    new = round.weights[there] * factors.to(round.weights)
    blank = torch.full(round.weights.shape, torch.nan, dtype=torch.float32, device=round.weights.device)
    return replace(
        round, weights=round.weights.index_copy(0, there, new), scores=blank.index_copy(0, there, scores.to(blank))
    )  # fmt: skip


def gaussian(like: torch.Tensor, sd: float, generator: torch.Generator) -> torch.Tensor:
    """Noise N(0, sd^2) of the shape, type and device of `like`, from a generator on the CPU."""
    return (sd * torch.randn(like.shape, generator=generator)).to(like)


# ---------------------------------------------------------------- geometry


def exact(updates: torch.Tensor) -> torch.Tensor:
    """In float64, on the CPU where the device has none."""
    return updates.to("cpu", torch.float64) if updates.device.type == "mps" else updates.double()


def norms(updates: torch.Tensor) -> torch.Tensor:
    """(K,) float64 lengths of (K, P) updates."""
    wide = updates if updates.device.type != "mps" else exact(updates)
    lengths: torch.Tensor = torch.linalg.vector_norm(wide, dim=1, dtype=torch.float64)
    return lengths


def median(values: torch.Tensor) -> float:
    """The median of (k,) values, k > 0; of an even number the mean of the middle two."""
    return float(np.median(values.cpu().numpy()))


def clipped(updates: torch.Tensor, bound: float) -> torch.Tensor:
    """Updates u min(1, bound / |u|), (K, P): none is longer than `bound`, and no direction changes."""
    lengths = norms(updates)
    long = torch.nonzero(lengths > bound)[:, 0].to(updates.device)
    shorter = exact(updates[long]) * (bound / lengths[lengths > bound])[:, None]
    return updates.index_copy(0, long, shorter.to(updates))


def squared_distances(updates: torch.Tensor) -> torch.Tensor:
    """(K, K) float64 squared Euclidean distances, from differences and not from inner products."""
    count = len(updates)
    out = torch.zeros(count, count, dtype=torch.float64)
    if count > 1:
        upper = torch.triu_indices(count, count, 1)
        out[upper[0], upper[1]] = torch.nn.functional.pdist(exact(updates)).square().cpu()
    return out + out.T


def cosines(vectors: torch.Tensor) -> torch.Tensor:
    """(K, K) float64 cosine similarities in [-1, 1]; a vector of length zero is like nothing (0), also not itself."""
    lengths = norms(vectors)
    units = exact(vectors) / torch.where(lengths > 0, lengths, 1.0)[:, None]
    return (units @ units.T).clamp(-1, 1).cpu()


def krum_scores(distances: torch.Tensor, malicious: int) -> torch.Tensor:
    """(K,) sums of the squared distances to the K - f - 2 nearest others, and to one where that is fewer.

    distances: (K, K) squared. malicious: f. Source: [blanchard2017krum], the definition of Krum (remembered).
    """
    count = len(distances)
    neighbours = min(count - 1, max(1, count - malicious - 2))
    # The first of each sorted row is the distance to oneself.
    return distances.sort(dim=1).values[:, 1 : 1 + neighbours].sum(dim=1)


def trimmed_mean(updates: torch.Tensor, trim: int) -> torch.Tensor:
    """(P,) means of each coordinate without its `trim` smallest and `trim` largest values, 2 trim < K.

    Source: [yin2018trimmed], definition 2 (remembered).
    """
    stop = len(updates) - trim
    if updates.device.type != "cpu":
        return exact(updates.sort(dim=0).values[trim:stop]).mean(0).to(updates)
    # NumPy sorts a short axis about ten times as fast as torch on a CPU.
    middle = np.sort(updates.numpy(), axis=0)[trim:stop]
    return torch.from_numpy(middle.mean(0, dtype=np.float64)).to(updates)


def geometric_median(
    updates: torch.Tensor, weights: torch.Tensor, *, passes: int, floor: float, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The point with the least weighted sum of distances to the updates, by smoothed Weiszfeld passes.

    Each pass: b_k = a_k / max(floor, |z - u_k|), z = sum b_k u_k / sum b_k, from z = the weighted mean; until
    z moves by less than `tolerance` times its median distance to the updates. weights: (K,), sum > 0.
    Source: [pillutla2022rfa], algorithm 2 (remembered).

    Returns:
        z: (P,), the shares b / sum b it is the mean by: (K,) float64, and the passes done.
    """
    points = exact(updates)
    prior = weights.to(points) / weights.to(points).sum()
    share, centre = prior, prior @ points
    done, settled = 0, False
    while done < passes and not settled:
        distances = norms(points - centre)
        share = prior / distances.clamp(min=floor)
        share = share / share.sum()
        moved = share @ points
        settled = float(norms((moved - centre)[None])) <= tolerance * median(distances)
        centre, done = moved, done + 1
    return centre.to(updates), share, done
