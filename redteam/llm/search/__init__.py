"""Search by queries alone: moves of token strings, losses, the best-first search and its state."""
