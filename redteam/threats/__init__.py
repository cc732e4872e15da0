"""One room for each threat. `redteam.core.threat` says what a room offers."""
