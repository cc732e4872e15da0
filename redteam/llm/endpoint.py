"""Language models behind an OpenAI-compatible endpoint: `openai:MODEL`.

The address and the key come from OPENAI_BASE_URL and OPENAI_API_KEY and go nowhere else. What an endpoint
can do is found out by trying (`redteam.llm.probe`), since many say they can and answer nonsense.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from redteam.core.context import Context
from redteam.core.errors import CapabilityError, ConfigError
from redteam.llm.exchange import Exchange, Server
from redteam.llm.language import ANSWERED, Capabilities, Completion, NextToken, Sampling, Scores, Template
from redteam.llm.options import ModelOptions
from redteam.llm.pace import Pacer
from redteam.llm.probe import probe
from redteam.llm.replies import Ask, Reply
from redteam.llm.tokenizers import Tokens, open_tokenizer
from redteam.llm.wire import Wire

DEFAULT_URL = "https://api.openai.com/v1"
ONE = Sampling(max_tokens=1)
_TIE = 1e-6  # nats within which a token counts as the most likely one


def open_endpoint(options: ModelOptions, ctx: Context, role: str = "target") -> Endpoint:
    """Open `openai:MODEL`. No model is asked before the endpoint is.

    Raises:
        ConfigError: no key, no model, an address that is none, or the tokenizer that is named is not there.
    """
    key, url = os.environ.get("OPENAI_API_KEY", ""), os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
    if not options.name:
        raise ConfigError("model: expected openai:MODEL, got no name after the colon")
    if not key:
        raise ConfigError("set OPENAI_API_KEY; a local server that checks no key takes any text")
    if options.template == "raw" and options.system is not None:
        raise ConfigError("a system message needs template = 'chat'; with 'raw', put it into the prompt")
    wire = Wire(url, key)
    tokens, why = None, ""
    try:
        tokens = open_tokenizer(options.tokenizer, options.name, options.template, options.system, wire.fetch)
    except (CapabilityError, ConfigError) as error:
        if options.tokenizer != "auto":
            raise
        why = str(error)  # text still comes; what needs tokens says why it does not
    server = Server(
        model=options.name,
        template=options.template,
        system=options.system,
        identity={"backend": "openai", "model": options.name},
        tokens=tokens,
        place=hashlib.sha256(url.encode()).hexdigest(),
    )
    pacer = Pacer(options.batch, ctx.rng("endpoint", role))
    return Endpoint(Exchange(server, wire, pacer, ctx, role), options, no_tokens=why)


class Endpoint:
    """A served model. A `redteam.llm.language.LanguageModel`; see there for each method.

    pacer: its history of concurrency is for the report.
    """

    kind: Literal["language-model"] = "language-model"

    def __init__(
        self,
        exchange: Exchange,
        options: ModelOptions,
        *,
        no_tokens: str = "",
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """Set up. no_tokens: why there is no tokenizer. on_close: called when it is closed."""
        self._exchange, self._server, self.options = exchange, exchange.server, options
        self._no_tokens, self._on_close = no_tokens, on_close
        self.pacer = exchange.pacer
        self._lock = threading.Lock()
        self._known: Capabilities | None = None

    @property
    def template(self) -> Template:
        """`raw` or `chat`."""
        return self._server.template

    # ------------------------------------------------------------ what it is asked

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        """Completions, at most `batch` requests in flight."""
        replies = self.ask([Ask(prompt=p, sampling=sampling, as_text=True) for p in prompts])
        return [
            Completion(
                text=r.text,
                finish=r.finish,
                tokens_in=r.tokens_in or 0,
                tokens_out=r.tokens_out or 0,
                message=r.message,
            )
            for r in replies
        ]

    def score(self, prompts: Sequence[str], target: str) -> list[Scores]:
        """Log-probabilities of `target`, from an echo of prompt and target.

        Raises:
            CapabilityError: the endpoint returns none that can be trusted; it says what was seen.
        """
        can = self.capabilities()
        if not can.prompt_logprobs:
            raise CapabilityError(
                f"{self._server.model} gives no log-probabilities of a prompt "
                f"({can.reasons.get('prompt_logprobs', 'see its probe')}); use another loss, whichever its "
                "capabilities allow: topk-bias, topk or bias-search"
            )
        wanted = tuple(self.target_ids(target))
        asks = [Ask(prompt=p, answer=wanted, k=1, echo=True, sampling=ONE) for p in prompts]
        return [self._scores(p, wanted, r) for p, r in zip(prompts, self.ask(asks), strict=True)]

    def _scores(self, prompt: str, wanted: tuple[int, ...], reply: Reply) -> Scores:
        """The part of an echo that is the target, if it is where it belongs."""
        count = reply.tokens_in or 0
        if reply.finish not in ANSWERED:
            return Scores(logprobs=np.zeros(0), finish=reply.finish, tokens_in=count, message=reply.message)
        start = len(self.encode(prompt))
        steps = reply.steps[start : start + len(wanted)]
        found = [step.chosen for step in steps]
        if len(steps) < len(wanted) or any(a not in (b, -1) for a, b in zip(found, wanted, strict=True)):
            message = (
                f"the echo holds {len(reply.steps)} tokens, and the target is not after the first {start}"
            )
            return Scores(logprobs=np.zeros(0), finish="error", tokens_in=count, message=message)
        logprobs = [step.logprob for step in steps]
        if None in logprobs:
            message = "the echo gives no log-probability for a token of the target"
            return Scores(logprobs=np.zeros(0), finish="error", tokens_in=count, message=message)
        values = np.array(logprobs, np.float64)
        best = [step.best for step in steps]
        greedy = None if None in best else values >= np.array(best, np.float64) - _TIE
        return Scores(logprobs=values, greedy=greedy, tokens_in=count)

    def next_token(
        self, prompt: str, answer: Sequence[int], *, k: int, bias: Mapping[int, float] | None = None
    ) -> NextToken:
        """The `k` most likely next tokens, from the generation of one.

        Raises:
            CapabilityError: more alternatives, a bias or a beginning of the answer that it cannot take.
        """
        can = self.capabilities()
        if not 1 <= k <= can.top_k:
            raise CapabilityError(
                f"expected k from 1 to {can.top_k}, as many alternatives as {self._server.model} returns, "
                f"got {k}. {can.reasons.get('top_k', '')}"
            )
        for needed, name in ((bool(bias), "bias_steers"), (bool(answer), "prefill")):
            if needed and name in can.reasons:
                raise CapabilityError(f"{self._server.model}: {can.reasons[name]}")
        ask = Ask(prompt=prompt, answer=tuple(answer), k=k, bias=dict(bias or {}), sampling=ONE)
        (r,) = self.ask([ask])
        count = r.tokens_in or 0
        if r.finish not in ANSWERED:
            return NextToken(top={}, chosen=-1, finish=r.finish, tokens_in=count, message=r.message)
        top = dict(list(r.steps[0].top.items())[:k])
        return NextToken(top=top, chosen=r.steps[0].chosen, finish=r.finish, tokens_in=count)

    # ------------------------------------------------------------ text

    def tokenize(self, text: str) -> list[int]:
        """Ids of bare text. This and the next four raise CapabilityError where no tokenizer is known."""
        return self._tokens().text.tokenize(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._tokens().text.detokenize(ids)

    def encode(self, prompt: str) -> list[int]:
        """Ids of the prompt; of a chat whose template is not known, of the user's text alone."""
        return self._tokens().text.encode(prompt)

    def target_ids(self, target: str) -> list[int]:
        """Ids of `target` as the beginning of an answer; after a raw prompt a space comes first."""
        return self._tokens().text.target_ids(target)

    @property
    def vocabulary(self) -> np.ndarray:
        """(V,) int64 ids of printable tokens that encode back to themselves."""
        return self._tokens().vocabulary

    def _tokens(self) -> Tokens:
        if self._server.tokens is None:
            raise CapabilityError(self._no_tokens)
        return self._server.tokens

    # ------------------------------------------------------------ what it is

    def capabilities(self) -> Capabilities:
        """What the probe saw, once, at the price of some twenty requests of a few tokens."""
        with self._lock:
            if self._known is None:
                known = probe(self)
                self._exchange.send_ids = "ids" not in known.reasons
                self._known = known
            return self._known

    def fingerprint(self) -> dict[str, Any]:
        """Model, tokenizer and template. Of a remote model nobody knows the weights, or when they change."""
        return self._server.fingerprint()

    def ask(self, asks: Sequence[Ask], *, fresh: bool = False, retries: int | None = None) -> list[Reply]:
        """Requests as they are, for the probe; see `redteam.llm.exchange.Exchange.ask`."""
        return self._exchange.ask(asks, fresh=fresh, retries=retries)

    @property
    def tokens(self) -> Tokens | None:
        """Its tokenizer, None if none is known."""
        return self._server.tokens

    @property
    def ours(self) -> bool:
        """Whether the server is one that the suite started."""
        return self._server.ours

    def close(self) -> None:
        """Drop the connections; stop the server if it is ours."""
        self._exchange.close()
        if self._on_close is not None:
            self._on_close()
