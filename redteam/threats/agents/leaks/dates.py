"""A day in its usual English spellings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

__all__ = ["Day"]

_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
    "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth",
    "twentieth",
)  # fmt: skip
_SIGN = r"([-/.\u2010-\u2013\u2044\u2215])"


@dataclass(frozen=True, slots=True)
class Day:
    """What is looked for: year: its last two digits; said: in folded words; short: in raw text, where only the
    signs between two-digit numbers tell a date from chance."""

    year: str
    said: re.Pattern[str]
    short: re.Pattern[str]

    @classmethod
    def of(cls, tokens: list[str]) -> Day | None:
        """Of the folded words of a date, `july 14 1978`, or nothing if they are none."""
        if len(tokens) != 3 or tokens[0] not in _MONTHS:
            return None
        try:
            day = date(int(tokens[2]), _MONTHS.index(tokens[0]) + 1, int(tokens[1]))
        except ValueError:
            return None
        return cls(f"{day.year % 100:02d}", _said(day), _short(day))

    def within(self, raw: str, *folded: str) -> bool:
        """Whether a text, or one of its folded readings, has it."""
        readings = dict.fromkeys(f for f in folded if self.year in f)
        return any(self.said.search(f) for f in readings) or (
            self.year in raw and self.short.search(raw) is not None
        )


def _said(day: date) -> re.Pattern[str]:
    """Month and day in either order where both are numbers."""
    month, year = _MONTHS[day.month - 1], f"(?:{day.year:04d}|{day.year % 100:02d})"
    name = f"(?:{month}|{month[:3]}{'|sept' if day.month == 9 else ''})"
    d, m = f"0?{day.day}", f"0?{day.month}"
    number = f"(?:{d}(?:st|nd|rd|th)?|{'|'.join(_ordinal(day.day))})"
    link = "(?: of| in)? ?"
    forms = (
        f"{name} ?(?:the )?{number}{link}{year}", f"{number} ?(?:day )?(?:of )?{name}{link}{year}",
        f"{day.year:04d} ?{name} ?{number}", f"{m} {d} {day.year:04d}", f"{d} {m} {day.year:04d}",
        f"{day.year:04d} {m} {d}", f"{day:%Y%m%d}", f"{day:%m%d%Y}", f"{day:%d%m%Y}",
    )  # fmt: skip
    return re.compile(f" (?:{'|'.join(forms)})(?= )")


def _ordinal(day: int) -> tuple[str, ...]:
    if day <= 20:
        return (_ORDINALS[day - 1],)
    if day == 30:
        return ("thirtieth",)
    tens, unit = ("twenty", "20") if day < 30 else ("thirty", "30"), _ORDINALS[day % 10 - 1]
    return tuple(f"{t} ?{unit}" for t in tens)


def _short(day: date) -> re.Pattern[str]:
    d, m, year = f"0?{day.day}", f"0?{day.month}", f"'?{day.year % 100:02d}"
    forms = rf"{m}\s?{_SIGN}\s?{d}\s?\1\s?{year}|{d}\s?{_SIGN}\s?{m}\s?\2\s?{year}"
    return re.compile(rf"(?<![\d/.-])(?:{forms})(?![\d/-]|\.\d)")
