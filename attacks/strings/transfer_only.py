"""Control of string attacks: search on the proxy alone, and send what it found to the target once.

Source: [hayase2024gcq], section 4.1, whose pure-transfer rows are zero. The proxy is the attack's; where it
has none, the embedded model, behind the other template if that is the target itself. The search has the
attack's budget of queries, spent on the proxy, and the target is asked once.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from attacks.strings._attack import Row, assemble, check_model, request_of, string_spec
from attacks.strings._objective import StringObjective
from attacks.strings._search import Setting, StringSearch, search_row
from redteam.core.config import to_json
from redteam.core.context import Context
from redteam.llm.language import Goal, LanguageModel
from redteam.llm.opening import open_model
from redteam.llm.options import ModelOptions
from redteam.llm.search import moves
from redteam.llm.search.losses import Loss, from_prompt_logprobs
from redteam.llm.search.state import State
from redteam.threats.strings.artifact import Strings
from redteam.threats.strings.target import LanguageTarget


def _proxy_options(target: LanguageTarget, config: StringSearch) -> ModelOptions:
    name = "tiny:" if config.proxy == "none" else config.proxy
    same = name == target.config.model and target.config.template == "raw"
    return ModelOptions(model=name, template="chat" if same else "raw")


def run(target: LanguageTarget, config: StringSearch, ctx: Context) -> Strings:
    """Search each string on the proxy, with the proxy's own tokens; cut to the target's; send once."""
    check_model(target.model)
    options = _proxy_options(target, config)
    proxy = open_model(options, ctx, "proxy")
    local = replace(
        config, proxy="none", loss="prompt-logprobs", max_tokens=None, max_usd=None, universal=False
    )
    identity = {
        "attack": "transfer-only", "version": SPEC.version, "config": to_json(config),
        "target": target.model.fingerprint(), "proxy": proxy.fingerprint(),
    }  # fmt: skip
    rows = []
    for index, goal in enumerate(target.goals):
        own = replace(local, length=_room(target, proxy, local, goal))
        goals = [Goal(g.id, g.text, tuple(proxy.target_ids(g.text))) for g in target.goals]
        setting = Setting(
            proxy, goals, own, ctx, "prompt-logprobs", from_prompt_logprobs(proxy), identity, role="proxy"
        )
        rows.append(_send(target, local, goal, search_row(setting, index, local.variant), ctx))
    notes = {"loss": "prompt-logprobs", "proxy": options.model, "proxy_model": proxy.fingerprint()}
    return assemble(rows, config, notes, target.model)


def _room(target: LanguageTarget, proxy: LanguageModel, config: StringSearch, goal: Goal) -> int:
    """Tokens that the proxy needs for what `length` tokens of the target hold: its own are of another size."""
    ids = moves.repeated(target.model, request_of(config, goal), goal.tokens, config.length)
    return max(1, len(proxy.tokenize(target.model.detokenize(ids))))


def _send(target: LanguageTarget, config: StringSearch, goal: Goal, row: Row, ctx: Context) -> Row:
    """The string that the proxy gave, cut to `length` tokens of the target, and the target's answer to it."""
    model, request = target.model, request_of(config, goal)
    texts = []
    for prompt in (row.prompt, row.initial):
        ids = moves.canonical(model, request, model.tokenize(prompt.removeprefix(request)), config.length)
        texts.append(model.detokenize(ids))
    state = State(np.random.default_rng(0), queries=1, done=True)
    assert row.state is not None
    state.proxy_queries = row.state.queries
    objective = StringObjective(model, _unused, [request], [goal], ctx)
    before = objective.spent()
    ids = tuple(model.tokenize(texts[0]))
    state.found = ids if objective.confirm(ids) else None
    requests, tokens, usd = (now - then for now, then in zip(objective.spent(), before, strict=True))
    state.requests, state.tokens, state.usd = requests, tokens, usd
    state.found_at = (1, state.tokens, state.usd) if state.found else (-1, -1, -1.0)
    return Row(goal, request + texts[0], request + texts[1], state)


def _unused(*_: object) -> list[Loss]:
    raise AssertionError("transfer asks the target for no loss")


SPEC = string_spec("transfer-only", run, StringSearch, role="control")
