"""Numbers, names, sentences and commands as a reader sees them. Pure text, escaped by the template."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from redteam.core.hashing import canonical_json, digest_json
from redteam.core.record import Metric, Record
from redteam.core.stats import Estimate

UNDEFENDED = "undefended"
_LONGEST = 30  # characters of a setting in a label
_SHOWN = 600  # characters of one text from a model or a data set
_NEW_LINE = "\u23ce\n"


# ---------------------------------------------------------------- numbers


def fraction(value: float, places: int = 3) -> str:
    """A fixed number of decimals, and no minus sign before zero."""
    return f"{round(value, places) + 0.0:.{places}f}"


def bounds(low: float | None, high: float | None) -> str:
    """`[0.310, 0.604]`, or what to read instead."""
    return "no interval" if low is None or high is None else f"[{fraction(low)}, {fraction(high)}]"


def with_interval(e: Estimate | Metric | None) -> str:
    """`0.452 [0.310, 0.604]`, or `not measured`."""
    return "not measured" if e is None else f"{fraction(e.value)} {bounds(e.low, e.high)}"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """`1 victim`, `3 victims`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


# ---------------------------------------------------------------- names and settings


def class_name(number: int, classes: Sequence[str] | None) -> str:
    """`class 9 (truck)`; the number alone where the data set was not given, or calls its classes so."""
    if classes is None or classes[number] == str(number):
        return f"class {number}"
    return f"class {number} ({classes[number]})"


def behind(record: Record) -> str:
    """`norm-clip + noise`, or `undefended`."""
    return " + ".join(d.name for d in record.cell.defenses) or UNDEFENDED


def plain(value: Any) -> str:
    """A config value as JSON, but a bare word for text."""
    return value if isinstance(value, str) else canonical_json(value)


def short(value: Any) -> str:
    """A config value in at most 30 characters; what is longer is cut and told apart by a digest."""
    text = plain(value)
    return text if len(text) <= _LONGEST else f"{text[:18]}... ({digest_json(value)[:6]})"


def settings(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of a config, by name."""
    return [(k, plain(v)) for k, v in sorted(content.items())]


def visible(text: str) -> str:
    """Text with its line breaks marked and every other unprintable character spelled out, cut to 600."""
    cut = text[:_SHOWN]
    shown = "".join(
        c if c.isprintable() else _NEW_LINE if c == "\n" else c.encode("unicode_escape").decode() for c in cut
    )
    return shown + (f" ... ({len(text) - _SHOWN} more characters)" if len(text) > _SHOWN else "")


# ---------------------------------------------------------------- sentences


def knowing(record: Record, names: str | None = None, it: str = "it") -> str:
    """` behind shadow (the attack did not know of it)`, or nothing without a defence."""
    if not record.cell.defenses:
        return ""
    knew = "knew of" if record.cell.knowledge == "adaptive" else "did not know of"
    return f" behind {names or behind(record)} (the attack {knew} {it})"


def by_sign(e: Estimate | Metric, above: str, below: str, across: str, unknown: str) -> str:
    """The sentence that the interval of a difference allows: all above zero, all below, around it, or none."""
    if e.low is None or e.high is None:
        return unknown
    return above if e.low > 0 else below if e.high < 0 else across


def as_control(record: Record) -> str:
    """A sentence for runs that are controls themselves."""
    return "This run is itself a control. " if record.role == "control" else ""


def against_controls(
    record: Record, metric: str, controls: Sequence[tuple[str, Estimate]], of: str, none: str
) -> str:
    """What controls beside this run reached, and whether its interval lies above theirs.

    Args:
        metric: the one that is compared.
        controls: label and `metric` of each.
        of: the beginning of the sentence, such as `Controls beside this run reached a success of`.
        none: the sentence where there is no control.
    """
    own = as_control(record)
    if not controls:
        return own + none
    text = f"{own}{of}: {'; '.join(f'{name} {with_interval(e)}' for name, e in controls)}."
    mine = record.metric(metric)
    if own or mine is None or mine.low is None:
        return text
    close = [name for name, e in controls if e.high is None or e.high >= mine.low]
    if not close:
        return text + " The interval of this run lies above that of every one of them."
    return text + f" The interval of this run does not lie above that of {', '.join(close)}."


# ---------------------------------------------------------------- the command


def command(record: Record, pinned: Collection[str] = ()) -> str | None:
    """The command that runs this cell again, every setting named. None if nobody here ran it.

    What no command line can carry is named in a comment below it.

    Args:
        pinned: settings of the target that pin its data or model and are no option.
    """
    cell, dropped = record.cell, []
    if record.source != "measured":
        return None
    words = ["redteam", "attack", cell.attack.name, "--dataset", cell.task.dataset.removesuffix("-jpeg")]
    words += ["-o", f"target.model={cell.task.model}"]
    for d in cell.defenses:
        options = {k: _option(v) for k, v in sorted(d.config.items())}
        dropped += [f"{d.name}.{k}={shlex.quote(v)}" for k, v in options.items() if "," in v]
        pairs = ",".join(f"{k}={v}" for k, v in options.items() if "," not in v)
        words += ["--defense", f"{d.name}:{pairs}" if pairs else d.name]
    if cell.defenses and cell.knowledge == "adaptive":
        words.append("--adaptive")
    # `content` pins a model file; it is no setting.
    target = {k: v for k, v in cell.task.config.items() if k not in pinned}
    for prefix, config in (("", cell.attack.config), ("target.", target)):
        for key, value in sorted((k, v) for k, v in config.items() if k != "content"):
            words += ["-o", f"{prefix}{key}={_option(value)}"]
    text = " ".join(map(shlex.quote, [*words, "--controls", "none", "--seed", str(cell.seed)]))
    if not dropped:
        return text
    return f"{text}\n# left out, as a comma parts settings; the defaults are taken: {'; '.join(dropped)}"


def _option(value: Any) -> str:
    """A config value as the command line takes it."""
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ",".join(map(_option, value))
    return plain(value)
