"""What a package with plug-ins of its own tests them with: `redteam.testing.contract`. Needs pytest."""

import pytest

pytest.register_assert_rewrite("redteam.testing.contract")
