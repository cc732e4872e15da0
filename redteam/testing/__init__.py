"""What a package with plug-ins of its own tests them with: `redteam.testing.contract`. Needs pytest."""
