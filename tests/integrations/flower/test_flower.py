"""The Flower adapter, in real Flower simulations and against messages made by hand."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("flwr")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from redteam.core.errors import CapabilityError, ConfigError, ThreatMismatchError, UnknownNameError
from redteam.integrations.flower import make_rules, strategy
from redteam.integrations.flower.arrays import Layout
from redteam.threats.poisoning.federation.nouns import Rules, Setting, aggregated
from tests.defenses.poisoning.rounds import round_of
from tests.integrations.flower import app as client

ROUNDS = 2
NUMBERS = {
    "clients": client.CLIENTS,
    "classes": client.CLASSES,
    "per_round": client.CLIENTS,
    "rounds": ROUNDS,
}
KRUM = ("multi-krum", {"poisons": 2})


def simulate(server: FedAvg, made: ClientApp, rounds: int = ROUNDS) -> tuple[np.ndarray, object]:
    """Final parameters, flat, and Flower's result, of a simulation with ray."""
    pytest.importorskip("ray")
    results = []
    serving = ServerApp()

    @serving.main()
    def main(grid, context):
        results.append(
            server.start(
                grid=grid, initial_arrays=ArrayRecord(client.start()), num_rounds=rounds, timeout=120
            )
        )

    run_simulation(
        serving, made, client.CLIENTS,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}},
    )  # fmt: skip
    return flat(results[0].arrays.to_numpy_ndarrays()), results[0]


def flat(weights) -> np.ndarray:
    return np.concatenate([np.ravel(w) for w in weights])


def by_hand(
    rules, rounds: int = ROUNDS, lr: float = 1.0, momentum: float = 0.0, without: tuple[int, ...] = ()
):
    """The same federation without Flower: parameters after `rounds`, and the last round."""
    shapes = [w.shape for w in client.start()]
    params, velocity = flat(client.start()), 0.0
    for index in range(rounds):
        split = np.split(params, [shapes[0][0] * shapes[0][1]])
        weights = [part.reshape(shape) for part, shape in zip(split, shapes, strict=True)]
        updates = np.stack([flat(client.local(weights, c)) - params for c in range(client.CLIENTS)])
        updates[list(without)] = 0
        given = [float(c not in without) for c in range(client.CLIENTS)]
        out = rules(round_of(updates, index=index, params=torch.from_numpy(params), weights=given))
        velocity = momentum * velocity + aggregated(out).numpy()
        params = params + np.float32(lr) * velocity
    return params, out


def made_rules(*named) -> Rules:
    setting = Setting(classes=10, per_round=client.CLIENTS, rounds=ROUNDS, server_lr=1.0)
    return Rules(
        tuple(m(setting) for m in make_rules(named, clients=client.CLIENTS, per_round=client.CLIENTS))
    )


def accuracy_of(params: np.ndarray) -> float:
    """Over the honest clients' images."""
    weights = [params[:640].reshape(64, 10), params[640:]]
    counts = [client.right(weights, c, label) for c in range(2, client.CLIENTS) for label in range(10)]
    return sum(hits for hits, _ in counts) / sum(count for _, count in counts)


# ---------------------------------------------------------------- real simulations


def test_simulation_with_krum_is_the_rules_own_outcome():
    server = strategy([KRUM], **NUMBERS)
    params, result = simulate(server, client.app())
    expected, last = by_hand(made_rules(KRUM))
    assert params == pytest.approx(expected, abs=1e-5)
    assert isinstance(server, FedAvg) and result.train_metrics_clientapp[ROUNDS]["left-out"] == 2
    shares = sorted(row["weight"] for row in server.rows if row["round"] == ROUNDS - 1)
    assert shares == pytest.approx([0, 0] + [1 / 6] * 6)
    assert sorted(server.last.scores.tolist()) == pytest.approx(sorted(last.scores.tolist()), rel=1e-3)
    assert accuracy_of(params) > 0.6


def test_simulation_with_clipping_momentum_and_a_client_that_sends_nan(monkeypatch):
    monkeypatch.setenv("REDTEAM_FLOWER_TEST_BROKEN", "nan")
    server = strategy(["norm-clip"], server_lr=0.5, server_momentum=0.5, **NUMBERS)
    params, result = simulate(server, client.app())
    expected, _ = by_hand(made_rules("norm-clip"), lr=0.5, momentum=0.5, without=(2,))
    assert params == pytest.approx(expected, abs=1e-5)
    assert result.train_metrics_clientapp[1] == {"kept": 7, "left-out": 0, "rejected": 1}
    assert sum(row["rejected"] for row in server.rows) == ROUNDS
    assert np.abs(params - by_hand(Rules(), lr=0.5, momentum=0.5, without=(2,))[0]).max() > 0.1, "it clips"


