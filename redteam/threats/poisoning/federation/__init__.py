"""Federated training in simulation: thousands of clients, some of them malicious, and a server with rules."""
