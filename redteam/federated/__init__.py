"""Federated training in simulation: thousands of clients, some of them malicious, and a server with rules."""

from redteam.federated.config import FederationConfig
from redteam.federated.target import SPEC, FederatedTarget, configure, make

__all__ = ["SPEC", "FederatedTarget", "FederationConfig", "configure", "make"]