class Asking:
    """A rule that asks clients all it may, and moves the model by what those trained whom it chose."""

    def __call__(self, round):
        params = round.params + 0.01
        self.means, self.counts = round.learner.represent(params, 3)
        self.hits, self.samples = round.learner.accuracy(params, 3)
        chosen = self.counts > 0
        self.trained = round.learner.train(params, chosen)
        return replace(round, mean=self.trained[chosen].mean(0))


def test_simulation_where_a_rule_asks_the_clients():
    rule = Asking()
    server = strategy([lambda setting: rule], **{**NUMBERS, "rounds": 1})
    params, _ = simulate(server, client.app(), rounds=1)
    weights = [w + np.float32(0.01) for w in client.start()]
    honest = range(2, client.CLIENTS)
    moved = np.stack([flat(client.local(weights, c)) - flat(weights) for c in honest])
    assert params == pytest.approx(moved.mean(0), abs=1e-5)
    # The malicious say that they hold no 3: no mean, no count, and no row of training.
    assert int((rule.counts == 0).sum()) == 2 and torch.isnan(rule.means[rule.counts == 0]).all()
    assert (rule.trained[rule.counts == 0] == 0).all()
    expected = sorted(client.mean_logits(weights, c, 3)[0].tolist() for c in honest)
    assert np.array(sorted(rule.means[rule.counts > 0].tolist())) == pytest.approx(
        np.array(expected), abs=1e-4
    )
    assert sorted(rule.samples.tolist()) == sorted([0, 0] + [client.right(weights, c, 3)[1] for c in honest])


# ---------------------------------------------------------------- messages made by hand


class Nodes:
    """A grid of nodes that answer by a function of (node, message)."""

    def __init__(self, answer, nodes=(11, 2**63 + 5, 13)) -> None:
        self.answer, self.nodes = answer, nodes

    def get_node_ids(self):
        return list(self.nodes)

    def send_and_receive(self, messages, *, timeout=None):
        out = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(message.metadata.dst_node_id)
            reply = self.answer(message.metadata.dst_node_id, message)
            if reply is not None:
                out.append(Message(reply, reply_to=message))
        return out


def one_round(server, answer, index: int = 1, arrays=None):
    arrays = arrays or ArrayRecord([np.zeros(3, np.float32)])
    grid = Nodes(answer)
    from flwr.app import ConfigRecord

    messages = list(server.configure_train(index, arrays, ConfigRecord(), grid))
    return server.aggregate_train(index, grid.send_and_receive(messages))


def reply_with(*values, **metrics) -> RecordDict:
    return RecordDict(
        {"arrays": ArrayRecord([np.array(values, np.float32)]), "metrics": MetricRecord(metrics)}
    )


THREE = {"clients": 3, "classes": 10, "per_round": 3, "rounds": 1}


@pytest.mark.parametrize(
    "bad", [reply_with(1, 2), reply_with(1, np.inf, 2), RecordDict({}), RecordDict({"arrays": ArrayRecord()})]
)
def test_a_reply_that_does_not_fit_is_rejected(bad):
    server = strategy([], **THREE)
    arrays, counts = one_round(server, lambda node, _: bad if node == 11 else reply_with(1, 2, 3))
    assert arrays.to_numpy_ndarrays()[0].tolist() == [1, 2, 3]
    assert counts == {"kept": 2, "left-out": 0, "rejected": 1}
    assert [row["rejected"] for row in server.rows] == [True, False, False]


def test_errors_are_no_replies_and_all_of_them_leave_the_model():
    failed = Error(code=1, reason="out of memory")
    server = strategy([], **THREE)
    arrays, counts = one_round(server, lambda node, _: failed if node == 11 else reply_with(2, 2, 2))
    assert arrays.to_numpy_ndarrays()[0].tolist() == [2, 2, 2] and counts["kept"] == 2
    assert one_round(server, lambda node, _: failed) == (None, None)
    nan = reply_with(np.nan, 0, 0)
    arrays, counts = one_round(strategy(["norm-clip"], **THREE), lambda node, _: nan)
    assert arrays.to_numpy_ndarrays()[0].tolist() == [0, 0, 0] and counts["rejected"] == 3


