"""Plug-ins from outside, importing nothing but the core."""
