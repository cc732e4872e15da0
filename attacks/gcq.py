"""GCQ: an adversarial string, found with queries alone, that makes a language model say a given string.

Threat: the attacker chooses the prompt and reads log-probabilities as far as the model returns them. It
holds no weights. It wins if greedy decoding gives the target string exactly.

Method. Begin with the target repeated. Keep the best candidates in a buffer. Each step swaps one token
of the best one many times over, lets a local proxy order the results, asks the target for the loss of the
first few, -log P(target | prompt), and keeps those that are no worse than the buffer's worst. A candidate
whose partial sum is already worse is given up: its number is a lower bound and is never used as a loss.
Only strings are scored that come back from decoding and encoding the full prompt unchanged.

Source: [hayase2024gcq], algorithm 1 and sections 3.1 to 3.3, appendices B and C.
Deviations: the text calls the search best-first over unexplored nodes, the printed algorithm never
removes an expanded one; `expand` picks (repeat is the printed form). The buffer starts with the initial
string alone and fills as the search goes. `proxy=none` skips the proxy stage: the target ranks its own
candidates. `loss=bias-search` is for endpoints whose log-probabilities logit_bias does not move.
Expect: repeated-target initialisation alone solves a share of short strings; read success only beside it.
"""

from __future__ import annotations

from dataclasses import replace

from attacks._shared.string_search import Setting, StringSearch, best_of, prepare, search_one, search_rows
from attacks._shared.strings import TARGETS, THREAT, Row, assemble, request_of
from redteam.artifacts import Strings
from redteam.context import Context
from redteam.errors import ConfigError
from redteam.llm.target import LanguageTarget
from redteam.types import Preset, Published, Spec


def run(target: LanguageTarget, config: StringSearch, ctx: Context) -> Strings:
    """One search a string, or one for all of them. Returns the strings artifact."""
    setting = prepare(target, config, ctx, "gcq", SPEC.version)
    rows = _universal(setting) if config.universal else search_rows(setting)
    return assemble(rows, config, setting.notes(), target.model)


def _universal(setting: Setting) -> list[Row]:
    """One string for all targets, searched on the first part of them; the rest validate it.

    Queries are booked in equal parts on the strings that were searched on.

    Raises:
        ConfigError: nothing is left to search on.
    """
    config, goals, model = setting.config, setting.goals, setting.model
    train = len(goals) - round(config.validation * len(goals))
    if train < 1:
        raise ConfigError("universal: no string is left to search on; lower --validation")
    whole = replace(setting, config=replace(config, max_queries=config.max_queries * train))
    state, first = search_one(whole, 0, goals[:train], config.variant)
    texts = [model.detokenize(ids) for ids in (best_of(state, first), first)]
    rows = []
    for index, goal in enumerate(goals):
        request, searched = request_of(config, goal), index < train
        part = replace(
            state, queries=state.queries // train if searched else 0,
            tokens=state.tokens // train if searched else 0, usd=state.usd / train if searched else 0.0,
            found=state.found if searched else None, best=state.best if searched else None,
            trace=[] if index else state.trace, proxy_queries=0 if index else state.proxy_queries,
        )  # fmt: skip
        part.found_at = (part.queries, part.tokens, part.usd) if part.found else (-1, -1, -1.0)
        rows.append(Row(goal, request + texts[0], request + texts[1], part))
    return rows


_PAPER = "Query-Based Adversarial Prompt Generation, section 4.3, second-hand"
_PAPER_CELL = {"task.model": "openai:gpt-3.5-turbo-instruct-0914", "attack.config.max_usd": 0.2}

SPEC = Spec(
    name="gcq",
    kind="attack",
    version="1",
    config=StringSearch,
    run=run,
    threat=THREAT,
    source="hayase2024gcq",
    controls=("no-string", "plain-request", "init-only", "random-search", "random-init", "transfer-only"),
    presets={
        "default": Preset(config=StringSearch(), target=TARGETS["default"]),
        "smoke": Preset(config=StringSearch(max_queries=32), target=TARGETS["smoke"]),
        "cpu": Preset(config=StringSearch(), target=TARGETS["cpu"]),
        "paper": Preset(
            config=StringSearch(
                length=20,
                buffer=128,
                batch=32,
                proxy_batch=8192,
                proxy="hf:mistralai/Mistral-7B-v0.1",
                max_queries=100_000,
                max_usd=0.2,
            ),
            target=TARGETS["paper"],
        ),
    },
    published=(
        Published(metric="success_found", value=0.86, source="hayase2024gcq", where=_PAPER, when=_PAPER_CELL),
    ),
)
