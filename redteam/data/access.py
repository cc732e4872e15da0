"""Where data may be read from, and whether the network may be asked for it."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redteam.core.errors import DataError

_LOG = logging.getLogger(__name__)

_ELSEWHERE = "point --data-dir or REDTEAM_DATA at an existing copy"


def _user_cache() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("redteam"))


def cache_dir() -> Path:
    """Folder for decoded copies: `REDTEAM_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("REDTEAM_CACHE")
    return Path(chosen).expanduser() if chosen else _user_cache()


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a data set comes from, in words for the user.

    who: owner and home page. megabytes: size of the download; None where only the host knows.
    """

    who: str
    megabytes: int | None

    def describe(self) -> str:
        """`<owner>, <size>`."""
        size = f"{self.megabytes} MB" if self.megabytes else "of a size its page states"
        return f"{self.who}, {size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The data folder and what the user allowed."""

    data_dir: Path
    offline: bool
    download: bool

    @classmethod
    def resolve(cls, data_dir: str | None, *, offline: bool, download: bool) -> Access:
        """Fill in the folder: the argument, else `REDTEAM_DATA`, else the user's cache folder."""
        chosen = data_dir or os.environ.get("REDTEAM_DATA")
        folder = Path(chosen).expanduser() if chosen else _user_cache()
        return cls(data_dir=folder, offline=offline, download=download)

    def permit(self, name: str, origin: Origin, layout: str) -> None:
        """Return if `name` may be downloaded into the data folder now.

        Args:
            name: what the user asked for.
            origin: where it would come from.
            layout: what was looked for in the data folder, for the message.

        Raises:
            DataError: the user did not allow it, forbade it, or the folder cannot be written.
        """
        where = f"{self.data_dir}" if self.data_dir.is_dir() else f"{self.data_dir} (no such folder)"
        missing = f"data set '{name}' is not in {where}; looked for {layout}"
        if self.offline:
            raise DataError(
                f"{missing}. --offline forbids downloading it from {origin.describe()}: "
                f"{_ELSEWHERE}, or drop --offline and give --download"
            )
        if not self.download:
            raise DataError(
                f"{missing}. It would be downloaded from {origin.describe()}, into {self.data_dir}: "
                f"--download allows that, or {_ELSEWHERE}"
            )
        self._require_writable(name)
        _LOG.info("downloading '%s' from %s, into %s", name, origin.describe(), self.data_dir)

    def _require_writable(self, name: str) -> None:
        """Try a write before the download: permission bits do not tell of read-only mounts."""
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.data_dir):
                pass
        except OSError as error:
            raise DataError(
                f"cannot download '{name}': the data folder {self.data_dir} cannot be written "
                f"({error.strerror or error}). Give a writable one with --data-dir or REDTEAM_DATA"
            ) from error


@contextmanager
def downloading(name: str) -> Iterator[None]:
    """Turn what a failed download raises into a `DataError` (torchvision raises RuntimeError too)."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"the download of '{name}' failed: {reason}. Check the network and try again"
        ) from error
