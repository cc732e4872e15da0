"""What the model `tiny:` was trained on: every document follows from a seed, so audits know all of it.

English-like prose from a grammar, lines of numbers and code, repeated sequences (they teach copying), chats,
and a few passages that come back many times: how often the model saw each is `multiplicities`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from redteam.core.seeding import SeedPath
from redteam.data.words import Draws, common_words, words

DOCUMENTS = 16_000
SEED = 0
PASSAGES = 16
ALPHABET = "".join(map(chr, range(32, 127)))
UNCLEAR = "I am not sure what you mean. Could you say it in other words?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One training document. user: None for raw text, else `text` is the assistant's answer to it."""

    kind: str
    text: str
    user: str | None = None
    system: str | None = None


def documents(seed: int = SEED, n: int = DOCUMENTS) -> list[Document]:
    """The first `n` training documents; each depends on `seed` and its own number alone."""
    passages = [_passage(SeedPath(seed, ("passage", str(j)))) for j in range(PASSAGES)]
    ranks = [j for j in range(PASSAGES) for _ in range(2 ** (j % 8))]
    out = []
    for i in range(n):
        d = Draws(SeedPath(seed, ("document", str(i))))
        make = d.pick(_MIX)
        out.append(make(d) if make else Document(kind="passage", text=passages[d.pick(ranks)]))
    return out


def corpus(seed: int = SEED, n: int = DOCUMENTS) -> list[str]:
    """The texts of the training documents; the turns of a chat are on lines of their own."""
    return ["\n".join(t for t in (d.system, d.user, d.text) if t is not None) for d in documents(seed, n)]


def multiplicities(seed: int = SEED, n: int = DOCUMENTS) -> dict[str, int]:
    """How often each passage stands in the corpus; passages that were never drawn are left out."""
    return dict(Counter(d.text for d in documents(seed, n) if d.kind == "passage"))


# ---------------------------------------------------------------- pieces of text


_PLURALS = {
    "mouse": "mice", "leaf": "leaves", "shelf": "shelves", "potato": "potatoes", "tomato": "tomatoes",
    "fish": "fish",
}  # fmt: skip


def _plural(noun: str) -> str:
    if noun in _PLURALS:
        return _PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "sh", "ch", "x")) else "s")


_SENTENCES = (
    "The {adjective} {noun} {verb} the {noun}.",
    "The {noun} {adverb} {verb} a {adjective} {noun} {place} the {noun}.",
    "On {day} my {noun} {verb} {number} {adjective} {nouns}.",
    "There is a {adjective} {noun} {place} the {noun}, and it is {adjective}.",
    "{Number} {nouns} were {place} the {adjective} {noun}.",
    "In {month} we {verb} the {noun} and {verb} all the {nouns}.",
    "She {verb} the {noun}, but he {verb} the {adjective} {noun} {adverb}.",
    "This {noun} is {adjective} because it was {place} the {noun} for {number} days.",
    "When the {noun} is {adjective}, the {nouns} are {adjective} too.",
    "I have {number} {nouns} and you have only {number}.",
    "It was {adverb} {adjective} in the {noun}, so they {verb} the {noun}.",
    "We would like to know what is {place} the {noun}.",
)
_LINES = (
    "{Noun} {n}: {n}.{m} kg, {n} x {m} cm",
    "{day} {n} {month} 20{m}, room {n}",
    "{noun}, {noun}, {noun}, {adjective} {noun}, {nouns}",
    "for {noun} in {nouns}: print({noun})",
    "{noun} = {noun} + {n} * {m}",
    "if ({noun} > {n}) { {noun} = {m}; }",
    "{Syllable}{syllable}{syllable} {noun}, pack of {n}, {adjective} and {adjective}",
    "{n}, {m}, {n}, {m}, {n}, {m}",
    "return [{noun}, {noun}, {n}]",
)  # fmt: skip
_QUESTIONS = (
    ("What colour is the {noun0}?", "The {noun0} is {adjective}."),
    ("Where is the {adjective0} {noun0}?", "The {noun0} is {place} the {noun}."),
    ("How many {nouns0} are {place0} the {noun1}?", "There are {number} {nouns0} {place0} the {noun1}."),
    ("Who {verb0} the {noun0}?", "The {adjective} {noun} {verb0} the {noun0}."),
    ("Can you tell me about the {noun0}?", "The {noun0} is {adjective}. The {noun} {verb} it on {day}."),
    ("Please write one line about a {adjective0} {noun0}.", "The {adjective0} {noun0} {verb} the {noun}."),
    ("Why is the {noun0} so {adjective0}?", "It is {adjective0} because the {noun} {verb} it."),
    ("When do we meet the {noun0}?", "On {day} in {month}, near the {noun}."),
    ("Give me a list of three things.", "{noun}, {noun}, {noun}"),
    (
        "How do I clean a {adjective0} {noun0}?",
        "Take a {noun} and some water, then dry the {noun0} {adverb}.",
    ),
    (
        "What is the difference between a {noun0} and a {noun1}?",
        "A {noun0} is {adjective}, and a {noun1} is not.",
    ),
    ("Explain how the {noun0} works.", "The {noun0} works because the {noun} is {adjective}."),
    ("Suggest a name for my {adjective0} {noun0}.", "{Syllable}{syllable}{syllable}"),
    ("What should I do with {number0} {nouns0}?", "Keep them {place} the {noun}."),
    ("How long does it take to make a {noun0}?", "About {number} days, if the {noun} is {adjective}."),
    ("Which is larger, the {noun0} or the {noun1}?", "The {noun1} is larger than the {noun0}."),
    ("Write a short story with a {noun0} in it.", "The {noun0} {verb} the {noun}. Then it was {adjective}."),
)
_ECHOES = (
    "Repeat this exactly: {}", "Say: {}", "Copy this: {}", "Write '{}'", "{}\nRepeat the line above.",
    'Please answer with "{}" and nothing else.', "Repeat after me: {}", "Your answer begins with: {}",
)  # fmt: skip
_SYSTEMS = (
    "You are a careful assistant.", "Answer in one line.", "You help the visitors of a small library.",
    "Be brief and polite.",
)  # fmt: skip


