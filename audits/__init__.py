"""Audits: functions from a target to guesses about it, one module per plug-in."""
