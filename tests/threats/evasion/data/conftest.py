"""The folders of `tests/data` serve the data sets of this threat too."""

from tests.data.conftest import own_folders, real_data

__all__ = ["own_folders", "real_data"]
