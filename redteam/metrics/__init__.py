"""Metrics, each defined once, a module for each kind of artifact. Definitions are in docs/metrics.md."""
