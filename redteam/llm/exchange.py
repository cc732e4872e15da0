"""Asking an endpoint: from the cache if it can, else booked, sent, settled, and kept.

Every attempt is booked before it is sent (`redteam.core.ledger`), so that no crash and no retry spends unseen.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from redteam.core.context import Context
from redteam.core.errors import BackendError, CapabilityError, DataError
from redteam.core.hashing import canonical_json, digest_json
from redteam.llm.cache import Cache, cache_key
from redteam.llm.chat_tools import as_dicts, as_messages
from redteam.llm.language import Sampling, Template
from redteam.llm.pace import GaveUp, Pacer, TransientError
from redteam.llm.replies import Api, Ask, MalformedError, Reply, parse
from redteam.llm.tokenizers import Tokens
from redteam.llm.wire import RejectedError, Wire

HOPELESS = 20  # prompts in a row without an answer, after which none is expected
_OVERHEAD = 64  # tokens that a chat template is taken to put round a message, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Who is asked.

    model, template, system: as in the options. identity: what decides the answers. place: a digest of the
    address, which goes into keys of the cache and nowhere else. tokens: its tokenizer, or None.
    ours: a server of our own, which costs no money and is given ids, template included.
    """

    model: str
    template: Template
    system: str | None
    identity: Mapping[str, Any]
    tokens: Tokens | None
    place: str = ""
    ours: bool = False

    def fingerprint(self) -> dict[str, Any]:
        """What decides its answers, as far as that can be known from here."""
        tokenizer = self.tokens.identity if self.tokens else {"tokenizer": None}
        return {**self.identity, **tokenizer, "template": self.template, "system": self.system}


