"""What models cost: a ledger of requests, queries, tokens and money that no run can outspend.

A request is reserved before it is sent and settled when its answer is in. A reservation that is never
settled, because the process was killed in between, counts as spent for ever: the endpoint may have
answered, and charged. Several processes and threads may share one file.
"""

from __future__ import annotations

import math
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from redteam.core.errors import ConfigError, LimitReachedError, StorageError, nearest
from redteam.core.files import load_toml

# Money is added in whole pico-dollars: sums of floats would drift past a cap.
PICO = 10**12
WAIT_S = 60.0  # for another process that writes

_SCHEMA = """
CREATE TABLE IF NOT EXISTS totals (
    role TEXT NOT NULL, model TEXT NOT NULL, requests INTEGER NOT NULL, queries INTEGER NOT NULL,
    tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, pico_usd INTEGER NOT NULL,
    failed INTEGER NOT NULL, unpriced INTEGER NOT NULL, PRIMARY KEY (role, model)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS open (
    ticket INTEGER PRIMARY KEY AUTOINCREMENT, role TEXT NOT NULL, model TEXT NOT NULL,
    tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, pico_usd INTEGER NOT NULL, free INTEGER NOT NULL);
"""
_COLUMNS = ("requests", "queries", "tokens_in", "tokens_out", "pico_usd", "failed", "unpriced")
_SUMS = ", ".join(f"coalesce(sum({name}), 0)" for name in _COLUMNS)
_ADD = (
    f"INSERT INTO totals (role, model, {', '.join(_COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
    f"ON CONFLICT (role, model) DO UPDATE SET {', '.join(f'{c} = {c} + excluded.{c}' for c in _COLUMNS)}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What was spent. requests: HTTP requests, or batches of a local model; failed: those without an answer.

    queries: prompts they held. usd: what models with a known price cost. unpriced: requests to remote
    models without a price, whose cost is in no sum.
    """

    requests: int = 0
    queries: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0
    failed: int = 0
    unpriced: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """The most that may be spent by all roles together; None: no cap. tokens: in and out together."""

    requests: float | None = None
    queries: float | None = None
    tokens: float | None = None
    usd: float | None = None

    def __post_init__(self) -> None:
        for name in ("requests", "queries", "tokens", "usd"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"cap on {name}: expected a number of at least 0, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars for a million tokens."""

    input_per_million: float
    output_per_million: float

    def __post_init__(self) -> None:
        for name in ("input_per_million", "output_per_million"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise ConfigError(f"{name}: expected US dollars, at least 0, got {value!r}")

    def pico(self, tokens_in: int, tokens_out: int) -> int:
        """Cost in pico-dollars, rounded up: a price per million tokens in micro-dollars is per token in pico."""
        return math.ceil(
            tokens_in * round(self.input_per_million * 1e6, 3)
            + tokens_out * round(self.output_per_million * 1e6, 3)
        )


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices by the name of the model."""

    models: Mapping[str, Price] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Prices:
        """Prices from a TOML file of tables `[models."name"]`, each with both prices.

        Raises:
            ConfigError: no such file, not TOML, an unknown or missing key, or a value that is no price.
        """
        content = load_toml(path)
        for key in content:
            if key != "models":
                raise ConfigError(f"{path}: unknown table '{key}'; expected [models.\"name\"]")
        keys = ("input_per_million", "output_per_million")
        models: dict[str, Price] = {}
        if not isinstance(tables := content.get("models", {}), dict):
            raise ConfigError(f'{path}: expected tables [models."name"], got {tables!r}')
        for name, table in tables.items():
            where = f'{path}: [models."{name}"]'
            if not isinstance(table, dict):
                raise ConfigError(f"{where}: expected a table with {' and '.join(keys)}, got {table!r}")
            for key in table:
                if key not in keys:
                    raise ConfigError(f"{where}: unknown key '{key}'. {nearest(key, keys)}")
            for key in keys:
                if key not in table:
                    raise ConfigError(f"{where}: expected {key}, in US dollars for a million tokens")
            try:
                models[name] = Price(**table)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None
        return cls(models)


class Database:
    """An SQLite file, or memory when `path` is None, that threads and processes share.

    what: what the file holds, for error messages; remedy: what to do about one that is damaged.
    """

    def __init__(self, path: Path | None, schema: str, *, what: str, remedy: str) -> None:
        self.path, self._schema, self._what, self._remedy = path, schema, what, remedy
        self._lock = threading.Lock()
        self._open: tuple[int, sqlite3.Connection] | None = None

    @contextmanager
    def transaction(self, *, durable: bool = False, write: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction, undone if its body raises. durable: on the disk before it returns.

        Without it a killed process loses nothing either: what is written is with the operating system,
        and only a power cut can undo it.

        Raises:
            StorageError: the file cannot be read or written, or is damaged.
        """
        with self._lock:
            try:
                db = self._connection()
                db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                try:
                    yield db
                    db.execute("COMMIT")
                finally:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
            except (sqlite3.Error, OSError) as error:
                raise StorageError(
                    f"{self._what} {self.path or 'in memory'} cannot be used: {error}. {self._remedy}"
                ) from error

    def close(self) -> None:
        """Close the file; the next transaction opens it again. What is in memory is forgotten."""
        with self._lock:
            if self._open is not None and self._open[0] == os.getpid():
                self._open[1].close()
            self._open = None

    def _connection(self) -> sqlite3.Connection:
        if self._open is not None and self._open[0] == os.getpid():  # no connection survives a fork
            return self._open[1]
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(
            self.path or ":memory:", timeout=WAIT_S, isolation_level=None, check_same_thread=False
        )
        deadline = time.monotonic() + WAIT_S
        while True:
            try:  # SQLite does not wait by itself when two processes make a new file
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(self._schema)
                break
            except sqlite3.Error as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    db.close()
                    raise
                time.sleep(0.01)
        self._open = (os.getpid(), db)
        return db


class Ledger:
    """A durable account of what was spent, in an SQLite file, or in memory when `path` is None.

    The totals never pass the caps as long as each reservation is an upper bound of what is settled for
    it. Where an endpoint reports more than was reserved, the ledger takes down the truth, and the next
    reservation is refused.
    """

    def __init__(
        self, path: Path | None = None, caps: Caps | None = None, prices: Prices | None = None
    ) -> None:
        self.path, self.caps, self.prices = path, caps or Caps(), prices or Prices()
        self._db = Database(
            path,
            _SCHEMA,
            what="the ledger",
            remedy="It says what was spent: make it writable, or move it away to begin a new account",
        )

    def reserve(
        self, *, model: str, role: str, queries: int, tokens_in: int, tokens_out: int, free: bool = False
    ) -> int:
        """Book a request at the most it can cost, durably, before it is sent; the ticket to settle it with.

        free: a model that costs no money whatever its name.

        Raises:
            LimitReachedError: a cap would be passed; nothing is booked and nothing may be sent.
            ConfigError: dollars are capped and the model has no price.
            StorageError: the ledger cannot be written.
        """
        self._check_amounts(queries, tokens_in, tokens_out)
        pico, unpriced = self._cost(model, tokens_in, tokens_out, free)
        with self._db.transaction(durable=True) as db:
            self._check_caps(db, model, role, queries, tokens_in + tokens_out, pico)
            self._add(db, role, model, 1, queries, tokens_in, tokens_out, pico, 0, unpriced)
            cursor = db.execute(
                "INSERT INTO open (role, model, tokens_in, tokens_out, pico_usd, free) VALUES (?, ?, ?, ?, ?, ?)",
                (role, model, tokens_in, tokens_out, pico, int(free)),
            )
            ticket = cursor.lastrowid
        assert ticket is not None
        return ticket

    def settle(self, ticket: int, *, tokens_in: int, tokens_out: int, failed: bool = False) -> None:
        """Replace a reservation by what the request took. failed: it got no answer, and yet counts.

        Raises:
            ValueError: no such open reservation; it may have been settled before.
            StorageError: the ledger cannot be written.
        """
        self._check_amounts(0, tokens_in, tokens_out)
        with self._db.transaction() as db:
            row = db.execute(
                "DELETE FROM open WHERE ticket = ? RETURNING role, model, tokens_in, tokens_out, pico_usd, free",
                (ticket,),
            ).fetchall()
            if not row:
                raise ValueError(f"expected an open reservation, got {ticket}, which is settled or unknown")
            role, model, booked_in, booked_out, booked_pico, free = row[0]
            pico, _ = self._cost(model, tokens_in, tokens_out, bool(free))
            more_in, more_out = tokens_in - booked_in, tokens_out - booked_out
            self._add(db, role, model, 0, 0, more_in, more_out, pico - booked_pico, int(failed), 0)

    def count(self, *, model: str, role: str, queries: int, tokens_in: int, tokens_out: int) -> None:
        """Reserve and settle at once, for a batch of a local model, which costs no money.

        Raises:
            LimitReachedError: a cap would be passed; nothing is booked and the batch may not run.
            StorageError: the ledger cannot be written.
        """
        self._check_amounts(queries, tokens_in, tokens_out)
        with self._db.transaction() as db:
            self._check_caps(db, model, role, queries, tokens_in + tokens_out, 0)
            self._add(db, role, model, 1, queries, tokens_in, tokens_out, 0, 0, 0)

    def spent(self, role: str | None = None) -> Spent:
        """What one role spent, or all together, open reservations included."""
        with self._db.transaction(write=False) as db:
            values = dict(zip(_COLUMNS, self._totals(db, role), strict=True))
        return Spent(usd=values.pop("pico_usd") / PICO, **values)

    def close(self) -> None:
        """Close the file; the next call opens it again. A ledger in memory forgets everything."""
        self._db.close()

    @staticmethod
    def _check_amounts(*amounts: int) -> None:
        if min(amounts) < 0:
            raise ValueError(f"expected amounts of at least 0, got {amounts}")

    def _cost(self, model: str, tokens_in: int, tokens_out: int, free: bool) -> tuple[int, int]:
        """Pico-dollars, and 1 if the price is not known."""
        if free:
            return 0, 0
        price = self.prices.models.get(model)
        if price is not None:
            return price.pico(tokens_in, tokens_out), 0
        if self.caps.usd is not None:
            raise ConfigError(
                f"a cap in US dollars needs the price of '{model}'; add to the price file a table "
                f'[models."{model}"] with input_per_million and output_per_million'
            )
        return 0, 1

    def _check_caps(
        self, db: sqlite3.Connection, model: str, role: str, queries: int, tokens: int, pico: int
    ) -> None:
        if self.caps == Caps():
            return
        requests, asked, t_in, t_out, usd, _, _ = self._totals(db, None)
        added = {"requests": 1, "queries": queries, "tokens": tokens, "usd": pico}
        spent = {"requests": requests, "queries": asked, "tokens": t_in + t_out, "usd": usd}
        for name, more in added.items():
            cap, unit = getattr(self.caps, name), PICO if name == "usd" else 1
            if cap is not None and spent[name] + more > math.floor(round(cap * unit, 6)):
                raise LimitReachedError(
                    f"stopped before a request to '{model}' ({role}): the cap on {name} is {cap:g}, "
                    f"{spent[name] / unit:g} are spent, and this would add up to {more / unit:g}"
                )

    @staticmethod
    def _totals(db: sqlite3.Connection, role: str | None) -> tuple[int, ...]:
        where, values = ("", ()) if role is None else (" WHERE role = ?", (role,))
        row: tuple[int, ...] = db.execute(f"SELECT {_SUMS} FROM totals{where}", values).fetchone()
        return row

    @staticmethod
    def _add(db: sqlite3.Connection, role: str, model: str, *amounts: int) -> None:
        db.execute(_ADD, (role, model, *amounts))
