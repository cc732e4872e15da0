"""Benchmark suite for adversarial machine learning: attack, defend, score, record, rank."""

__version__ = "0.1.0"
