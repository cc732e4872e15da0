"""The nouns of language-model targets: prompts in, text and log-probabilities out.

A prompt is the user's text. The model puts its own template round it, so an attack handles one kind of
string whether the target completes raw text or chats. Nothing here imports torch or numpy at run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

    from redteam.core.types import TargetKind

Template = Literal["raw", "chat"]
# stop: ended by itself; length: cut by max_tokens; refused: a defence or the model said no in its own
# channel; filtered: the provider's content filter; error, timeout: no answer came.
Finish = Literal["stop", "length", "refused", "filtered", "error", "timeout"]
ANSWERED: tuple[Finish, ...] = ("stop", "length")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a completion is drawn. temperature 0 is greedy decoding.

    index: which of several samples of one prompt this is. It is part of a cache key, so asking for a
    fresh sample never gives an old one back.
    """

    max_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What came back for one prompt. message: why there is no answer, without secrets."""

    text: str
    finish: Finish
    tokens_in: int = 0
    tokens_out: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How likely a model finds a given target after one prompt.

    logprobs: (t,) float64, log p(y_i | prompt, y_<i) in nats for each target token; empty if it was
    not scored. greedy: (t,) bool, whether y_i is the argmax of its step; None where the model does not
    tell. finish: `stop` if scored, else why not (see `Finish`).
    """

    logprobs: np.ndarray
    greedy: np.ndarray | None = None
    finish: Finish = "stop"
    tokens_in: int = 0
    message: str = ""

    @property
    def loss(self) -> float:
        """-log P(target | prompt) in nats; infinite if the prompt got no answer."""
        return -float(self.logprobs.sum()) if self.finish in ANSWERED else float("inf")

    @property
    def exact(self) -> bool:
        """Whether greedy decoding gives the whole target (teacher-forced argmax at every step)."""
        return self.finish in ANSWERED and self.greedy is not None and bool(self.greedy.all())


@dataclass(frozen=True, slots=True, kw_only=True)
class NextToken:
    """The most likely next tokens: id to log-probability in nats as the endpoint reports it.

    chosen: the id that was decoded (with the bias, greedily), or -1 if its id is not known.
    """

    top: Mapping[int, float]
    chosen: int
    finish: Finish = "stop"
    tokens_in: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a model was seen to do, by probing it (`redteam.llm.probe`), not by its name.

    prompt_logprobs: `score` returns the log-probability of every target token. top_k: the most
    alternatives `next_token` returns; 0 means none. bias_steers: `logit_bias` changes what is decoded.
    bias_moves: it also changes the log-probabilities that are returned. tokenizer: `tokenize` works.
    repeatable: the same greedy request gave the same text twice. reasons: for each thing it cannot do, what was seen.
    """

    prompt_logprobs: bool = False
    top_k: int = 0
    bias_steers: bool = False
    bias_moves: bool = False
    tokenizer: bool = False
    repeatable: bool = True
    reasons: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class LanguageModel(Protocol):
    """A language model behind its template: the target of strings, extraction and agent attacks.

    Methods take many prompts and answer in their order. A prompt that fails gets a `Completion` or
    `Scores` whose `finish` says so; only spent budgets and wrong input raise.
    """

    @property
    def kind(self) -> TargetKind:
        """`language-model`."""

    @property
    def template(self) -> Template:
        """`raw`: the prompt is continued. `chat`: it is the user's message."""

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        """One completion for each prompt."""

    def score(self, prompts: Sequence[str], target: str) -> list[Scores]:
        """Log-probability of `target` as the whole beginning of the answer to each prompt.

        Raises:
            CapabilityError: the model cannot tell.
        """

    def next_token(
        self, prompt: str, answer: Sequence[int], *, k: int, bias: Mapping[int, float] | None = None
    ) -> NextToken:
        """The `k` most likely tokens after `prompt` and the beginning `answer` of its answer.

        bias: id to what is added to its logit before decoding.

        Raises:
            CapabilityError: the model cannot tell.
        """

    def tokenize(self, text: str) -> list[int]:
        """Ids of bare text, without special tokens."""

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids."""

    def encode(self, prompt: str) -> list[int]:
        """Ids of the whole prompt as it is sent, template included where that is known."""

    def target_ids(self, target: str) -> list[int]:
        """Ids of `target` at the beginning of an answer."""

    @property
    def vocabulary(self) -> np.ndarray:
        """(V,) int64 ids of ordinary tokens: printable text that no template or control token is."""

    def capabilities(self) -> Capabilities:
        """What it can do; probed once."""

    def fingerprint(self) -> dict[str, Any]:
        """What decides its answers: content digest, tokenizer, template, dtype, backend version. No secret."""


@runtime_checkable
class TextClassifier(Protocol):
    """A moderation classifier: text in, scores of its categories out."""

    @property
    def kind(self) -> TargetKind:
        """`text-classifier`."""

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories, in the order of the scores."""

    def classify(self, texts: Sequence[str]) -> list[Verdict]:
        """One verdict for each text."""

    def fingerprint(self) -> dict[str, Any]:
        """What decides its answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a classifier says of one text. scores: (categories,) in [0, 1]. flagged: its own decision."""

    scores: np.ndarray
    flagged: bool
    finish: Finish = "stop"
    message: str = ""


@runtime_checkable
class PromptFilter(Protocol):
    """A defended model that refuses suspicious prompts. An attack that adapts may ask what it thinks."""

    @property
    def threshold(self) -> float:
        """Prompts whose suspicion is above it are refused."""

    def suspicion(self, prompts: Sequence[str]) -> np.ndarray:
        """(n,) float64 in the filter's own unit, such as nats a token."""


@dataclass(frozen=True)
class Goal:
    """One string to elicit. tokens: its ids at the beginning of an answer."""

    id: str
    text: str
    tokens: tuple[int, ...]
