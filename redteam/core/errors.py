"""One flat tree of errors.

`InputError` and its children mean that what the user gave is wrong (exit code 2, no record).
Every other `RedteamError` means that a run failed (exit code 1, the record says why).
Messages say what was expected, what came, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RedteamError(Exception):
    """Base of every error the suite raises on purpose."""


class InputError(RedteamError):
    """The user's input is wrong: exit code 2, no traceback, no record."""


class UnknownNameError(InputError):
    """A name that nothing is registered under."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        self.what, self.name, self.known = what, name, sorted(known)
        super().__init__(f"unknown {what} '{name}'. {nearest(name, self.known)}")

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.what, self.name, self.known))


class ConfigError(InputError):
    """A configuration key or value that does not fit its schema."""


class DataError(InputError):
    """A data set that is missing, malformed, or not what its name says."""


class ThreatMismatchError(InputError):
    """An attack, a defence and a target that do not belong together."""


class ArtifactError(RedteamError):
    """An artifact that is truncated, tampered with, or of the wrong kind."""


class RecordError(RedteamError):
    """A record that does not validate, or is of a newer schema."""


class BudgetExceededError(RedteamError):
    """An artifact that changes more than its threat allows."""


class LimitReachedError(RedteamError):
    """A run that used up the time or the queries it was given."""


class CapabilityError(InputError):
    """A model that cannot do what was asked of it, or that would silently answer wrong."""


class DriftError(InputError):
    """An unfinished run that is not the one that is asked for: something that decides its result changed."""


class BackendError(RedteamError):
    """A model or endpoint that failed and will not answer: key rejected, no such model, broken answers."""


class TrainingError(RedteamError):
    """A training that cannot go on: its loss is no longer finite."""


class StorageError(RedteamError):
    """A store that cannot be written: no permission, or no space left."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the registered name closest to `name`, else all of them."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known: {', '.join(options)}." if options else "None is registered."
