"""Retokenization: break words of a prompt at their token boundaries, so that it is read as other tokens.

Threat: strings. The defender changes the text of each prompt before the model sees it. Against prompts
whose effect hangs on one sequence of tokens: between two tokens that lie within a word, a space is put
with probability `rate`.

Source: [jain2023baseline]. Its released README says that its retokenization is BPE-dropout (leaving out merges of the
tokenizer at random, [provilkov2020bpedropout]) through the tokenizer's own switch; the paper's text was not at hand.

Deviations, and they are large. A model behind an interface takes text, not tokens, so here the text is
changed: BPE-dropout splits tokens and keeps every character, this keeps tokens apart that the
tokenizer had split already and adds spaces. A word that is a single token is never touched, so ordinary
English changes little and a word of gibberish, of many tokens, much; a byte-level target has a boundary
at every character. A string that the prompt repeats is broken up as well. "Within a word" means between two
characters that are not white space. Do not compare with the paper's numbers.

The same prompt is always split in the same way, from the run's seed and the prompt: an attack that asks
the defended model sees the splits it will meet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from defenses.strings._guard import Blocked, Rewritten, guard_spec
from redteam.core.config import Checked, knob
from redteam.core.errors import CapabilityError
from redteam.core.hashing import digest_json

if TYPE_CHECKING:
    from redteam.core.context import Context
    from redteam.core.seeding import SeedPath
    from redteam.llm.language import LanguageModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Checked):
    """The splits."""

    rate: float = knob(0.2, "probability of a space at a token boundary within a word", low=0, high=1)


def boundaries(
    text: str, tokenize: Callable[[str], list[int]], detokenize: Callable[[Sequence[int]], str]
) -> list[int]:
    """Places of `text`, in characters and in order, where a token ends within a word.

    Boundaries within a character are left out. A tokenizer whose pieces do not add up to the text is
    asked for the text of each prefix instead, and only true prefixes count.
    """
    ids = tokenize(text)
    pieces = [detokenize([i]) for i in ids]
    if "".join(pieces) == text:
        ends = np.cumsum([len(piece) for piece in pieces]).tolist()
    else:
        prefixes = (detokenize(ids[:i]) for i in range(1, len(ids)))
        ends = [len(prefix) for prefix in prefixes if text.startswith(prefix)]
    inner = [e for e in dict.fromkeys(ends) if 0 < e < len(text)]
    return [e for e in inner if not text[e - 1].isspace() and not text[e].isspace()]


def split(text: str, places: Sequence[int], rate: float, rng: np.random.Generator) -> str:
    """`text` with a space put at each of `places`, in increasing order, with probability `rate`."""
    chosen = [place for place, u in zip(places, rng.random(len(places)), strict=True) if u < rate]
    return " ".join(text[a:b] for a, b in zip([0, *chosen], [*chosen, len(text)], strict=True))


def rewrite(target: LanguageModel, rate: float, seeds: SeedPath, texts: Sequence[str]) -> list[str | Blocked]:
    """Each text with its words split, or why it cannot be; what is drawn depends on the text alone."""
    out: list[str | Blocked] = []
    for text in texts:
        try:
            places = boundaries(text, target.tokenize, target.detokenize)
        except CapabilityError as error:  # of this text: it would become control tokens
            out.append(Blocked(message=str(error), finish="error"))
        else:
            out.append(split(text, places, rate, seeds.child(digest_json(text)).numpy()))
    return out


def run(target: LanguageModel, config: Config, ctx: Context) -> Rewritten:
    """The target behind the splits.

    Raises:
        CapabilityError: nobody knows how the target splits text into tokens.
    """
    able = target.capabilities()
    if not able.tokenizer:
        why = able.reasons.get("tokenizer", "no reason was given")
        raise CapabilityError(
            f"retokenization: expected a target whose tokenizer is known, got one without ({why}); "
            "name its tokenizer in the target's options"
        )
    seeds = ctx.seeds.child("retokenization")
    return Rewritten(
        target,
        SPEC,
        config,
        rewrite=partial(rewrite, target, config.rate, seeds),
        details={"seeds": str(seeds)},
    )


SPEC = guard_spec(
    "retokenization", run, "jain2023baseline", {"default": Config()},
    budget="spaces at token boundaries within words", knowledge=("the target's tokenizer",),
    goal="a prompt is not read as the tokens it was made of",
)  # fmt: skip
