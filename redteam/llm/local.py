"""Language models in this process, through transformers: `hf:ID_OR_PATH` and `gguf:PATH`.

Scores are exact: one forward pass over prompt and target gives every log-probability. What prompts have
in common is computed once (`redteam.llm.prefix`); the results equal those of plain passes up to the
rounding of float32: up to 3e-5 nats a token on SmolLM2-135M (measured).
"""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from redteam.core.context import Context
from redteam.core.errors import CapabilityError, ConfigError, DataError
from redteam.core.hashing import digest_json
from redteam.llm.gguf import parsed_once
from redteam.llm.language import Capabilities, Completion, NextToken, Sampling, Scores, Template
from redteam.llm.local_load import Network, Source, find_gguf, find_hf, load_network, load_tokenizer
from redteam.llm.local_text import Text, open_text
from redteam.llm.options import ModelOptions
from redteam.llm.prefix import EMPTY, Ids, Prefix, heavy_path, plan, prefix_of

if TYPE_CHECKING:
    import torch

    from redteam.llm.local_decode import Answer

# A head shorter than this is computed with the rest: a pass of its own costs more.
WORTH = 8


def open_local(
    options: ModelOptions, ctx: Context, role: str = "target", *, prefix_cache: bool = True
) -> LocalModel:
    """Open `hf:ID_OR_PATH` or `gguf:PATH`. Models that name the same weights share them.

    role: under which name the ledger counts. prefix_cache: False computes everything anew, for comparison.

    Raises:
        ConfigError: not there, or a package or the chat template is missing. DataError: not such a model.
        BackendError: weights that cannot be loaded whole.
    """
    finders = {"gguf": find_gguf, "hf": find_hf}
    if options.backend not in finders:
        raise ConfigError(f"expected a local model, gguf:PATH or hf:ID_OR_PATH, got '{options.model}'")
    source = finders[options.backend](options.name)
    with parsed_once() if source.gguf else nullcontext():
        load_tokenizer(source)
        network = load_network(source, options.dtype, ctx.device.name)
    text = _text(source, options.template, options.system, network.stops, network.vocabulary)
    return LocalModel(source, network, text, options, ctx, role, prefix_cache=prefix_cache)


@lru_cache(maxsize=8)
def _text(source: Source, template: Template, system: str | None, stops: frozenset[int], size: int) -> Text:
    return open_text(load_tokenizer(source), template, system, stops=stops, size=size)


