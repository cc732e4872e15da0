"""How a text is read when secrets are looked for in it: folded, spelled out, and decoded. Linear in its length.

Folding works letter by letter (compatibility decomposition, case folding, accents dropped), so that it is
linear on any input; the usual normal forms are not, on long runs of combining marks.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import unicodedata
from functools import cached_property
from urllib.parse import unquote

from redteam.threats.agents.leaks.numbers import numerals, spelled, tails

# Invisible characters, accents and lone surrogates fall out; they neither part words nor make any.
_DROPPED = ("Cf", "Mn", "Me", "Cs")


class _Fold(dict[int, str | None]):
    """Code point to what it is read as: lower-case letters and digits, a space, or nothing.

    special: read before all else.
    """

    def __init__(self, special: dict[str, str] | None = None) -> None:
        super().__init__()
        self.special = special or {}

    def __missing__(self, code: int) -> str | None:
        self[code] = out = self._read(chr(code))
        return out

    def _read(self, char: str) -> str | None:
        if char in self.special:
            return self.special[char]
        category = unicodedata.category(char)
        if category in _DROPPED or (category == "Cc" and not char.isspace()):
            return None
        if category in ("Cn", "Co"):
            return " "
        plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
        kept = "".join(_plain(c) for c in plain if unicodedata.category(c) not in _DROPPED)
        return "".join(self.special.get(c, c) for c in kept) or " "


def _plain(char: str) -> str:
    digit = unicodedata.decimal(char, None)
    return str(digit) if digit is not None else char if char.isalnum() else ""


# Letters and the digits or signs that are drawn for them; both sides are read through it.
_LEET = {
    "0": "o", "1": "i", "l": "i", "L": "i", "|": "i", "!": "i", "3": "e", "4": "a", "@": "a", "5": "s", "$": "s",
    "7": "t", "+": "t", "8": "b", "9": "g",
}  # fmt: skip
_FOLD, _LEET_FOLD = _Fold(), _Fold(_LEET)
HEAD = 4  # letters and digits, by which runs of words are looked up
# What `storable` text and JSON write for a lone surrogate.
_ESCAPED = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def words(text: str) -> list[str]:
    """The folded words of a text: runs of letters and digits."""
    if "\\u" in text:
        text = _ESCAPED.sub("", text)
    return text.translate(_FOLD).split()


def compact(text: str) -> str:
    """The folded letters and digits of a text, nothing between them."""
    return "".join(words(text))


def said(text: str) -> list[str]:
    """The folded words of a text with numbers, in words or grouped or scaled, as digits."""
    return spelled(words(numerals(text)))


def leet(text: str) -> str:
    """As `compact`, with digits and signs read as the letters they look like."""
    return "".join(text.translate(_LEET_FOLD).split())


def rot13(folded: str) -> str:
    """Every a to z moved by 13."""
    return codecs.encode(folded, "rot13")


# ---------------------------------------------------------------- decoding

# Bytes are read with ASCII letters in lower case and ordinary separators dropped; others stay and part words.
_SEPARATORS = b" \t\r\n-_.,;:/()'\"+@#"
_LOWER = bytes(c + 32 if 65 <= c <= 90 else c for c in range(256))
_NOT_BASE64 = bytes(set(range(256)) - set(base64.b64encode(bytes(range(256)) * 3)) - set(b"-_"))
_URLSAFE = bytes.maketrans(b"-_", b"+/")
_HEX_MARK = re.compile(r"0x|\\x", re.IGNORECASE)
_HEX_RUN = re.compile(r"[0-9a-f]{8,}")


def octets(data: bytes) -> bytes:
    """Bytes as they are compared."""
    return data.translate(_LOWER, _SEPARATORS)


class Text:
    """One text in all its readings; each is made when it is first asked for."""

    def __init__(self, text: str) -> None:
        self.raw = text

    @cached_property
    def words(self) -> list[str]:
        """Its folded words."""
        return words(self.raw)

    @cached_property
    def light(self) -> str:
        """The words, one space between them and at both ends."""
        return f" {' '.join(self.words)} "

    @cached_property
    def compact(self) -> str:
        """The words, nothing between them."""
        return "".join(self.words)

    @cached_property
    def leet(self) -> str:
        """See `leet`."""
        return leet(self.raw)

    @cached_property
    def spelled_light(self) -> str:
        """The words with all numbers as digits (`said`), one space between them and at both ends."""
        plain = numerals(self.raw)
        return f" {' '.join(spelled(self.words if plain == self.raw else words(plain)))} "

    @cached_property
    def spelled(self) -> str:
        """The same with nothing between them."""
        return self.spelled_light.replace(" ", "")

    @cached_property
    def tails(self) -> str:
        """See `numbers.tails`."""
        return tails(self.raw, self.light, self.spelled_light)

    @cached_property
    def starts(self) -> dict[str, list[int]]:
        """The words at which the next `HEAD` letters and digits, over as many words as it takes, begin."""
        out: dict[str, list[int]] = {}
        at = 0
        for i, word in enumerate(self.words):
            out.setdefault(self.compact[at : at + HEAD], []).append(i)
            at += len(word)
        return out

    def runs(self, whole: str, shortest: int) -> set[str]:
        """The parts of a word, at least so long, of which the text has each as whole words in one run."""
        found = set()
        tokens, last = self.words, len(self.words)
        for begin in range(len(whole) - shortest + 1):
            for i in self.starts.get(whole[begin : begin + HEAD], ()):
                end = begin + len(tokens[i])
                if not whole.startswith(tokens[i], begin):
                    continue
                i += 1
                while i < last and whole.startswith(tokens[i], end):
                    end, i = end + len(tokens[i]), i + 1
                if end - begin >= shortest:
                    found.add(whole[begin:end])
        return found

    @cached_property
    def url(self) -> str:
        """The text after URL-decoding, compact; empty if nothing in it is URL-encoded."""
        if "%" not in self.raw:
            return ""
        decoded = unquote(self.raw, errors="ignore")
        return compact(decoded) if decoded != self.raw else ""

    @cached_property
    def base64(self) -> bytes:
        """All that can be read as base64, at each of the four places at which a group of letters may begin."""
        data = self.raw.encode("ascii", "ignore").translate(None, _NOT_BASE64).translate(_URLSAFE)
        return b"\0".join(_unbase64(data[offset:]) for offset in range(4))

    @cached_property
    def hex(self) -> bytes:
        """All runs of hexadecimal digits, whatever parts them, at both alignments."""
        runs = _HEX_RUN.findall(compact(_HEX_MARK.sub("", self.raw)))
        cut = (run[start:] for run in runs for start in (0, 1))
        return b"\0".join(octets(bytes.fromhex(run[: len(run) // 2 * 2])) for run in cut)


def _unbase64(data: bytes) -> bytes:
    whole = data[: len(data) // 4 * 4]
    # Of what is left over, two letters make one more byte and three make two.
    rest = data[len(whole) :]
    padded = rest + b"=" * (4 - len(rest)) if len(rest) > 1 else b""
    return octets(binascii.a2b_base64(whole + padded))
