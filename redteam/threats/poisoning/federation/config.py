"""The knobs of a federation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from redteam.core.config import check_ranges, knob
from redteam.core.errors import ConfigError, UnknownNameError
from redteam.learn import models


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationConfig:
    """Who holds what, how clients train, how the server steps, and how the data change over the rounds."""

    model: str = knob("mlp", "architecture without batch normalisation: mlp or convnet, for instance")
    clients: int = knob(2000, "clients in all; they share images where clients x images is more than there are",
                        low=1)  # fmt: skip
    per_round: int = knob(50, "clients sampled for a round", low=1)
    images: int = knob(60, "images that each client holds", low=1)
    rounds: int = knob(300, "rounds of training", low=1)
    local_epochs: int = knob(2, "passes of a sampled client over its images", low=1)
    batch_size: int = knob(20, "images of a local step; the last one of a pass may be shorter", low=1)
    lr: float = knob(0.1, "learning rate of the clients' plain SGD", above=0)
    server_lr: float = knob(1.0, "length of the server's step along the aggregated update", above=0)
    server_momentum: float = knob(0.0, "momentum of the server", low=0, high=1)
    split: Literal["homogeneous", "dirichlet"] = knob(
        "homogeneous", "homogeneous: every client holds all classes alike; dirichlet: a mix of its own"
    )
    concentration: float = knob(0.5, "of the Dirichlet mixes: lower is more uneven", above=0)
    drift: Literal["static", "rotation", "labels"] = knob(
        "static", "rotation: images turn further at each step; labels: clients' mixes are drawn anew"
    )
    drift_every: int = knob(100, "rounds between two steps of the drift", low=1)
    drift_angle: float = knob(30.0, "degrees of one step of rotation")
    snapshot_every: int = knob(10, "rounds between two snapshots; the last round always leaves one", low=1)
    victims: int = knob(1, "federations trained from different seeds", low=1)
    together: bool = knob(True, "train the clients of a round at once; false: one by one, same results")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.model not in models.NAMES:
            raise UnknownNameError("model", self.model, models.NAMES)
        if self.per_round > self.clients:
            raise ConfigError(
                f"per_round: fewer clients than sampled: expected at most the {self.clients} clients, "
                f"got {self.per_round}; lower per_round or raise clients"
            )
        if self.drift == "labels" and self.split != "dirichlet":
            raise ConfigError(
                "drift: labels draws each client's class mix anew, and under split=homogeneous all mixes are the "
                "same; expected split=dirichlet with it"
            )