@dataclass(eq=False)
class LocalModel:
    """A network behind its template. A `redteam.llm.language.LanguageModel`; see there for each method.

    text: its tokenizer behind its template. ctx, role: whose ledger and limits it keeps to, and the role it is
    booked under.
    """

    source: Source
    network: Network
    text: Text
    options: ModelOptions
    ctx: Context
    role: str = "target"
    prefix_cache: bool = True
    kind: Literal["language-model"] = "language-model"

    @property
    def template(self) -> Template:
        """`raw` or `chat`."""
        return self.text.template

    @property
    def caching(self) -> bool:
        """Whether common beginnings are computed once."""
        return self.prefix_cache and self.network.caches

    # ------------------------------------------------------------ text

    def tokenize(self, text: str) -> list[int]:
        """Ids of bare text. Raises CapabilityError for text that would become control tokens."""
        return self.text.tokenize(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled out."""
        return self.text.detokenize(ids)

    def encode(self, prompt: str) -> list[int]:
        """Ids exactly as the network gets them. Raises CapabilityError like `tokenize`."""
        return self.text.encode(prompt)

    def target_ids(self, target: str) -> list[int]:
        """Ids of `target` as the beginning of an answer; after a raw prompt a space comes first."""
        return self.text.target_ids(target)

    @property
    def vocabulary(self) -> np.ndarray:
        """(V,) int64 ids of ordinary, printable tokens that encode back to themselves."""
        return self.text.vocabulary

    # ------------------------------------------------------------ the network

    def score(self, prompts: Sequence[str], target: str) -> list[Scores]:
        """Exact log-probabilities of `target` after each prompt; equal prompts are computed once."""
        wanted = tuple(self.target_ids(target))
        times, (heads, errors) = Counter(prompts), self._rows(prompts, len(wanted))
        found = {p: Scores(logprobs=np.zeros(0), finish="error", message=m) for p, m in errors.items()}
        distinct = list(heads)
        rows = [(*heads[p], *wanted[:-1]) for p in distinct]  # no token is predicted from the last one
        for batch, state in self._batches(rows, [len(heads[p]) - 1 for p in distinct]):
            size = {b: len(rows[b]) + 1 for b in batch}
            billed = sum(times[distinct[b]] * n for b, n in size.items())
            self._count(sum(times[distinct[b]] for b in batch), billed)
            with _inference():
                logits, _ = self.network.run([rows[b] for b in batch], state, len(wanted), caching=False)
                for b, x in zip(batch, logits, strict=True):
                    logprobs, greedy = _judge(x, wanted)
                    found[distinct[b]] = Scores(logprobs=logprobs, greedy=greedy, tokens_in=size[b])
        return [found[p] for p in prompts]

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        """Completions in batches; each is what its prompt would get alone. Equal prompts get equal answers.

        Raises:
            ConfigError: sampling settings that make no sense.
        """
        from redteam.llm.local_decode import Answer, checked, chooser, decode, groups

        most = checked(sampling).max_tokens
        times, (heads, errors) = Counter(prompts), self._rows(prompts, most)
        found = {p: Completion(text="", finish="error", message=m) for p, m in errors.items()}
        distinct = list(heads)
        with _inference():
            self._head(bool(distinct))
        for group in groups(
            [len(heads[p]) for p in distinct], self.options.batch, equal=not self.network.padded
        ):
            batch = [distinct[k] for k in group]
            answers = [Answer(chooser(sampling, p)) for p in batch]
            with self.reserved({p: len(heads[p]) for p in batch}, times, most, answers), _inference():
                rows = [heads[p] for p in batch]
                decode(self.network, rows, answers, stops=self.text.stops, most=most, caching=self.caching)
            for p, a in zip(batch, answers, strict=True):
                text = self.detokenize(a.ids)
                found[p] = Completion(
                    text=text, finish=a.finish or "error", tokens_in=len(heads[p]), tokens_out=a.spent
                )
        return [found[p] for p in prompts]

    def next_token(
        self, prompt: str, answer: Sequence[int], *, k: int, bias: Mapping[int, float] | None = None
    ) -> NextToken:
        """The `k` most likely next tokens; `bias` moves the log-probabilities that are returned.

        Raises:
            CapabilityError: k above the size of the vocabulary. DataError: an id that is no token.
        """
        import torch

        size = self.network.vocabulary
        if not 1 <= k <= size:
            raise CapabilityError(f"expected k from 1 to {size}, the size of the vocabulary, got {k}")
        if wrong := [i for i in (*answer, *(bias or {})) if not 0 <= i < size]:
            raise DataError(f"expected ids of tokens from 0 to {size - 1}, got {wrong[0]}")
        rows, errors = self._rows([prompt], len(answer) + 1)
        if errors:
            return NextToken(top={}, chosen=-1, finish="error", message=errors[prompt])
        ids = (*rows[prompt], *answer)
        self.ctx.limits.check_time()
        self._count(1, len(ids), 1)
        with _inference():
            self._head(True)
            state = self.network.prefixes.longest(ids[:-1]) if self.caching else EMPTY
            (logits,), cache = self.network.run([ids], state, 1, caching=self.caching)
            if kept := prefix_of(cache, ids) if self.caching else None:
                self.network.prefixes.add(kept)
            last = logits[-1].clone()
            if bias:
                last[torch.tensor(list(bias), device=last.device)] += torch.tensor(
                    list(bias.values()), dtype=last.dtype, device=last.device
                )
            top = last.log_softmax(-1).double().topk(k)
            values = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        return NextToken(top=values, chosen=int(last.argmax()), tokens_in=len(ids))

    def capabilities(self) -> Capabilities:
        """Everything: the network is here."""
        return Capabilities(
            prompt_logprobs=True,
            top_k=self.network.vocabulary,
            bias_steers=True,
            bias_moves=True,
            tokenizer=True,
        )

    def fingerprint(self) -> dict[str, Any]:
        """Content of the weights (sha256, or a hub id's commit), template, precision, library versions."""
        return {
            "backend": self.options.backend,
            "content": self.source.content,
            "dtype": self.options.dtype,
            "template": self.template,
            "system": self.options.system,
            "template_ids": digest_json([self.text.head, self.text.tail]),  # some templates hold the date
            "template_faithful": self.text.faithful,
            "transformers": importlib.metadata.version("transformers"),
            "torch": importlib.metadata.version("torch"),
        }

    # ------------------------------------------------------------ inside

    def _rows(self, prompts: Sequence[str], room: int) -> tuple[dict[str, Ids], dict[str, str]]:
        """Ids of each distinct prompt, or why it cannot be sent with `room` more tokens."""
        rows: dict[str, Ids] = {}
        errors: dict[str, str] = {}
        limit = self.network.limit
        for prompt in dict.fromkeys(prompts):
            try:
                ids = tuple(self.encode(prompt))
            except CapabilityError as error:
                errors[prompt] = str(error)
                continue
            if not ids:
                errors[prompt] = "expected a prompt of at least one token, got an empty one"
            elif limit is not None and len(ids) + room > limit:
                errors[prompt] = (
                    f"{len(ids)} tokens and {room} more exceed the model's context of {limit} tokens"
                )
            else:
                rows[prompt] = ids
        return rows, errors

    def _head(self, wanted: bool) -> Prefix:
        """The state of the template's head, computed once and kept."""
        head = self.text.head
        if not (wanted and self.caching and len(head) >= WORTH):
            return EMPTY
        return self.network.extend(self.network.prefixes.longest(head), head)

    def _batches(self, rows: list[Ids], last: list[int]) -> Iterator[tuple[tuple[int, ...], Prefix]]:
        """Rows that go together, and the state that they begin with."""
        if not rows:
            return
        path: Ids = ()
        leaves, state = [0] * len(rows), EMPTY
        if self.caching:
            path, leaves = heavy_path(rows)
            with _inference():
                self._head(True)
            state = self.network.prefixes.longest(path)
        depth = [min(a, b) for a, b in zip(leaves, last, strict=True)]
        batches = plan(
            rows, depth, known=len(state.ids), size=self.options.batch, pass_cost=self.network.pass_cost
        )
        reach = max(b.shared for b in batches)
        if reach > len(state.ids):
            with _inference():
                state = self.network.extend(state, path[:reach])
        for batch in batches:
            self.ctx.limits.check_time()
            yield batch.rows, state.first(batch.shared)

    def _count(self, queries: int, tokens_in: int, tokens_out: int = 0) -> None:
        """Book a batch, before it runs so that no cap is passed."""
        self.ctx.ledger.count(
            model=self.options.model, role=self.role, queries=queries, tokens_in=tokens_in, tokens_out=tokens_out
        )  # fmt: skip

    @contextmanager
    def reserved(
        self, lengths: Mapping[str, int], times: Mapping[str, int], most: int, answers: Sequence[Answer]
    ) -> Iterator[None]:
        """Book a batch of answers at the most it can take, then at what it took. lengths, times: by prompt."""
        self.ctx.limits.check_time()
        queries, tokens_in = sum(times[p] for p in lengths), sum(times[p] * n for p, n in lengths.items())
        ticket = self.ctx.ledger.reserve(
            model=self.options.model, role=self.role, queries=queries, tokens_in=tokens_in,
            tokens_out=queries * most, free=True,
        )  # fmt: skip
        try:
            yield
        finally:
            spent = sum(times[p] * a.spent for p, a in zip(lengths, answers, strict=True))
            self.ctx.ledger.settle(ticket, tokens_in=tokens_in, tokens_out=spent)


def _inference() -> Any:
    import torch

    return torch.inference_mode()


def _judge(logits: torch.Tensor, wanted: Ids) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities (t,) float64 of the wanted tokens and whether each is the argmax. logits: (t, V)."""
    import torch

    ids = torch.tensor(wanted, device=logits.device)[:, None]
    logprobs = logits.log_softmax(-1).gather(1, ids)[:, 0].double()
    greedy = logits.argmax(-1) == ids[:, 0]
    return logprobs.cpu().numpy(), greedy.cpu().numpy()
