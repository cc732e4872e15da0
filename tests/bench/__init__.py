"""Speed, as ratios measured side by side on one machine. Nothing here asserts a time."""
