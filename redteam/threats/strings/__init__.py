"""Strings: a language model is made to say exactly a given string.

The attacker puts prompts to a model and sees what it returns: log-probabilities, or only text. It wants the exact
string under greedy decoding, with as few queries as it can. A defence refuses suspicious prompts, answers by the
majority over changed copies, or rewrites the prompt. The scorer asks the model afresh, several times, and puts beside
it the start of the search and the plain request. Headline metrics: `success`, `search_lift`, and success over queries.
"""

from pathlib import Path

from redteam.core.threat import TargetEntry, Threat

THREAT = Threat(
    name="strings",
    targets=(
        TargetEntry(
            kind="language-model", threat="strings", target="language-model", artifact="strings",
            type="redteam.threats.strings.seam:LANGUAGE_MODEL",
        ),
    ),
    board=Path(__file__).with_name("board.toml"),
)  # fmt: skip
