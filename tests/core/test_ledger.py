"""The ledger: nothing is sent that would pass a cap, nothing sent is forgotten."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from redteam.core.errors import ConfigError, LimitReachedError, StorageError
from redteam.core.ledger import Caps, Ledger, Price, Prices, Spent

ROOT = Path(__file__).parents[2]
ONE = {"model": "m", "role": "target", "queries": 1, "tokens_in": 10, "tokens_out": 5}


def test_a_request_is_booked_at_its_bound_and_settled_at_what_it_took(tmp_path):
    prices = Prices({"m": Price(input_per_million=1.5, output_per_million=2.0)})
    ledger = Ledger(tmp_path / "a" / "spend.db", prices=prices)
    ticket = ledger.reserve(**ONE)
    assert ledger.spent() == Spent(requests=1, queries=1, tokens_in=10, tokens_out=5, usd=25e-6)
    ledger.settle(ticket, tokens_in=8, tokens_out=1)
    assert ledger.spent() == Spent(requests=1, queries=1, tokens_in=8, tokens_out=1, usd=14e-6)
    ledger.settle(ledger.reserve(**ONE), tokens_in=0, tokens_out=0, failed=True)
    ledger.count(model="local", role="proxy", queries=16, tokens_in=160, tokens_out=0)
    assert ledger.spent("target") == Spent(
        requests=2, queries=2, tokens_in=8, tokens_out=1, usd=14e-6, failed=1
    )
    assert ledger.spent("proxy") == Spent(requests=1, queries=16, tokens_in=160)
    assert ledger.spent().requests == 3 and ledger.spent("nobody") == Spent()
    with pytest.raises(ValueError, match="settled or unknown"):
        ledger.settle(ticket, tokens_in=8, tokens_out=1)


@pytest.mark.parametrize(
    ("caps", "message"),
    [
        (Caps(requests=1), r"cap on requests is 1, 1 are spent, and this would add up to 1"),
        (Caps(queries=1), r"cap on queries is 1, 1 are spent"),
        (Caps(tokens=29), r"cap on tokens is 29, 15 are spent, and this would add up to 15"),
        (Caps(usd=49e-6), r"cap on usd is 4.9e-05, 2.5e-05 are spent, and this would add up to 2.5e-05"),
    ],
)
def test_each_cap_refuses_what_would_pass_it_and_books_nothing(caps, message):
    ledger = Ledger(caps=caps, prices=Prices({"m": Price(input_per_million=1.5, output_per_million=2.0)}))
    ledger.reserve(**ONE)
    before = ledger.spent()
    with pytest.raises(LimitReachedError, match=message):
        ledger.reserve(**{**ONE, "role": "judge"})
    assert ledger.spent() == before


def test_a_cap_can_be_reached_to_the_last_cent():
    prices = Prices({"m": Price(input_per_million=0.1, output_per_million=0.2)})
    ledger = Ledger(caps=Caps(usd=0.3, tokens=3_000_000), prices=prices)
    for _ in range(3):  # three times 0.1 is more than 0.3 in floats
        ledger.reserve(model="m", role="t", queries=1, tokens_in=1_000_000, tokens_out=0)
    assert ledger.spent().usd == 0.3
    with pytest.raises(LimitReachedError, match="the cap on tokens"):
        ledger.reserve(model="m", role="t", queries=1, tokens_in=1, tokens_out=0)


def test_a_local_batch_is_capped_too_but_costs_no_money():
    ledger = Ledger(caps=Caps(queries=20, usd=0))
    ledger.count(model="tiny", role="target", queries=16, tokens_in=99, tokens_out=9)
    with pytest.raises(LimitReachedError, match="cap on queries is 20, 16 are spent"):
        ledger.count(model="tiny", role="target", queries=16, tokens_in=99, tokens_out=9)
    ledger.settle(ledger.reserve(**ONE, free=True), tokens_in=1, tokens_out=1)
    assert ledger.spent().usd == 0 and ledger.spent().unpriced == 0


def test_a_model_without_a_price_is_refused_under_a_money_cap_and_said_without_one():
    with pytest.raises(ConfigError, match=r'\[models."m"\] with input_per_million and output_per_million'):
        Ledger(caps=Caps(usd=1)).reserve(**ONE)
    ledger = Ledger()
    ledger.reserve(**ONE)
    assert ledger.spent().unpriced == 1 and ledger.spent().usd == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[models."m"]\ninput_per_million = 1.5\noutput_per_million = 2', None),
        ('[models."m"]\ninput_per_milion = 1.5\noutput_per_million = 2', "Did you mean 'input_per_million'"),
        ('[models."m"]\ninput_per_million = 1.5', "expected output_per_million"),
        ('[models."m"]\ninput_per_million = -1\noutput_per_million = 2', "at least 0, got -1"),
        ('[models."m"]\ninput_per_million = nan\noutput_per_million = 2', "at least 0, got nan"),
        ('[models."m"]\ninput_per_million = "1"\noutput_per_million = 2', "got '1'"),
        ('[model."m"]\ninput_per_million = 1', "unknown table 'model'"),
        ("models = 3", "expected tables"),
        ("[models]\nm = 3", "expected a table with"),
    ],
)
def test_prices_are_read_strictly(tmp_path, text, message):
    path = tmp_path / "prices.toml"
    path.write_text(text)
    if message is None:
        assert Prices.read(path).models["m"] == Price(input_per_million=1.5, output_per_million=2)
    else:
        with pytest.raises(ConfigError, match=message):
            Prices.read(path)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_a_cap_is_a_finite_number(value):
    with pytest.raises(ConfigError, match="cap on usd"):
        Caps(usd=value)


def test_it_is_a_default_of_a_dataclass():
    @dataclass(frozen=True)
    class Holder:
        ledger: Ledger = field(default_factory=Ledger)

    one, other = Holder(), Holder()
    one.ledger.reserve(**ONE)
    assert one.ledger.spent().requests == 1 and other.ledger.spent().requests == 0


class Requests(RuleBasedStateMachine):
    """Requests are reserved, settled within their bound, lost in crashes; the totals are checked by hand."""

    @initialize(
        requests=st.none() | st.integers(0, 8), queries=st.none() | st.integers(0, 20),
        tokens=st.none() | st.integers(0, 300), micro_usd=st.none() | st.integers(0, 300),
    )  # fmt: skip
    def begin(self, requests, queries, tokens, micro_usd):
        self.folder = tempfile.TemporaryDirectory()
        usd = None if micro_usd is None else micro_usd * 1e-6
        self.caps = Caps(requests=requests, queries=queries, tokens=tokens, usd=usd)
        self.prices = Prices({"m": Price(input_per_million=0.7, output_per_million=1.3)})
        self.open, self.expected, self.failed = {}, [], 0
        self.reopen()

    @rule()
    def reopen(self):
        """The process is killed without a word; another one opens the file."""
        self.open = {}
        self.ledger = Ledger(Path(self.folder.name) / "spend.db", self.caps, self.prices)

    @rule(queries=st.integers(0, 5), t_in=st.integers(0, 60), t_out=st.integers(0, 60))
    def reserve(self, queries, t_in, t_out):
        before = self.ledger.spent()
        try:
            ticket = self.ledger.reserve(
                model="m", role="r", queries=queries, tokens_in=t_in, tokens_out=t_out
            )
        except LimitReachedError:
            tokens = before.tokens_in + before.tokens_out + t_in + t_out
            usd = before.usd + (0.7 * t_in + 1.3 * t_out) * 1e-6 + 1e-12
            after = [before.requests + 1, before.queries + queries, tokens, usd]
            caps = [self.caps.requests, self.caps.queries, self.caps.tokens, self.caps.usd]
            assert any(c is not None and a > c for a, c in zip(after, caps, strict=True))
            assert self.ledger.spent() == before
        else:
            self.open[ticket] = len(self.expected)
            self.expected.append([queries, t_in, t_out])

    @precondition(lambda self: getattr(self, "open", None))
    @rule(share=st.floats(0, 1), failed=st.booleans(), data=st.data())
    def settle(self, share, failed, data):
        ticket = data.draw(st.sampled_from(sorted(self.open)))
        row = self.expected[self.open.pop(ticket)]
        row[1:] = [int(row[1] * share), int(row[2] * share)]
        self.failed += failed
        self.ledger.settle(ticket, tokens_in=row[1], tokens_out=row[2], failed=failed)

    @invariant()
    def never_past_a_cap(self):
        if not hasattr(self, "ledger"):
            return
        spent = self.ledger.spent()
        assert (spent.requests, spent.failed) == (len(self.expected), self.failed)
        sums = [sum(row[i] for row in self.expected) for i in range(3)]
        assert [spent.queries, spent.tokens_in, spent.tokens_out] == sums
        assert spent.usd == pytest.approx((0.7 * sums[1] + 1.3 * sums[2]) * 1e-6, abs=1e-11)
        for cap, value in (
            (self.caps.requests, spent.requests), (self.caps.queries, spent.queries),
            (self.caps.tokens, spent.tokens_in + spent.tokens_out), (self.caps.usd, spent.usd),
        ):  # fmt: skip
            assert cap is None or value <= cap

    def teardown(self):
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.folder.cleanup()


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_money_is_exact_to_the_pico_dollar(t_in, t_out):
    price = Price(input_per_million=1.5, output_per_million=0.15)
    assert price.pico(t_in, t_out) == 1_500_000 * t_in + 150_000 * t_out


def test_threads_share_a_ledger_and_together_reach_the_cap_exactly():
    ledger, sent = Ledger(caps=Caps(queries=100)), []

    def work():
        while True:
            try:
                ticket = ledger.reserve(**ONE)
            except LimitReachedError:
                return
            sent.append(ticket)
            ledger.settle(ticket, tokens_in=1, tokens_out=1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sent) == len(set(sent)) == 100
    assert ledger.spent() == Spent(requests=100, queries=100, tokens_in=100, tokens_out=100, unpriced=100)


KILLED = """
import os, sys
from pathlib import Path
from redteam.core.ledger import Caps, Ledger
ledger = Ledger(Path(sys.argv[1]), Caps(requests=40))
ledger.settle(ledger.reserve(model="m", role="r", queries=1, tokens_in=9, tokens_out=9), tokens_in=1, tokens_out=1)
ledger.reserve(model="m", role="r", queries=1, tokens_in=9, tokens_out=9)
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_had_in_flight_counts_for_ever(tmp_path):
    path = tmp_path / "spend.db"
    running = [subprocess.Popen([sys.executable, "-c", KILLED, str(path)], cwd=ROOT) for _ in range(3)]
    assert [process.wait(60) for process in running] == [-9, -9, -9]
    ledger = Ledger(path, Caps(requests=7))
    assert ledger.spent() == Spent(requests=6, queries=6, tokens_in=30, tokens_out=30, unpriced=6)
    ledger.reserve(**ONE)
    with pytest.raises(LimitReachedError):
        ledger.reserve(**ONE)


def test_a_damaged_ledger_is_not_taken_for_an_empty_one(tmp_path):
    path = tmp_path / "spend.db"
    path.write_bytes(b"what was spent is no longer known" * 40)
    with pytest.raises(StorageError, match="move it away to begin a new account"):
        Ledger(path).spent()
    assert path.read_bytes().startswith(b"what was spent")


def test_counting_a_local_batch_takes_well_under_a_millisecond(tmp_path):
    ledger = Ledger(tmp_path / "spend.db", Caps(queries=10**9))
    times = []
    for _ in range(200):
        start = time.perf_counter()
        ledger.count(**ONE)
        times.append(time.perf_counter() - start)
    assert sorted(times)[100] < 0.3e-3  # median: a busy machine makes single calls slow