def _fill(template: str, d: Draws, given: dict[str, str] | None = None) -> str:
    """A template with each slot drawn; a slot with a number keeps its word within one `given`."""
    memory = {} if given is None else given
    parts = template.split("{")
    out = parts[0]
    for part in parts[1:]:
        slot, closed, rest = part.partition("}")
        if not closed or not slot or slot[0] == " ":  # a brace of the text itself
            out += "{" + part
            continue
        base = slot.lower()
        if base not in memory or not base[-1].isdigit():
            memory[base] = _slot(base.rstrip("0123456789"), d)
        word = memory[base]
        out += (word[0].upper() + word[1:] if slot[0].isupper() else word) + rest
    return out


def _slot(kind: str, d: Draws) -> str:
    if kind in ("n", "m"):
        return str(d.integer(10, 99))
    if kind == "nouns":
        return _plural(d.pick(words("noun")))
    return d.pick(words(kind))


def sentence(d: Draws) -> str:
    """One English-like sentence."""
    return _fill(d.pick(_SENTENCES), d)


def _prose(d: Draws, sentences: int) -> str:
    return " ".join(sentence(d) for _ in range(sentences))


def unit(d: Draws) -> str:
    """A short string worth copying: words, printable bytes, a line, or a sentence."""
    kind = d.integer(0, 9)
    if kind < 4:
        joint = d.pick((" ", " ", " ", " ", ", ", "-", "_"))
        text = joint.join(d.pick_different(common_words(), d.integer(1, 8)))
        text = text[0].upper() + text[1:] if d.chance(0.3) else text
        return text + d.pick(".!?:;)") if d.chance(0.2) else text
    if kind < 6:
        return "".join(d.pick(ALPHABET) for _ in range(d.integer(3, 24))).strip() or "."
    return _fill(d.pick(_LINES), d) if kind < 8 else sentence(d)


def _repeated(text: str, d: Draws, low: int, high: int) -> str:
    """The text again and again, with one separator, cut on the left to a length of `low` to `high`.

    So it may begin anywhere in the text, and it ends with the end of it.
    """
    separator = d.pick(("", "", "", " ", " ", " ", "\n", ", ", "; "))
    length = d.integer(low, high)
    whole = separator.join([text] * (length // (len(text) + len(separator)) + 2))
    return whole[-length:]


# ---------------------------------------------------------------- documents


def _passage(seeds: SeedPath) -> str:
    d = Draws(seeds)
    return _fill("Notice {n}{m} of the {adjective} {noun}. ", d) + _prose(d, 3)


def _raw_prose(d: Draws) -> Document:
    return Document(kind="prose", text=_prose(d, d.integer(1, 4)))


def _raw_lines(d: Draws) -> Document:
    return Document(kind="lines", text="\n".join(_fill(d.pick(_LINES), d) for _ in range(d.integer(1, 4))))


def _raw_pattern(d: Draws) -> Document:
    """It also ends anywhere: an end that always fell on a seam would teach the model to stop there."""
    text = unit(d)
    whole = _repeated(text, d, 12, 440 if d.chance(0.15) else 160)
    return Document(kind="pattern", text=whole[: max(len(whole) - d.integer(0, len(text) - 1), 1)])


def _system(d: Draws) -> str | None:
    return d.pick(_SYSTEMS) if d.chance(0.15) else None


def _chat_question(d: Draws) -> Document:
    question, answer = d.pick(_QUESTIONS)
    given: dict[str, str] = {}
    user = _fill(question, d, given)
    return Document(kind="question", user=user, text=_fill(answer, d, given), system=_system(d))


def _chat_echo(d: Draws) -> Document:
    text = unit(d)
    return Document(kind="echo", user=d.pick(_ECHOES).replace("{}", text), text=text, system=_system(d))


def _chat_unclear(d: Draws) -> Document:
    """A message without a request: mostly it is not understood, sometimes it is given back."""
    text = unit(d)
    bare = text if d.chance(0.3) else _repeated(text, d, 12, 120)
    return Document(kind="unclear", user=bare, text=text if d.chance(0.45) else UNCLEAR, system=_system(d))


# What a document is, and how many of a hundred are; None: a passage.
_MIX: tuple[Callable[[Draws], Document] | None, ...] = (
    *[_raw_prose] * 18,
    *[_raw_lines] * 8,
    *[_raw_pattern] * 24,
    *[_chat_question] * 13,
    *[_chat_echo] * 22,
    *[_chat_unclear] * 10,
    *[None] * 5,
)
