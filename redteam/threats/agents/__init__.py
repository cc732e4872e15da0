"""Agents that act for a user and talk to third parties: the targets of context hijacking."""
