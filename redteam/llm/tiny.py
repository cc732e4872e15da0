"""`tiny:`, the embedded byte-level transformer: a language model for instant tests and a bare install.

Its training data are known to the last byte (`redteam.data.tiny_corpus`); `scripts/build_tiny_lm.py` trained
it. A token is a byte of UTF-8. Turns of a chat are marked by ids that no text has, so none can be forged.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from redteam.core.arrays import load_arrays
from redteam.core.context import Context
from redteam.core.errors import ArtifactError, CapabilityError, ConfigError, DataError
from redteam.core.seeding import SeedPath
from redteam.data.shipped import EMBEDDED_DIR
from redteam.learn.models.transformer import Cache, Shape, Transformer
from redteam.llm.language import Capabilities, Completion, NextToken, Sampling, Scores, Template
from redteam.llm.options import ModelOptions

BYTES = 256
BEGIN, END, SYSTEM, USER, ASSISTANT = range(BYTES, BYTES + 5)
VOCABULARY = BYTES + 5
WEIGHTS, CARD = "tiny-lm.npz", "tiny-lm.json"


def to_bytes(text: str) -> list[int]:
    """The bytes of a text.

    Raises:
        DataError: half a surrogate pair, which is no text.
    """
    try:
        return list(text.encode())
    except UnicodeEncodeError as error:
        raise DataError(f"expected text, got the lone surrogate {text[error.start]!r}; remove it") from None


def frame(user: str | None, system: str | None = None, *, raw: str = "") -> list[int]:
    """Ids up to where the model begins to write: after the text `raw`, or as the assistant, answering `user`."""
    if user is None:
        return [BEGIN, *to_bytes(raw)]
    head = [] if system is None else [SYSTEM, *to_bytes(system)]
    return [*head, USER, *to_bytes(user), ASSISTANT]


@dataclass(frozen=True, eq=False)
class Loaded:
    """The network in evaluation mode, and its card: digests, sizes, training data, losses."""

    net: Transformer
    card: Mapping[str, Any]


@lru_cache(maxsize=4)
def load_network(device: str = "cpu", folder: Path = EMBEDDED_DIR) -> Loaded:
    """The embedded weights, checked against their card, as float32.

    Raises:
        DataError: a shipped file is missing or was changed.
    """
    try:
        card = json.loads((folder / CARD).read_text())
        arrays, _ = load_arrays(folder / WEIGHTS, card["sha256"])
        with SeedPath(0).as_global():
            net = Transformer(Shape(**card["shape"]))
        net.load_state_dict({name: torch.from_numpy(a.astype(np.float32)) for name, a in arrays.items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ArtifactError) as error:
        raise DataError(
            f"{folder / CARD} or {WEIGHTS} is missing or was changed ({error}); reinstall redteam"
        ) from error
    return Loaded(net.to(device).eval().requires_grad_(False), card)


def open_tiny(options: ModelOptions, ctx: Context, role: str = "target") -> TinyModel:
    """Open `tiny:`. role: under which name the ledger counts.

    Raises:
        ConfigError: an option it cannot follow. DataError: the shipped weights were changed.
    """
    if options.backend != "tiny" or options.name:
        raise ConfigError(f"model: expected 'tiny:', which has no variants, got '{options.model}'")
    if options.dtype != "float32":
        raise ConfigError(f"dtype: tiny: runs in float32, got {options.dtype}")
    if options.system is not None and options.template != "chat":
        raise ConfigError("system: a raw prompt has no system message; use --target-template chat")
    return TinyModel(load_network(ctx.device.name), options, ctx, role)


@dataclass(eq=False)
class TinyModel:
    """The embedded network behind its template. A `redteam.llm.language.LanguageModel`; see there."""

    loaded: Loaded
    options: ModelOptions
    ctx: Context
    role: str = "target"
    kind: Literal["language-model"] = "language-model"

    @property
    def template(self) -> Template:
        """`raw` or `chat`."""
        return self.options.template

    @property
    def window(self) -> int:
        """The most tokens of a prompt and its answer together."""
        return self.loaded.net.shape.window

    # ------------------------------------------------------------ text

    def tokenize(self, text: str) -> list[int]:
        """The bytes of a text. Raises DataError for half a surrogate pair."""
        return to_bytes(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids: control ids have none, and bytes that are no UTF-8 become U+FFFD."""
        self._check_ids(ids)
        return bytes(i for i in ids if i < BYTES).decode(errors="replace")

    def encode(self, prompt: str) -> list[int]:
        """Ids as the network gets them. Raises like `tokenize`."""
        return frame(None, raw=prompt) if self.template == "raw" else frame(prompt, self.options.system)

    def target_ids(self, target: str) -> list[int]:
        """The bytes of `target`. Raises like `tokenize`."""
        return to_bytes(target)

    @property
    def vocabulary(self) -> np.ndarray:
        """(95,) int64: the printable ASCII bytes."""
        return np.arange(32, 127)

    # ------------------------------------------------------------ the network

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        """One completion each; it ends at a control id, after `max_tokens`, or where the window is full.

        Raises:
            ConfigError: a sampling that cannot be. DataError: a prompt that is no text.
        """
        return self.answer([self.encode(p) for p in prompts], prompts, sampling)

    def answer(
        self, contexts: Sequence[Sequence[int]], names: Sequence[str], sampling: Sampling
    ) -> list[Completion]:
        """What `generate` does, with ids. names: what the draws of each depend on."""
        if sampling.max_tokens < 1 or sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
            raise ConfigError(
                f"expected max_tokens >= 1, temperature >= 0 and 0 < top_p <= 1, got {sampling}"
            )
        found: dict[int, Completion] = {}
        for rows in self._batches(contexts, 1):
            length = len(contexts[rows[0]])
            most = min(sampling.max_tokens, self.loaded.net.shape.window - length)
            spent, tokens_in = 0, length * len(rows)
            ticket = self.ctx.ledger.reserve(
                model=self.options.model, role=self.role, queries=len(rows),
                tokens_in=tokens_in, tokens_out=most * len(rows), free=True,
            )  # fmt: skip
            try:
                answers = decode(
                    self.loaded.net, self._tensor([contexts[i] for i in rows]), most,
                    sampling, [names[i] for i in rows],
                )  # fmt: skip
                spent = sum(map(len, answers))
            finally:
                self.ctx.ledger.settle(ticket, tokens_in=tokens_in, tokens_out=spent)
            for i, ids in zip(rows, answers, strict=True):
                ended = ids[-1] >= BYTES
                found[i] = Completion(
                    text=self.detokenize(ids), finish="stop" if ended else "length",
                    tokens_in=length, tokens_out=len(ids),
                )  # fmt: skip
        return [
            found.get(i) or Completion(text="", finish="error", message=self._too_long(ids, 1))
            for i, ids in enumerate(contexts)
        ]

    @torch.inference_mode()
    def score(self, prompts: Sequence[str], target: str) -> list[Scores]:
        """Exact log-probabilities of `target` after each prompt, in one pass over both.

        Raises:
            DataError: an empty target, or a string that is no text.
        """
        wanted = self.target_ids(target)
        if not wanted:
            raise DataError("expected a target of at least one character, got an empty string")
        contexts = [self.encode(p) for p in prompts]
        found: dict[int, Scores] = {}
        for rows in self._batches(contexts, len(wanted)):
            total = len(contexts[rows[0]]) + len(wanted)
            self._count(len(rows), total * len(rows), 0)
            ids = self._tensor([contexts[i] + wanted[:-1] for i in rows])
            logits = self.loaded.net(ids, last=len(wanted)).double()
            y = torch.tensor(wanted, device=ids.device).expand(len(rows), -1)
            logprobs = logits.log_softmax(-1).gather(2, y[..., None])[..., 0].cpu().numpy()
            greedy = (logits.argmax(-1) == y).cpu().numpy()
            for k, i in enumerate(rows):
                found[i] = Scores(logprobs=logprobs[k].copy(), greedy=greedy[k].copy(), tokens_in=total)
        return [
            found.get(i)
            or Scores(logprobs=np.zeros(0), finish="error", message=self._too_long(ids, len(wanted)))
            for i, ids in enumerate(contexts)
        ]

    @torch.inference_mode()
    def next_token(
        self, prompt: str, answer: Sequence[int], *, k: int, bias: Mapping[int, float] | None = None
    ) -> NextToken:
        """The `k` most likely next tokens; `bias` also moves the log-probabilities that are returned.

        Raises:
            CapabilityError: k above the size of the vocabulary. DataError: an id that is no token.
        """
        if not 1 <= k <= VOCABULARY:
            raise CapabilityError(f"expected k from 1 to {VOCABULARY}, the size of the vocabulary, got {k}")
        self._check_ids((*answer, *(bias or {})))
        ids = [*self.encode(prompt), *answer]
        for _ in self._batches([ids], 1):
            self._count(1, len(ids), 1)
            logits = self.loaded.net(self._tensor([ids]), last=1)[0, 0].double().cpu()
            for token, added in (bias or {}).items():
                logits[token] += added
            top = logits.log_softmax(-1).topk(k)
            values = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            return NextToken(top=values, chosen=int(logits.argmax()), tokens_in=len(ids))
        return NextToken(top={}, chosen=-1, finish="error", message=self._too_long(ids, 1))

    def capabilities(self) -> Capabilities:
        """Everything: the network is here."""
        return Capabilities(
            prompt_logprobs=True, top_k=VOCABULARY, bias_steers=True, bias_moves=True, tokenizer=True
        )

    def fingerprint(self) -> dict[str, Any]:
        """sha256 of the weights, template, system message and versions."""
        return {
            "backend": "tiny",
            "content": self.loaded.card["sha256"],
            "version": self.loaded.card["version"],
            "dtype": self.options.dtype,
            "template": self.template,
            "system": self.options.system,
            "torch": importlib.metadata.version("torch"),
        }

    # ------------------------------------------------------------ inside

    def _batches(self, contexts: Sequence[Sequence[int]], room: int) -> Iterator[list[int]]:
        """Rows of equal length, at most `batch` together; those without `room` more positions are left out."""
        by_length: dict[int, list[int]] = {}
        for i, ids in enumerate(contexts):
            if len(ids) + room <= self.loaded.net.shape.window:
                by_length.setdefault(len(ids), []).append(i)
        for rows in by_length.values():
            for start in range(0, len(rows), self.options.batch):
                self.ctx.limits.check_time()
                yield rows[start : start + self.options.batch]

    def _too_long(self, ids: Sequence[int], room: int) -> str:
        return (
            f"{len(ids)} tokens and {room} more exceed the model's window of {self.loaded.net.shape.window}; "
            "shorten the prompt"
        )

    def _tensor(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=self.loaded.net.embed.weight.device)

    def _check_ids(self, ids: Sequence[int]) -> None:
        if wrong := [i for i in ids if not 0 <= i < VOCABULARY]:
            raise DataError(f"expected ids of tokens from 0 to {VOCABULARY - 1}, got {wrong[0]}")

    def _count(self, queries: int, tokens_in: int, tokens_out: int) -> None:
        """Book a batch before it runs, so that no cap is passed."""
        self.ctx.ledger.count(
            model=self.options.model, role=self.role,
            queries=queries, tokens_in=tokens_in, tokens_out=tokens_out,
        )  # fmt: skip


