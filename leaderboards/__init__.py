"""Leaderboards: pure functions of records and rules. Nothing here runs an experiment."""