def test_claimed_numbers_of_examples_count_only_if_asked_for():
    def answer(node, _):
        return reply_with(
            *([1.0] * 3 if node == 11 else [0.0] * 3), **{"num-examples": 98 if node == 11 else 1}
        )

    assert one_round(strategy([], **THREE), answer)[0].to_numpy_ndarrays()[0] == pytest.approx(1 / 3)
    weighted = strategy([], weighted=True, **THREE)
    assert one_round(weighted, answer)[0].to_numpy_ndarrays()[0] == pytest.approx(0.98)
    _, counts = one_round(weighted, lambda node, _: reply_with(1, 1, 1))
    assert counts["rejected"] == 3


def test_memory_goes_with_the_node_not_the_row():
    server = strategy(["foolsgold"], **THREE)
    one_round(server, lambda node, _: reply_with(node % 5, 1, 0))
    one_round(server, lambda node, _: None if node == 11 else reply_with(node % 5, 1, 0), index=2)
    assert server.last.clients.tolist() == [1, 2] and set(server.rules.rules[0].sums) == {0, 1, 2}


def test_types_names_and_fixed_arrays_survive():
    state = {
        "w": torch.ones(2, 2, dtype=torch.float64),
        "steps": torch.tensor(7),
        "half": torch.ones(3).half(),
    }
    record = ArrayRecord(state)
    layout = Layout.of(record)
    params = layout.flat(record)
    assert params.shape == (7,) and params.dtype == torch.float32
    back = layout.record(params + 1).to_torch_state_dict()
    assert {k: v.dtype for k, v in back.items()} == {k: v.dtype for k, v in state.items()}
    assert (back["w"] == 2).all() and back["steps"] == 7 and (back["half"] == 2).all()
    with pytest.raises(ConfigError, match="floating-point arrays to train"):
        Layout.of(ArrayRecord([np.arange(3)]))


@pytest.mark.parametrize("action", ["represent", "accuracy"])
def test_clients_that_answer_no_question_are_named(action):
    def rule(setting):
        return lambda round: getattr(round.learner, action)(round.params, 3)

    failed = Error(code=1, reason="No query function registered")
    with pytest.raises(CapabilityError, match=f'register @app.query."{action}"'):
        one_round(
            strategy([rule], **THREE),
            lambda node, message: reply_with(1, 2, 3) if message.metadata.message_type == "train" else failed,
        )


def test_answers_that_make_no_sense_count_as_none():
    lies = {
        11: {"mean": [1.0, np.nan], "count": 3, "right": 9},
        13: {"mean": [1.0, 2.0], "count": 2, "right": 1},
    }
    lies[2**63 + 5] = {"mean": [1.0] * 9, "count": [1, 2], "right": 1.5}
    seen = {}

    def rule(setting):
        def asks(round):
            seen["means"], seen["counts"] = round.learner.represent(round.params, 3)
            seen["right"], seen["samples"] = round.learner.accuracy(round.params, 3)
            return round

        return asks

    def answer(node, message):
        metrics = {} if message.metadata.message_type == "train" else lies[node]
        return reply_with(1, 2, 3, **metrics)

    one_round(strategy([rule], **THREE), answer)
    assert seen["counts"].tolist() == [0, 2, 0] and seen["means"][1].tolist() == [1, 2]
    assert torch.isnan(seen["means"][[0, 2]]).all()
    assert (seen["right"].tolist(), seen["samples"].tolist()) == ([0, 1, 0], [0, 2, 0])


def test_bad_input():
    with pytest.raises(UnknownNameError, match="multi-krum"):
        strategy(["multi-crum"], **THREE)
    with pytest.raises(ThreatMismatchError, match="smoothing"):
        strategy(["smoothing"], **THREE)
    with pytest.raises(ConfigError, match="norm-clip: unknown option"):
        strategy([("norm-clip", {"bound": 1})], **THREE)
    with pytest.raises(ConfigError, match="poisons: expected a number"):
        strategy(["multi-krum"], **THREE)
    with pytest.raises(ConfigError, match="per_round: expected 1 to 3"):
        strategy([], **{**THREE, "per_round": 4})
    with pytest.raises(ConfigError, match="server_momentum"):
        strategy([], server_momentum=1.0, **THREE)