@torch.inference_mode()
def decode(
    net: Transformer, ids: torch.Tensor, most: int, sampling: Sampling, prompts: Sequence[str]
) -> list[list[int]]:
    """Let each row grow until a control id, or by `most` ids. ids: (B, L). The control id is included.

    A sampled row draws from a stream of its own: of the seed, its prompt and the sample's index.
    """
    cache, length = Cache(), ids.shape[1]
    draws = np.stack(
        [SeedPath(sampling.seed, (p, str(sampling.index))).numpy().random(most) for p in prompts]
    )
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for step in range(most):
        logits = net(ids, last=1, cache=cache)[:, 0]
        chosen = choose(logits, sampling, torch.from_numpy(draws[:, step]))
        ids = torch.cat((ids, chosen[:, None]), 1)
        ended |= chosen >= BYTES
        if ended.all():
            break
    answers = []
    for row in ids[:, length:].tolist():
        stop = next((i for i, token in enumerate(row) if token >= BYTES), len(row))
        answers.append(row[: stop + 1])
    return answers


def choose(logits: torch.Tensor, sampling: Sampling, draws: torch.Tensor) -> torch.Tensor:
    """One id for each row. logits: (B, V). draws: (B,) uniform in [0, 1). Returns (B,) int64.

    Greedy at temperature 0, else softmax(logits / temperature) cut to the nucleus: the likeliest ids that
    first reach the mass `top_p` (remembered: nucleus sampling, Holtzman et al., 2020).
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    p = (logits.double() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ordered, order = p.sort(stable=True, dim=-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        p = p.masked_fill(outside.gather(-1, order.argsort(-1)), 0.0)
    cumulative = p.cumsum(-1)
    at = draws.to(logits.device)[:, None] * cumulative[:, -1:]
    last = p.shape[-1] - 1 - (p > 0).flip(-1).to(torch.int64).argmax(-1)
    return torch.minimum(torch.searchsorted(cumulative, at, right=True)[:, 0], last)
