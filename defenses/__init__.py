"""Defences: functions from a target to a target of the same kind, one module per plug-in."""
