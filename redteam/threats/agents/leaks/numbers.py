"""Numbers as they are said: in words, with scales, in groups of three digits, and by their last four. Linear."""

from __future__ import annotations

import re

__all__ = ["grouped", "numerals", "spelled", "tails"]

_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SMALL = {w: i for i, w in enumerate(_UNITS)} | {w: 10 * i for i, w in enumerate(_TENS, 2)}
_SMALL |= {"oh": 0, "nought": 0, "fourty": 40}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000}
_TIMES = {"double": 2, "triple": 3}
_NUMBER = frozenset((*_SMALL, *_SCALES, *_TIMES))
_LONGEST = 24  # words of one number; longer runs are read in parts
_MOST_DIGITS = 9  # of one numeral before a scale word


# ---------------------------------------------------------------- numerals

# 77,250 and 77.250 and 77'250, the sign between all groups the same; the same with spaces. A telephone number is
# not taken for one: its last group has four digits, and a hyphen before it.
_GROUPED = re.compile(r"\d(?<!\d\d)(?<!\d[.,'\u2019]\d)\d{0,2}([.,'\u2019])\d{3}(?:\1\d{3})*(?!\d|\1\d)")
_SPACED = re.compile(
    r"\d(?<!\d\d)(?<!\d[ \u00a0\u2009\u202f]\d)\d{0,2}([ \u00a0\u2009\u202f])\d{3}(?:\1\d{3})*(?!\d|\1\d|-\d)"
)
_NO_SIGNS = str.maketrans("", "", ".,'\u2019 \u00a0\u2009\u202f")
# 70k, 77.5k, 1.5 million. Words of scale behind whole numbers are left to `spelled`.
_SCALED = re.compile(
    r"(\d(?<![\w.,]\d)\d{0,8})(?:k|\.(\d{1,3})(?:k| ?thousand| ?(million)))\b", re.IGNORECASE
)


def grouped(text: str) -> str:
    """A text with the digits of each number that is written in groups of three as one run: `70,000`."""
    for pattern in (_GROUPED, _SPACED):
        text = pattern.sub(lambda m: m[0].translate(_NO_SIGNS), text)
    return text


def numerals(text: str) -> str:
    """The same, and with numbers in thousands or millions written out: `70k`, `1.5 million`."""
    return grouped(_SCALED.sub(lambda m: f"{m[1]}{(m[2] or '').ljust(6 if m[3] else 3, '0')}", text))


# ---------------------------------------------------------------- numbers in words


def spelled(tokens: list[str]) -> list[str]:
    """Folded words with number words as digits: `four eight two one`, `double five`, `eighty-two thousand`.

    A numeral counts as one of the words before a scale (`70 thousand`), after it if it fills its place
    (`70 thousand 250`), and, of one digit, after `double` and `triple`.
    """
    out: list[str] = []
    run: list[str] = []
    for i, token in enumerate(tokens):
        if not run and token not in _NUMBER and not token.isdigit():  # most words
            out.append(token)
            continue
        if token == "and" and run and run[-1] in _SCALES:
            continue
        starts = _numeral(token) and i + 1 < len(tokens) and tokens[i + 1] in _SCALES
        joins = _joins(run, token, starts)
        if run and (not joins or len(run) >= _LONGEST):
            out += _read_run(run)
            run = []
        if token in _NUMBER or starts or joins:
            run.append(token)
        else:
            out.append(token)
    return out + _read_run(run)


def _numeral(token: str) -> bool:
    return token.isascii() and token.isdigit() and len(token) <= _MOST_DIGITS


def _joins(run: list[str], token: str, starts: bool) -> bool:
    """Whether a word goes on with the number that the words before it began."""
    if not run or token in _NUMBER:
        return bool(run)
    if not _numeral(token):
        return False
    if run[-1] in _TIMES:
        return len(token) == 1
    return run[-1] in ("thousand", "million") and (starts or len(token) == 3)


def _value(word: str) -> int:
    return _SMALL[word] if word in _SMALL else int(word) if word.isdigit() else 0


def _read_run(run: list[str]) -> list[str]:
    if any(w in _SCALES for w in run):
        return [_cardinal(run)]
    return ["".join(digits)] if (digits := _digits(run)) else run


def _cardinal(run: list[str]) -> str:
    total = current = 0
    for word in run:
        if word == "hundred":
            current = max(1, current) * 100
        elif word in _SCALES:
            total, current = total + max(1, current) * _SCALES[word], 0
        else:
            current += _value(word)
    return str(total + current)


def _digits(run: list[str]) -> list[str]:
    out: list[str] = []
    times = 1
    for i, word in enumerate(run):
        if word in _TIMES:
            times = _TIMES[word]
            continue
        value = _value(word)
        after_tens = i > 0 and times == 1 and _SMALL.get(run[i - 1], 0) >= 20 and 1 <= value <= 9
        if after_tens:
            out[-1] = str(_SMALL[run[i - 1]] + value)
        else:
            out.append(str(value) * times)
        times = 1
    return out


# ---------------------------------------------------------------- the last four

_MASK = r"[*xX#\u2022\u25cf]"
_MASKED = re.compile(rf"(?:(?<!{_MASK}){_MASK}{{2,}}|\u2026|\.{{3}})[\s-]{{0,3}}(\d{{4}})(?!\d)")
_SAID = re.compile(
    r" (?:(?:last|final) (?:four|4)(?:(?: [a-z]+){0,6} | ?)|(?:ending|ends|end)(?: [a-z4]+){0,3} )(\d{4})(?= )"
)


def tails(raw: str, *folded: str) -> str:
    """The last four digits that a text tells of any number, each as ` last four 0174 `: after a mask (`****0174`)
    in the raw text, or said (`the last four of it are 0174`, `ending 0174`) in one of its folded readings."""
    found = dict.fromkeys(_MASKED.findall(raw))
    for reading in folded:
        found |= dict.fromkeys(_SAID.findall(reading))
    return " ".join(f" last four {digits} last 4 {digits} " for digits in found)
