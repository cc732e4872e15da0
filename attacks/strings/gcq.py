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

from attacks.strings._attack import string_spec
from attacks.strings._search import StringSearch, searching

SMOKE = StringSearch(max_queries=32)
PAPER = StringSearch(
    length=20, buffer=128, batch=32, proxy_batch=8192, proxy="hf:mistralai/Mistral-7B-v0.1", max_queries=100_000,
    max_usd=0.2,
)  # fmt: skip

SPEC = string_spec(
    "gcq", searching("gcq"), StringSearch, {"smoke": SMOKE, "paper": PAPER}, small={"init": "random"},
    controls=("no-string", "plain-request", "init-only", "random-search", "random-init", "transfer-only"),
)  # fmt: skip
