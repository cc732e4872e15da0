"""Shared by defences."""
