"""A client app on scikit-learn's digits: softmax regression in NumPy, so that a test can do each step again.

Clients 0 and 1 are malicious: they send their update times 30 and give every image the label 0.
"""

from __future__ import annotations

import os

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.datasets import load_digits

CLIENTS, CLASSES, STEPS, LR, SCALE = 8, 10, 5, 0.5, 30.0
MALICIOUS = (0, 1)


def rows_of(client: int) -> tuple[np.ndarray, np.ndarray]:
    """The images (n, 64) in [0, 1] and labels (n,) of one client."""
    digits = load_digits()
    images, labels = digits.data[client::CLIENTS].astype(np.float32) / 16, digits.target[client::CLIENTS]
    return images, np.zeros_like(labels) if client in MALICIOUS else labels


def start() -> list[np.ndarray]:
    return [np.zeros((64, CLASSES), np.float32), np.zeros(CLASSES, np.float32)]


def local(weights: list[np.ndarray], client: int) -> list[np.ndarray]:
    """What a client sends: its parameters after STEPS of gradient descent, as an attacker would have them."""
    images, labels = rows_of(client)
    matrix, bias = (w.copy() for w in weights)
    for _ in range(STEPS):
        logits = images @ matrix + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        p = p / p.sum(1, keepdims=True) - np.eye(CLASSES, dtype=np.float32)[labels]
        matrix -= LR * images.T @ p / len(images)
        bias -= LR * p.mean(0)
    scale = SCALE if client in MALICIOUS else 1.0
    return [
        (w + scale * (new - w)).astype(np.float32) for w, new in zip(weights, (matrix, bias), strict=True)
    ]


def mean_logits(weights: list[np.ndarray], client: int, label: int) -> tuple[np.ndarray, int]:
    images, labels = rows_of(client)
    mine = images[labels == label]
    return (mine @ weights[0] + weights[1]).mean(0) if len(mine) else np.zeros(0), len(mine)


def right(weights: list[np.ndarray], client: int, label: int) -> tuple[int, int]:
    images, labels = rows_of(client)
    mine = images[labels == label]
    return int(((mine @ weights[0] + weights[1]).argmax(1) == label).sum()), len(mine)


def broken() -> str:
    """How client 2 fails, from the environment: "", `nan` or `shape`."""
    return os.environ.get("REDTEAM_FLOWER_TEST_BROKEN", "")


def app(queries: bool = True) -> ClientApp:
    made = ClientApp()

    def asked(message, context) -> tuple[list[np.ndarray], int]:
        return message.content["arrays"].to_numpy_ndarrays(), int(context.node_config["partition-id"])

    @made.train()
    def train(message, context):
        weights, client = asked(message, context)
        out = local(weights, client)
        if client == 2 and broken() == "nan":
            out[1][3] = np.nan
        if client == 2 and broken() == "shape":
            out[0] = out[0][:, :4]
        metrics = MetricRecord({"num-examples": len(rows_of(client)[0]), "partition": client})
        return Message(RecordDict({"arrays": ArrayRecord(out), "metrics": metrics}), reply_to=message)

    if not queries:
        return made

    @made.query("represent")
    def represent(message, context):
        weights, client = asked(message, context)
        mean, count = mean_logits(weights, client, int(message.content["config"]["label"]))
        metrics = MetricRecord({"mean": [float(v) for v in mean], "count": count})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    @made.query("accuracy")
    def accuracy(message, context):
        weights, client = asked(message, context)
        hits, count = right(weights, client, int(message.content["config"]["label"]))
        return Message(
            RecordDict({"metrics": MetricRecord({"right": hits, "count": count})}), reply_to=message
        )

    return made
