"""Answers of remote models on disk, so that a resumed or repeated run pays for none of them twice.

A row is a key and an answer. The key is a digest of everything that decides the answer; neither it nor
the answer holds a header, a key of an account or an address.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redteam.core.hashing import canonical_json, digest_json
from redteam.core.ledger import Database

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS answers "
    "(key TEXT PRIMARY KEY, answer TEXT NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID"
)


def cache_key(identity: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    """sha256 over who is asked and what.

    identity: the model's fingerprint and where it is served. request: its kind, prompt or messages,
    template, sampling with seed and index of the sample, k, bias, target: whatever may change the answer.
    """
    return digest_json({"identity": dict(identity), "request": dict(request)})


class Cache:
    """Answers by key, in an SQLite file that threads and processes share, or in memory without one.

    Only answers belong in it: what failed on the way is asked again.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._db = Database(
            path, _SCHEMA, what="the cache of answers", remedy="Make it writable, or delete it and pay again"
        )

    def get(self, key: str) -> Any | None:
        """The answer, or None if there is none or its row is damaged.

        Raises:
            StorageError: the whole file cannot be read.
        """
        columns = "CAST(answer AS BLOB), CAST(digest AS BLOB)"  # damaged text may not decode
        with self._db.transaction(write=False) as db:
            row = db.execute(f"SELECT {columns} FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None or None in row or _digest(key, row[0]).encode() != row[1]:
            return None
        return json.loads(row[0])

    def put(self, key: str, answer: Any) -> None:
        """Keep an answer of plain JSON values; a later one of the same key takes its place.

        Raises:
            StorageError: the file cannot be written.
        """
        text = canonical_json(answer)
        with self._db.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, text, _digest(key, text.encode()))
            )

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _digest(key: str, answer: bytes) -> str:
    return hashlib.sha256(key.encode() + b"|" + answer).hexdigest()
