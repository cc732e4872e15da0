"""Attacks and their controls: one module per plug-in, each ending in a `SPEC`."""
