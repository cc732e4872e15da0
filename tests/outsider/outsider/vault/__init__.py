"""Vault: a secret number is guessed by asking whether a guess is right.

A toy threat from outside. The attacker asks a vault about one of its secrets at a time and hears yes or no; it wants
to open as many as it can. A defence locks a secret after some wrong guesses. The scorer holds the attack to its tries,
compares its final guesses with the secrets, and puts the guess 0 beside them. Headline metric: `opened`.
"""

from pathlib import Path

from redteam.core.threat import Command, TargetEntry, Threat

NAMES = {"vault-mini": "60 secrets below 10, drawn with a seed; in the package"}

THREAT = Threat(
    name="vault",
    targets=(
        TargetEntry(
            kind="vault", threat="vault", target="outsider-vault", artifact="guesses",
            type="outsider.vault.seam:VAULT",
        ),
    ),
    board=Path(__file__).with_name("board.toml"),
    datasets=NAMES,
    claims=lambda name: "a set of secrets" if name in NAMES else None,
    commands={"vault": Command(at="outsider.vault.command:vault", help="Print the secrets of a vault.")},
)  # fmt: skip
