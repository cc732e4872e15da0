"""A server that misbehaves: every request is counted, none is repeated without end, nothing secret gets out."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from redteam.core.errors import BackendError, LimitReachedError
from redteam.core.ledger import Caps, Ledger
from redteam.llm.language import Sampling

pytest.importorskip("openai")

from tests.llm.faulty import Fault, Manners, connect, serving

ROOT = Path(__file__).parents[2]
PROMPT = "The capital of France is"
SIX = Sampling(max_tokens=6)


def first(*faults: Fault):
    """These faults for the first requests, then none."""
    return lambda n: faults[n] if n < len(faults) else None


def always(fault: Fault):
    return lambda n: fault


def no_choices(payload):
    return {**payload, "choices": []}


def no_logprobs(payload):
    payload["choices"][0]["logprobs"] = None
    return payload


def nan_logprobs(payload):
    payload["choices"][0]["logprobs"]["token_logprobs"][0] = float("nan")
    return payload


def other_model(payload):
    return {**payload, "model": "toy-large"}


def error_in_ok(payload):
    return {"error": {"message": "upstream failed"}}


PASSING = {
    "429": Fault(status=429),
    "429 in a second": Fault(status=429, headers={"Retry-After": "1"}),
    "429 at a date": Fault(status=429, headers={"Retry-After": "Tue, 14 Nov 2023 22:13:50 GMT"}),
    "429 in milliseconds": Fault(status=429, headers={"retry-after-ms": "20"}),
    "500": Fault(status=500),
    "503": Fault(status=503, headers={"Retry-After": "2"}),
    "408": Fault(status=408),
    "reset": Fault(reset=True),
    "no answer in time": Fault(wait_s=0.6),
    "drips": Fault(drip_s=0.05),
    "no JSON": Fault(body="<html>busy</html>"),
    "half a JSON": Fault(body='{"choices": ['),
    "deep JSON": Fault(body="[" * 100_000),
    "a list": Fault(body="[]"),
    "null": Fault(body="null"),
    "not text": Fault(body='{"choices": [{"text": 3}]}'),
    "no choices": Fault(spoil=no_choices),
    "error in a 200": Fault(spoil=error_in_ok),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_passes_is_tried_again_and_counted(fault):
    with serving(faults=first(fault)) as server:
        model = connect(server, timeout_s=0.3)
        (answer,) = model.generate([PROMPT], SIX)
        assert (answer.text, answer.finish) == (" Paris", "length")
        spent = model._exchange.ctx.ledger.spent()
        assert spent.requests == server.requests == 2 and spent.failed == 1


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_does_not_pass_ends_in_an_error_of_that_prompt(fault):
    with serving(faults=lambda n: fault if n < 3 else None) as server:
        model = connect(server, timeout_s=0.3, retries=2, batch=1)
        bad, good = model.generate([PROMPT, PROMPT + " "], SIX)
        slow = fault.wait_s or fault.drip_s
        assert bad.finish == ("timeout" if slow else "error") and "after 3 attempts" in bad.message
        assert good.finish == "length"
        spent = model._exchange.ctx.ledger.spent()
        assert spent.requests == server.requests == 4 and spent.failed == 3


@pytest.mark.parametrize("spoil", [no_logprobs, nan_logprobs, no_choices], ids=lambda f: f.__name__)
@pytest.mark.parametrize("what", ["next_token", "score"])
def test_no_number_is_made_up(spoil, what):
    with serving() as server:
        model = connect(server, retries=2)
        assert model.capabilities().reasons == {}
        before = server.requests
        server.faults = always(Fault(spoil=spoil))
        if what == "score":
            (got,) = model.score([PROMPT], "Paris")
            assert got.loss == float("inf") and len(got.logprobs) == 0 and not got.exact
        else:
            got = model.next_token(PROMPT, (), k=3)
            assert got.top == {} and got.chosen == -1
        assert got.finish == "error" and "malformed reply: expected" in got.message
        assert server.requests == before + 3
        assert model._exchange.ctx.ledger.spent().requests == server.requests


AT_ONCE = {
    "401": (Fault(status=401), "rejects the key; check OPENAI_API_KEY"),
    "403": (Fault(status=403), "rejects the key"),
    "404": (Fault(status=404), "no such model, or OPENAI_BASE_URL"),
    "402": (Fault(status=402), "no credit left"),
    "quota": (
        Fault(status=429, body='{"error": {"message": "x", "code": "insufficient_quota"}}'),
        "no credit left",
    ),
    "model": (Fault(spoil=other_model), "asked for the model 'toy', and 'toy-large' answered"),
}


@pytest.mark.parametrize(("fault", "message"), AT_ONCE.values(), ids=AT_ONCE)
def test_what_will_never_work_stops_at_once(fault, message):
    with serving(faults=always(fault)) as server:
        model = connect(server, batch=1)
        with pytest.raises(BackendError, match=message):
            model.generate([PROMPT] * 3 + ["x", "y"], SIX)
        assert model._exchange.ctx.ledger.spent().requests == server.requests == 1


def test_a_rejected_key_stops_at_once():
    with serving() as server:
        model = connect(server, key="sk-wrong-9876543210")
        with pytest.raises(BackendError, match="HTTP 401") as caught:
            model.generate([PROMPT], SIX)
        assert server.requests == 1 and "9876543210" not in str(caught.value)


def test_twenty_prompts_in_a_row_without_an_answer_end_the_run():
    with serving(faults=always(Fault(status=500))) as server:
        model = connect(server, batch=4, retries=2)
        with pytest.raises(BackendError, match="20 prompts in a row got no answer; the last: HTTP 500"):
            model.generate([f"prompt {i}" for i in range(200)], SIX)
        assert 20 * 3 <= server.requests <= 24 * 3
        assert model._exchange.ctx.ledger.spent().requests == server.requests


def test_nineteen_do_not():
    with serving(faults=lambda n: Fault(status=400) if n % 20 != 19 else None) as server:
        answers = connect(server, batch=1).generate([f"prompt {i}" for i in range(100)], SIX)
        assert [a.finish for a in answers].count("length") == 5
        assert {a.message for a in answers if a.finish == "error"} == {
            "HTTP 400: the request is refused: no, see [endpoint]?key=[key]"
        }


def test_a_filtered_prompt_is_told_from_a_broken_one():
    body = '{"error": {"message": "flagged", "code": "content_policy_violation"}}'
    with serving(faults=first(Fault(status=400, body=body), Fault(status=422))) as server:
        filtered, refused = connect(server, batch=1).generate(["a", "b"], SIX)
        assert (filtered.finish, refused.finish) == ("filtered", "error")
        assert server.requests == 2, "what is refused is not repeated"


def test_429_lowers_the_concurrency_and_it_recovers():
    limit = 8

    def crowded(n):
        return Fault(wait_s=0.02, status=429 if server.flying > 4 and n < 90 else 200)

    with serving(faults=crowded) as server:
        model = connect(server, batch=limit, retries=30)
        answers = model.generate([f"prompt {i}" for i in range(120)], Sampling(max_tokens=1))
        assert all(a.finish == "length" for a in answers)
        windows = [change.window for change in model.pacer.history]
        assert windows[0] == limit and min(windows) <= 6 and windows[-1] == limit
        assert server.most_flying <= limit
        spent = model._exchange.ctx.ledger.spent()
        assert spent.requests == server.requests and spent.failed == server.requests - 120 > 0


# ---------------------------------------------------------------- spending


def test_a_resumed_run_never_spends_more_than_its_cap(tmp_path):
    prompts = [f"prompt {i}" for i in range(40)]
    faults = lambda n: Fault(status=500) if n % 5 == 3 else None  # noqa: E731
    with serving(faults=faults) as server:
        answered = 0
        for _ in range(3):
            ledger = Ledger(tmp_path / "spend.db", Caps(requests=30))
            model = connect(server, batch=3, ledger=ledger, cache_path=tmp_path / "cache.db")
            with pytest.raises(LimitReachedError, match="the cap on requests is 30"):
                model.generate(prompts, SIX)
            assert ledger.spent().requests == server.requests == 30
            answered = server.requests - ledger.spent().failed
            model.close()
            ledger.close()
        assert answered == 24
        model = connect(server, batch=3, ledger=Ledger(tmp_path / "spend.db", Caps(requests=60)),
                        cache_path=tmp_path / "cache.db")  # fmt: skip
        assert all(a.finish == "length" for a in model.generate(prompts, SIX))
        spent = model._exchange.ctx.ledger.spent()
        assert spent.requests == server.requests == 50, "what was answered is kept"


KILLED = """
import os, sys, threading
from pathlib import Path
from redteam.llm.language import Sampling
from redteam.llm.endpoint import open_endpoint
from redteam.llm.options import ModelOptions
from redteam.core.context import Context
from redteam.core.device import Device
from redteam.core.seeding import SeedPath
from redteam.core.ledger import Caps, Ledger
ctx = Context(Device("cpu"), SeedPath(0), ledger=Ledger(Path(sys.argv[1]), Caps(requests=50)))
model = open_endpoint(ModelOptions(model="openai:toy", tokenizer="server", batch=4), ctx)
model.generate([f"prompt {i}" for i in range(50)], Sampling(max_tokens=4))
"""


def test_what_a_killed_run_had_in_flight_is_spent(tmp_path):
    with serving(faults=lambda n: Fault(wait_s=30) if n >= 6 else None) as server:
        environment = {**os.environ, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": server.toy.manners.key}
        path = tmp_path / "spend.db"
        run = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, env=environment)
        deadline = time.monotonic() + 60
        while server.requests < 10 and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        run.kill()
        assert run.wait(10) == -9
        assert server.requests == 10, "six were answered, four hung"
        assert Ledger(path).spent().requests == 10


def test_a_cap_on_tokens_is_kept_by_reservations():
    with serving() as server:
        ledger = Ledger(caps=Caps(tokens=200))
        model = connect(server, batch=8, ledger=ledger)
        with pytest.raises(LimitReachedError, match="the cap on tokens is 200"):
            model.generate([f"prompt {i}" for i in range(40)], SIX)
        spent = ledger.spent()
        assert spent.tokens_in + spent.tokens_out <= 200 and server.requests == spent.requests


def test_what_got_no_answer_is_charged_at_its_bound_and_what_was_refused_is_not():
    with serving(faults=first(Fault(status=500), Fault(reset=True))) as server:
        model = connect(server, batch=1)
        model.generate([PROMPT], SIX)
        spent = model._exchange.ctx.ledger.spent()
        # A bound for the reset, a count for the answer.
        assert (spent.tokens_in, spent.tokens_out) == (25 + 24, 6 + 6)


# ---------------------------------------------------------------- secrets


def chain(error: BaseException | None) -> list[str]:
    """Everything an error says, and every error behind it."""
    seen: list[str] = []
    while error is not None:
        seen += [str(error), repr(error), *map(str, getattr(error, "__notes__", []))]
        error = error.__cause__ or error.__context__
    return seen


SECRETIVE = Manners(key="sk-secret-0123456789")


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=400), Fault(status=401), Fault(status=404), Fault(status=429), Fault(status=500),
        Fault(reset=True), Fault(body="not JSON"), Fault(spoil=other_model), Fault(wait_s=0.4),
    ],
    ids=["400", "401", "404", "429", "500", "reset", "not-json", "other-model", "slow"],
)  # fmt: skip
def test_no_key_and_no_address_gets_out(fault, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with serving(SECRETIVE, first(None, None, *[fault] * 200)) as server:
        words = [SECRETIVE.key, "0123456789", server.url, "localhost", f":{server.http.server_address[1]}"]
        said: list[str] = []
        ledger = Ledger(tmp_path / "run" / "spend.db")
        cache = tmp_path / "run" / "cache.db"
        model = connect(server, retries=1, timeout_s=0.3, ledger=ledger, cache_path=cache)
        try:
            for i in range(4):
                said += [repr(a) for a in model.generate([f"{PROMPT} {i}"], SIX)]
        except BackendError as error:
            said += chain(error)
        said += [repr(model.fingerprint()), repr(vars(model)), repr(model), repr(ledger.spent())]
        model.close()
        (tmp_path / "run" / "log.txt").write_text(caplog.text + "".join(capfd.readouterr()))
        files = [p for p in tmp_path.rglob("*") if p.is_file()]
        assert len(files) >= 3
        content = [*said, *(p.read_bytes().decode("latin-1") for p in files)]
        for word in words:
            found = [text[:300] for text in content if word.lower() in text.lower()]
            assert not found, (word, found)


def test_an_unreachable_address_is_not_named():
    with serving() as server:
        model = connect(server, retries=1, tokenizer=False)
    (answer,) = model.generate([PROMPT], SIX)
    assert answer.finish == "error" and answer.message == "no connection (ConnectError), after 2 attempts"