@dataclass
class Exchange:
    """The way to one server for one role. send_ids: whether the server takes ids for a raw prompt."""

    server: Server
    wire: Wire
    pacer: Pacer
    ctx: Context
    role: str
    send_ids: bool = True
    _limit: str = field(default="max_tokens", init=False)
    _unanswered: int = field(default=0, init=False)
    _answers_as: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        # What our own server says costs no money and, with two thousand alternatives, 60 KiB an answer.
        kept = self.ctx.cache_path is not None and not self.server.ours
        self._cache = Cache(self.ctx.cache_path) if kept else None

    def ask(self, asks: Sequence[Ask], *, fresh: bool = False, retries: int | None = None) -> list[Reply]:
        """Replies in order; a prompt that fails gets one whose `finish` says so. Equal asks are sent once.

        fresh: past the cache, and each by itself. retries: instead of the pacer's.

        Raises:
            LimitReachedError: a cap or the time. BackendError: no request will be answered.
        """
        keys = [str(i) if fresh else self._key(ask) for i, ask in enumerate(asks)]
        found: dict[str, Reply] = {}
        calls: dict[str, Callable[[], Reply]] = {}
        for key, ask in zip(keys, asks, strict=True):
            if key in found or key in calls:
                continue
            if self._cache is not None and not fresh and (kept := self._cache.get(key)) is not None:
                found[key] = Reply.from_json(kept)
                self._same_model(found[key])
                continue
            try:
                api, body, bound = self._compose(ask)
            except (CapabilityError, DataError) as error:
                found[key] = Reply(finish="error", message=str(error))
            else:
                calls[key] = partial(self._attempt, ask, api, body, bound, None if fresh else key)
        got = self.pacer.run(
            list(calls.values()), retries=retries, gave_up=lambda lost: self._tally(_lost(lost))
        )
        for key, reply in zip(calls, got, strict=True):
            found[key] = _lost(reply) if isinstance(reply, GaveUp) else reply
        return [found[key] for key in keys]

    def close(self) -> None:
        """Close the connections and the cache."""
        self.wire.close()
        if self._cache is not None:
            self._cache.close()

    # ------------------------------------------------------------ one request

    def _attempt(self, ask: Ask, api: Api, body: Mapping[str, Any], bound: int, key: str | None) -> Reply:
        """One attempt: booked, sent, settled. Raises `TransientError` if it may be made again."""
        self.ctx.limits.check_time()
        most = ask.sampling.max_tokens
        ticket = self.ctx.ledger.reserve(
            model=self.server.model, role=self.role, queries=1, tokens_in=bound, tokens_out=most,
            free=self.server.ours,
        )  # fmt: skip
        failure: Exception
        try:
            payload = self.wire.send(api, {**body, self._limit: most} if api == "chat" else body)
            tokens = self.server.tokens
            reply = parse(payload, api, ask, tokens.id_of if tokens else lambda raw: None)
        except MalformedError as error:
            failure = TransientError(f"malformed reply: {error}")
        except (TransientError, RejectedError, BackendError) as error:
            failure = error
        else:
            tokens_in = bound if reply.tokens_in is None else reply.tokens_in
            tokens_out = self._length(reply, most) if reply.tokens_out is None else reply.tokens_out
            self.ctx.ledger.settle(ticket, tokens_in=tokens_in, tokens_out=tokens_out)
            self._same_model(reply)
            self._tally(reply)
            if key is not None and self._cache is not None:
                self._cache.put(key, reply.to_json())
            return reply
        # What got no answer may have been computed, and charged; what got a refusal was not.
        billed = getattr(failure, "billed", False)
        self.ctx.ledger.settle(
            ticket, tokens_in=bound if billed else 0, tokens_out=most if billed else 0, failed=True
        )
        if isinstance(failure, RejectedError):
            return self._rejected(failure, api)
        raise failure

    def _rejected(self, failure: RejectedError, api: Api) -> Reply:
        if api == "chat" and self._limit == "max_tokens" and "max_completion_tokens" in str(failure):
            self._limit = "max_completion_tokens"  # newer models know the limit by this name alone
            raise TransientError(str(failure), billed=False)
        reply = Reply(finish=failure.finish, message=str(failure))
        self._tally(reply)
        return reply

    def _length(self, reply: Reply, most: int) -> int:
        """Our own count of the tokens that came, where the endpoint keeps none."""
        if self.server.tokens is None:
            return min(most, len(_all_text(reply).encode()))
        return len(self.server.tokens.text.tokenize(_all_text(reply)))

    def _tally(self, reply: Reply) -> None:
        """Give up on an endpoint that answers nothing any more."""
        with self._lock:
            self._unanswered = self._unanswered + 1 if reply.finish in ("error", "timeout") else 0
            if self._unanswered < HOPELESS:
                return
            self._unanswered = 0
        raise BackendError(f"{HOPELESS} prompts in a row got no answer; the last: {reply.message}")

    def _same_model(self, reply: Reply) -> None:
        """Refuse answers of another model than was asked for, or than answered before."""
        if not reply.model:
            return
        with self._lock:
            before, self._answers_as = self._answers_as or reply.model, self._answers_as or reply.model
        if not _means(self.server.model, reply.model):
            raise BackendError(
                f"asked for the model '{self.server.model}', and '{self.wire.scrub(reply.model)[:80]}' answered; "
                "name the model as the endpoint does"
            )
        if before != reply.model:
            raise BackendError(
                f"'{self.wire.scrub(before)[:80]}' answered at first and '{self.wire.scrub(reply.model)[:80]}' "
                "now: the endpoint changed what the name stands for. Name one of them, or begin anew without "
                "the cache of answers"
            )

    # ------------------------------------------------------------ what is sent

    def _key(self, ask: Ask) -> str:
        s, server = ask.sampling, self.server
        request: dict[str, Any] = {
            "prompt": ask.prompt, "answer": list(ask.answer), "k": ask.k, "echo": ask.echo,
            "as_text": ask.as_text or not self.send_ids, "bias": {str(t): v for t, v in ask.bias.items()},
            "sampling": [s.max_tokens, s.temperature, s.top_p, s.seed, s.index],
        }  # fmt: skip
        if ask.messages:  # and of none the key is what it was before there were conversations
            request |= {"messages": as_messages(ask.messages), "tools": as_dicts(ask.tools)}
        if ask.ids:
            request["ids"] = list(ask.ids)
        return cache_key({**server.fingerprint(), "place": server.place}, request)

    def _compose(self, ask: Ask) -> tuple[Api, dict[str, Any], int]:
        """Which API, the body, and a bound on the tokens of its prompt."""
        server, s = self.server, ask.sampling
        text = server.tokens.text if server.tokens else None
        body: dict[str, Any] = {
            "model": server.model, "temperature": s.temperature, "top_p": s.top_p, "seed": _seed(s),
        }  # fmt: skip
        if ask.bias:
            body["logit_bias"] = {str(token): value for token, value in ask.bias.items()}
        if ask.messages:
            return "chat", *_conversation(ask, body)
        prefix = text.detokenize(ask.answer) if text and ask.answer else ""
        if server.template == "chat" and not server.ours:
            if ask.k is not None:
                body |= {"logprobs": True, "top_logprobs": ask.k}
            messages = [{"role": "system", "content": server.system}] if server.system else []
            messages.append({"role": "user", "content": ask.prompt})
            if prefix:
                messages.append({"role": "assistant", "content": prefix})
            # A token is at least one byte, and some are one.
            bound = sum(_OVERHEAD + len(str(m["content"]).encode()) for m in messages)
            return "chat", {**body, "messages": messages}, bound
        body["max_tokens"] = s.max_tokens
        if ask.k is not None:
            body["logprobs"] = ask.k
        if ask.echo:
            body["echo"] = True
        if ask.ids:
            return "completions", {**body, "prompt": list(ask.ids)}, len(ask.ids)
        if text and (server.ours or (self.send_ids and not ask.as_text)):
            ids = [*text.encode(ask.prompt), *ask.answer]
            return "completions", {**body, "prompt": ids}, len(ids)
        prompt = ask.prompt + prefix
        return "completions", {**body, "prompt": prompt}, len(prompt.encode()) + 1


def _conversation(ask: Ask, body: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The body of a conversation, and a bound on its tokens: one is at least one byte."""
    messages, tools = as_messages(ask.messages), as_dicts(ask.tools)
    bound = sum(_OVERHEAD + len(canonical_json(part).encode()) for part in (*messages, *tools))
    offered = {"tools": tools} if tools else {}
    return {**body, "messages": messages, **offered}, bound


def _all_text(reply: Reply) -> str:
    return "".join([reply.text, *(t for c in reply.calls for t in (c.name, c.arguments))])


def _lost(lost: GaveUp) -> Reply:
    tries = f"{lost.message}, after {lost.attempts} attempts"
    return Reply(finish="timeout" if lost.timeout else "error", message=tries)


def _seed(sampling: Sampling) -> int:
    """One seed for each sample of a prompt; the first is the seed itself."""
    if sampling.index == 0:
        return sampling.seed % 2**31
    return int(digest_json([sampling.seed, sampling.index])[:8], 16) % 2**31


def _means(asked: str, answered: str) -> bool:
    """Whether a name is the one asked for, without a provider before it or with a date or version behind it."""
    bare = asked.removesuffix("-latest")
    if answered in (asked, bare, asked.rpartition("/")[2]) or answered.rpartition("/")[2] == asked:
        return True
    return re.fullmatch(re.escape(bare) + r"[-@:](\d{3,}|\d{4}-\d{2}-\d{2})", answered) is not None
