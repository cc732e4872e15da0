"""FedAvg whose aggregation is the suite's rules. Imports `flwr`; see the package's docstring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import (  # type: ignore[import-not-found]
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import FedAvg  # type: ignore[import-not-found]

from redteam.core.errors import CapabilityError
from redteam.core.seeding import SeedPath
from redteam.core.threat import of_target
from redteam.integrations.flower.arrays import Layout

_ASKED = {"represent": "mean (a list of floats) and count", "accuracy": "right and count"}


def _nouns() -> Any:
    """What the federation's threat offers: rounds, rules and how they aggregate."""
    return of_target("federation").offers


def _only(records: Any) -> Any:
    """The one record of a reply, or None."""
    return next(iter(records.values())) if len(records) == 1 else None


def _count(value: Any) -> int:
    """A count that a client claims; -1 where it is none."""
    return value if isinstance(value, int) and value >= 0 else -1


@dataclass(frozen=True)
class NodeLearner:
    """What a rule may ask of the nodes of a round, by messages: the `Learner` of a federation too."""

    classes: int
    nodes: Sequence[int]
    layout: Layout
    grid: Any
    keys: tuple[str, str]
    config: Any
    timeout: float

    def _ask(self, kind: str, params: torch.Tensor, rows: Iterable[int], config: Any) -> dict[int, Any]:
        """Contents of replies without error, by row."""
        content = RecordDict({self.keys[0]: self.layout.record(params), self.keys[1]: config})
        row_of = {self.nodes[row]: row for row in rows}
        sent = [Message(content=content, message_type=kind, dst_node_id=node) for node in row_of]
        replies = self.grid.send_and_receive(sent, timeout=self.timeout) if sent else []
        return {
            row_of[reply.metadata.src_node_id]: reply.content
            for reply in replies
            if not reply.has_error() and reply.metadata.src_node_id in row_of
        }

    def train(self, params: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Local training from other parameters. A node that fails, or answers what cannot be used, has a zero row."""
        out = torch.zeros(len(self.nodes), len(params))
        found = self._ask(MessageType.TRAIN, params, torch.nonzero(chosen)[:, 0].tolist(), self.config)
        for row, content in found.items():
            local = self.layout.flat(_only(content.array_records) or {})
            if local is not None and local.isfinite().all():
                out[row] = local - params.cpu()
        return out.to(params)

    def _metrics(self, action: str, params: torch.Tensor, label: int) -> dict[int, Any]:
        config = ConfigRecord({"label": int(label)})
        found = self._ask(f"{MessageType.QUERY}.{action}", params, range(len(self.nodes)), config)
        answers = {row: _only(content.metric_records) for row, content in found.items()}
        wanted = {"mean", "count"} if action == "represent" else {"right", "count"}
        answers = {row: a for row, a in answers.items() if a is not None and wanted <= set(a)}
        if not answers:
            raise CapabilityError(
                f"a rule needs clients that answer '{action}': register @app.query(\"{action}\") in the client app, "
                f"returning one MetricRecord with {_ASKED[action]} for the config's label"
            )
        return answers

    def represent(self, params: torch.Tensor, label: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean representations (K, D) and counts (K,); NaN and 0 where a node says none, or another D than most.

        Raises:
            CapabilityError: no client answers.
        """
        answers = self._metrics("represent", params, label)
        means = {row: np.atleast_1d(np.asarray(a["mean"], np.float32)) for row, a in answers.items()}
        usual = Counter(len(m) for m in means.values() if len(m)).most_common(1)
        size = usual[0][0] if usual else 0
        out, counts = (
            torch.full((len(self.nodes), size), torch.nan),
            torch.zeros(len(self.nodes), dtype=torch.int64),
        )
        for row, mean in means.items():
            count = _count(answers[row]["count"])
            if len(mean) == size and np.isfinite(mean).all() and count > 0:
                out[row], counts[row] = torch.from_numpy(mean), count
        return out, counts

    def accuracy(self, params: torch.Tensor, label: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Right answers and samples of the label, (K,) each; 0 of 0 where a node says none or more than it can be.

        Raises:
            CapabilityError: no client answers.
        """
        right, counts = (torch.zeros(len(self.nodes), dtype=torch.int64) for _ in range(2))
        for row, answer in self._metrics("accuracy", params, label).items():
            hits, count = _count(answer["right"]), _count(answer["count"])
            if 0 <= hits <= count:
                right[row], counts[row] = hits, count
        return right, counts


class RuledFedAvg(FedAvg):  # type: ignore[misc]  # Flower asks for a subclass; flwr is typed only where installed
    """FedAvg, aggregated by rules.

    rows: what became of each client in each round: round (from 0), client (node id), weight (its share), score,
    rejected. last: the last round as the rules left it.
    """

    def __init__(
        self, rules: Sequence[Any], setting: Any, *, momentum: float, weighted: bool, seed: int,
        timeout: float, **fedavg: Any,
    ) -> None:  # fmt: skip
        super().__init__(**fedavg)
        self.setting, self.momentum, self.weighted, self.timeout = setting, momentum, weighted, timeout
        self.rules = _nouns().Rules(tuple(make(setting) for make in rules))
        self.generator = SeedPath(seed, ("flower", "server")).torch()
        self.velocity: torch.Tensor | None = None
        self.layout: Layout | None = None
        self.rows: list[dict[str, Any]] = []
        self.last: Any = None
        self._numbers: dict[int, int] = {}
        self._sent: tuple[Any, Any, Any] = (None, None, None)

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        """As FedAvg; what was sent is kept, since rules work on differences from it."""
        if self.layout is None:
            self.layout = Layout.of(arrays)
        messages = super().configure_train(server_round, arrays, config, grid)
        self._sent = (arrays, config, grid)
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
        """The next model by the rules, and a `MetricRecord` of how many replies were kept, left out and rejected.

        Clients' own training metrics are claims that no rule checks, and are not averaged.
        """
        assert self.layout is not None, "configure_train comes first"
        valid = sorted((r for r in replies if not r.has_error()), key=lambda r: int(r.metadata.src_node_id))
        if not valid:
            return None, None
        made, rejected = self._round(server_round - 1, valid)
        left = self.rules(made)
        self.last = left
        step = _nouns().aggregated(left)
        self.velocity = step if self.velocity is None else self.momentum * self.velocity + step
        self._log(left, valid, rejected)
        kept = int((left.weights > 0).sum())
        counts = {
            "kept": kept,
            "left-out": len(valid) - kept - int(rejected.sum()),
            "rejected": int(rejected.sum()),
        }
        params = made.params + self.setting.server_lr * self.velocity
        return self.layout.record(params), MetricRecord(counts)

    def _round(self, index: int, replies: Sequence[Any]) -> tuple[Any, torch.Tensor]:
        """The round as the rules get it, and which replies were rejected (K,)."""
        assert self.layout is not None
        arrays, config, grid = self._sent
        params = self.layout.flat(arrays)
        assert params is not None
        nodes = [reply.metadata.src_node_id for reply in replies]
        updates, weights = torch.zeros(len(nodes), len(params)), torch.zeros(len(nodes))
        for row, reply in enumerate(replies):
            local = self.layout.flat(_only(reply.content.array_records) or {})
            weight = self._weight(reply.content)
            # A difference of finite values can still overflow.
            if local is not None and weight > 0 and (local - params).isfinite().all():
                updates[row], weights[row] = local - params, weight
        # Node ids are unsigned and 64 bits wide: numbers in order of appearance take their place.
        numbers = [self._numbers.setdefault(node, len(self._numbers)) for node in nodes]
        keys = (self.arrayrecord_key, self.configrecord_key)
        learner = NodeLearner(self.setting.classes, nodes, self.layout, grid, keys, config, self.timeout)
        made = _nouns().Round(
            index=index, params=params, clients=np.array(numbers, np.int64), updates=updates, weights=weights,
            learner=learner, generator=self.generator,
        )  # fmt: skip
        return made, weights == 0

    def _weight(self, content: Any) -> float:
        """1, or the number of examples that the client claims; 0 where it claims none that is usable."""
        if not self.weighted:
            return 1.0
        claimed: Any = (_only(content.metric_records) or {}).get(self.weighted_by_key)
        return float(claimed) if isinstance(claimed, int | float) and 0 < claimed < float("inf") else 0.0

    def _log(self, left: Any, replies: Sequence[Any], rejected: torch.Tensor) -> None:
        total = float(left.weights.sum()) or 1.0
        scores = [float("nan")] * len(replies) if left.scores is None else left.scores.tolist()
        for row, reply in enumerate(replies):
            self.rows.append({
                "round": left.index, "client": reply.metadata.src_node_id, "weight": float(left.weights[row]) / total,
                "score": scores[row], "rejected": bool(rejected[row]),
            })  # fmt: skip

    def overrides(self) -> dict[int, Any]:
        """`ArrayRecord`s by label: where the model says that label, this model answers instead (`shadow`)."""
        if self.layout is None:
            return {}
        return {label: self.layout.record(params) for label, params in self.rules.overrides().items()}
