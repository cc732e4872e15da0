"""Texts that a moderation classifier is to flag: the embedded set `moderated-topics`.

Harmless stand-ins (weather, cooking, sport, shouting) play the part of moderated content. The texts come
from templates and words the embedded classifier was not fitted on, and from lines written by hand; some only
hint at their topic, so that part of them pass without any attack, as 34 % of the paper's did.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from redteam.core.errors import DataError, UnknownNameError
from redteam.data.nouns import TextDataset
from redteam.data.shipped import EMBEDDED_DIR, read_checked

WEIGHTS = "moderation-weights.npz"
CARD = "moderation-card.json"
TEXTS = "moderated-topics.json"

NAMES = {"moderated-topics": "104 harmless texts on topics the embedded classifier moderates; in the package"}


def read_card(folder: Path = EMBEDDED_DIR) -> dict[str, Any]:
    """The card of the embedded classifier: categories, threshold, digests, accuracy on held-out texts.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text())
        if not {"categories", "sha256", "texts_sha256", "threshold"} <= set(card):
            raise ValueError("it lacks keys")
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / CARD} is missing or damaged ({error}); reinstall redteam") from error
    return card


def load_moderated(name: str = "moderated-topics", folder: Path = EMBEDDED_DIR) -> TextDataset:
    """A set of texts to slip past a filter, and benign ones that it must let through.

    Raises:
        UnknownNameError: no such set. DataError: the shipped file is missing or was changed.
    """
    if name not in NAMES:
        raise UnknownNameError("data set", name, NAMES)
    content = json.loads(read_checked(folder / TEXTS, read_card(folder)["texts_sha256"]))
    return TextDataset(
        name=name,
        ids=tuple(content["ids"]),
        texts=tuple(content["texts"]),
        source="written and generated for redteam (scripts/build_moderation.py); shipped with it",
        licence="MIT",
        benign=tuple(content["benign"]),
    )
