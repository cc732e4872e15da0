"""Results in the formats of other tools, so that they move both ways."""
