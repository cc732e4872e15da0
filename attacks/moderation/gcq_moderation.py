"""GCQ against a moderation classifier: a suffix after which a text is no longer flagged.

Threat: the attacker appends a suffix and sees the category scores, as moderation endpoints return them. It
does not know the thresholds, so it lowers the sum of all scores; success is judged on flags. The suffix is
searched for each text by itself, or once for all: then part of the texts is held out and judges it.

Source: [hayase2024gcq], sections 4.5 and 4.6 (loss, 5- and 20-token suffixes, 20 training strings).
Deviations: no proxy stage; the tokens are words or printable characters of an alphabet of our own, since
a moderation endpoint shows no tokenizer. Scores are no less than zero, so a candidate whose partial sum
over the training texts is above the buffer's worst is given up.
Controls are in the record itself: each text without a suffix (part of the texts pass unattacked, 34 % in
the paper) and with a random one of the same length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from redteam.core.config import Checked, knob, to_json
from redteam.core.context import Context
from redteam.core.errors import ConfigError
from redteam.core.types import Preset, Spec, ThreatModel
from redteam.data.words import common_words
from redteam.llm.language import ANSWERED
from redteam.llm.search import moves
from redteam.llm.search.losses import Loss
from redteam.llm.search.moves import Ids
from redteam.llm.search.search import Rules, Search
from redteam.llm.search.state import State
from redteam.threats.moderation.artifact import Suffixes
from redteam.threats.moderation.target import ModerationTarget

THREAT = ThreatModel(
    kind="moderation",
    target="text-classifier",
    access=("a suffix of the text",),
    budget="texts put to the classifier for each text, and tokens of the suffix",
    knowledge=("category scores of the classifier",),
    goal="a text that would be flagged is not",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuffixSearch(Checked):
    """The knobs of a search for suffixes."""

    length: int = knob(5, "tokens of the suffix", low=1)
    alphabet: Literal["words", "characters"] = knob("words", "what a token is")
    max_queries: int = knob(320, "texts put to the classifier for each text searched on, at most", low=1)
    buffer: int = knob(32, "candidates kept", low=1)
    batch: int = knob(32, "candidates put to the classifier in one step", low=1)
    expand: Literal["repeat", "once"] = knob("repeat", "whether a candidate's neighbours may be drawn again")
    margin: float = knob(0.0, "by how much a candidate's mean score must be below the buffer's worst", low=0)
    universal: bool = knob(False, "one suffix for all texts; the target's validation share is held out")

    def rules(self, texts: int) -> Rules:
        """What the search loop needs."""
        return Rules(
            max_queries=self.max_queries * texts, buffer=self.buffer, batch=self.batch, expand=self.expand,
            margin=self.margin,
        )  # fmt: skip


@dataclass(frozen=True)
class Alphabet:
    """Tokens of a suffix: words between spaces, or characters. Ids are their places in `tokens`."""

    tokens: tuple[str, ...]
    joint: str

    @classmethod
    def named(cls, name: str) -> Alphabet:
        """`words` of the embedded list, or printable ASCII `characters`."""
        if name == "words":
            return cls(common_words(), " ")
        return cls(tuple(map(chr, range(32, 127))), "")

    @cached_property
    def _places(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    @property
    def vocabulary(self) -> np.ndarray:
        """(V,) int64."""
        return np.arange(len(self.tokens))

    def tokenize(self, text: str) -> list[int]:
        """Ids of a suffix."""
        return [self._places[t] for t in (text.split(self.joint) if self.joint else text)]

    def detokenize(self, ids: Sequence[int]) -> str:
        """The suffix."""
        return self.joint.join(self.tokens[i] for i in ids)

    encode = tokenize


@dataclass
class ModerationObjective:
    """The sum of category scores, averaged over texts that carry the candidate suffix."""

    target: ModerationTarget
    alphabet: Alphabet
    texts: Sequence[str]
    ctx: Context

    @property
    def width(self) -> int:
        """Queries a candidate takes."""
        return len(self.texts)

    def __call__(self, candidates: Sequence[Ids], bound: float, parents: Sequence[Loss | None]) -> list[Loss]:
        """Mean score sums; success where no text is flagged."""
        sums, clear = np.zeros(len(candidates)), np.ones(len(candidates), bool)
        finish, asked = ["stop"] * len(candidates), np.zeros(len(candidates), int)
        suffixes = [self.alphabet.detokenize(ids) for ids in candidates]
        for text in self.texts:
            alive = [i for i in range(len(candidates)) if sums[i] <= bound * self.width]
            verdicts = self.target.classifier.classify([join(text, suffixes[i]) for i in alive])
            for i, verdict in zip(alive, verdicts, strict=True):
                asked[i] += 1
                answered = verdict.finish in ANSWERED
                sums[i] += float(verdict.scores.sum()) if answered else math.inf
                clear[i] &= answered and not verdict.flagged
                finish[i] = finish[i] if answered else verdict.finish
        whole = asked == len(self.texts)
        return [
            Loss(float(sums[i]) / self.width, "exact" if whole[i] or math.isinf(sums[i]) else "cut",
                 bool(clear[i] and whole[i]), (), finish[i])  # type: ignore[arg-type]
            for i in range(len(candidates))
        ]  # fmt: skip

    def confirm(self, candidate: Ids) -> bool:
        """Never needed: verdicts say whether a text is flagged."""
        return False

    def spent(self) -> tuple[int, int, float]:
        """Requests, tokens and US dollars booked so far."""
        spent = self.ctx.ledger.spent("target")
        return spent.requests, spent.tokens_in + spent.tokens_out, spent.usd


def join(text: str, suffix: str) -> str:
    """The text as it is sent."""
    return f"{text} {suffix}"


def _search(
    target: ModerationTarget, config: SuffixSearch, ctx: Context, index: int, texts: Sequence[str]
) -> tuple[State, str, str]:
    """(state, suffix, random suffix) of one search."""
    alphabet, ctx = Alphabet.named(config.alphabet), ctx.at("text", index)
    identity = {
        "attack": SPEC.name, "version": SPEC.version, "config": to_json(config), "texts": list(texts),
        "target": target.fingerprint(), "seed": str(ctx.seeds),
    }  # fmt: skip

    def fresh(rng: np.random.Generator) -> Ids:
        return moves.random_string(alphabet, "", config.length, rng)

    search = Search(
        objective=ModerationObjective(target, alphabet, texts, ctx), rules=config.rules(len(texts)),
        draw=lambda ids, rng, places: moves.neighbours(alphabet, "", ids, rng, places), fresh=fresh,
        checkpoint=ctx.checkpoint(f"text-{index}", identity), ctx=ctx, name=f"text {index + 1}",
    )  # fmt: skip
    state, first = search.run(fresh)
    best = state.found or (state.best.ids if state.best else first)
    return state, alphabet.detokenize(best), alphabet.detokenize(fresh(ctx.rng("control")))


def run(target: ModerationTarget, config: SuffixSearch, ctx: Context) -> Suffixes:
    """A suffix for each text, or one for all of them. Returns the suffixes artifact."""
    texts = target.texts.texts
    if target.validation and not config.universal:
        raise ConfigError("texts are held out for a universal suffix only; add --universal, or hold out none")
    before = [
        float(v.scores.sum()) if v.finish in ANSWERED else math.nan for v in target.classifier.classify(texts)
    ]
    if config.universal:
        train = target.train
        state, suffix, random = _search(target, config, ctx, 0, [texts[i] for i in train])
        share = replace(state, queries=state.queries // len(train))
        found = [(share if i in train else None, suffix, random) for i in range(len(texts))]
    else:
        found = [_search(target, config, ctx, i, [text]) for i, text in enumerate(texts)]
    sent = [join(text, suffix) for text, (_, suffix, _) in zip(texts, found, strict=True)]
    scores = [_score_of(state) for state, _, _ in found]
    return Suffixes(
        ids=target.texts.ids, texts=texts, sent=tuple(sent),
        control=tuple(join(text, random) for text, (_, _, random) in zip(texts, found, strict=True)),
        split=target.split,
        finish=tuple(state.finish if state else "stop" for state, _, _ in found),
        queries=np.array([state.queries if state else 0 for state, _, _ in found], np.int64),
        score_before=np.array(before, np.float64), score_after=np.array(scores, np.float64),
        notes=_notes(target, config, found),
    )  # fmt: skip


def _score_of(state: State | None) -> float:
    """The lowest mean score that a search saw; not a number where it saw none."""
    if state is None:
        return math.nan
    if state.found is not None:
        return math.nan if state.found_loss is None else state.found_loss
    return state.best.loss.value if state.best is not None else math.nan


def _notes(target: ModerationTarget, config: SuffixSearch, found: Sequence[Any]) -> dict[str, Any]:
    return {
        "caps": {"queries": config.max_queries}, "universal": config.universal,
        "suffixes": [suffix for _, suffix, _ in found][: 1 if config.universal else None],
        "classifier": target.classifier.fingerprint(),
    }  # fmt: skip


SPEC = Spec(
    name="gcq-moderation",
    kind="attack",
    version="1",
    config=SuffixSearch,
    run=run,
    threat=THREAT,
    source="hayase2024gcq",
    presets={
        "default": Preset(config=SuffixSearch(), target={"strings": 40}),
        "smoke": Preset(config=SuffixSearch(max_queries=32), target={"strings": 4}),
        "universal": Preset(
            config=SuffixSearch(universal=True, max_queries=3200), target={"validation": 0.75}
        ),
        "paper": Preset(
            config=SuffixSearch(length=20),
            target={"model": "openai:text-moderation-007"},
        ),
    },
)
