"""Success against budget as inline SVG: Matplotlib draws it, the page's CSS colours it.

Colours are written as place-holders and replaced by CSS variables, so one drawing serves light and
dark pages. Ids, hashes and metadata are fixed, so the same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.figure import Figure

from redteam.core.stats import Estimate
from redteam.report.curve import Point, Series, budgets

COLOURS = 6
_INK = "#fe0200"
_SERIES = tuple(f"#fe01{i:02x}" for i in range(COLOURS))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STYLE: Any = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "text.parse_math": False,
    "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK, "xtick.color": _INK,
    "ytick.color": _INK, "figure.facecolor": "none", "axes.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
_IDS = re.compile(r'(\bid="|url\(#|href="#)')


@contextmanager
def _figure(name: str, height: float) -> Iterator[tuple[Figure, Any, list[Markup]]]:
    """A figure with one axes; after the block the list holds its SVG."""
    out: list[Markup] = []
    with rc_context():
        rcdefaults()  # the reader's own style file must not show
        rcParams.update({**_STYLE, "svg.hashsalt": f"redteam-{name}"})
        figure = Figure(figsize=(4.8, height))
        yield figure, figure.add_subplot(), out
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    out.append(_inline(buffer.getvalue(), name))


def _inline(svg: str, name: str) -> Markup:
    """The drawing alone, scaled by the page, with ids of its own and CSS colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head) + ' aria-hidden="true"'
    svg = _IDS.sub(lambda m: f"{m.group(1)}{name}-", f"{head}>{rest}")
    svg = svg.replace(_INK, "currentColor")
    for i, colour in enumerate(_SERIES):
        svg = svg.replace(colour, f"var(--series-{i})")
    return Markup(svg)


def curve_svg(series: Sequence[Series], metric: str, label: str, base: Estimate | None) -> Markup:
    """`metric` (pta or lift) of every series: against budget, or by attack if there is one budget alone."""
    if len(budgets(series)) > 1:
        return _against_budget(series, metric, label, base)
    return _by_attack(series, metric, label, base)


def _value(point: Point, metric: str) -> Estimate | None:
    found: Estimate | None = getattr(point, metric)
    return found


def _values(series: Series, metric: str) -> list[Estimate]:
    return [e for p in series.points if (e := _value(p, metric)) is not None]


def _bars(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Lengths of the error bars below and above; none where there is no interval."""
    below = [e.value - e.low if e.low is not None else 0.0 for e in estimates]
    above = [e.high - e.value if e.high is not None else 0.0 for e in estimates]
    return [below, above]


def _mark(index: int) -> dict[str, Any]:
    return {
        "marker": _MARKERS[index % len(_MARKERS)], "color": _SERIES[index % COLOURS],
        "markersize": 6, "capsize": 3, "linewidth": 1.5,
    }  # fmt: skip


def _against_budget(series: Sequence[Series], metric: str, label: str, base: Estimate | None) -> Markup:
    top = max(budgets(series))
    with _figure(metric, 3.2) as (_, axes, out):
        _reference(axes.axhline, axes.axhspan, base)
        for i, one in enumerate(series):
            pairs = [(p.budget, e) for p in one.points if (e := _value(p, metric)) is not None]
            if not pairs:
                continue
            # Series are moved apart a little, else bars of one budget hide each other.
            aside = 0.008 * top * (i - (len(series) - 1) / 2)
            estimates = [e for _, e in pairs]
            axes.errorbar(
                [b + aside for b, _ in pairs], [e.value for e in estimates], yerr=_bars(estimates),
                label=one.label, linestyle="-" if one.role == "attack" else ":", **_mark(i),
            )  # fmt: skip
        axes.set_xlabel("budget: training rows that may change")
        axes.set_ylabel(label)
        axes.set_ylim(*_limits(series, metric))
        columns = 1 if max(len(s.label) for s in series) > 22 else 2
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, frameon=False)
    return out[0]


def _by_attack(series: Sequence[Series], metric: str, label: str, base: Estimate | None) -> Markup:
    drawn = [(i, s.label, e) for i, s in enumerate(series) for e in _values(s, metric)]
    height = 0.6 + 0.5 * len(drawn)
    with _figure(metric, height) as (_, axes, out):
        _reference(axes.axvline, axes.axvspan, base)
        for place, (i, name, e) in enumerate(drawn):
            axes.errorbar([e.value], [place], xerr=_bars([e]), linestyle="none", **_mark(i))
            # The name stands above its bar, as beside the axis long names would shrink the drawing; and to
            # the right, as base rates are low.
            where = axes.get_yaxis_transform()
            axes.text(0.99, place - 0.25, name, transform=where, va="bottom", ha="right")
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(drawn) - 0.6, -0.8)
        axes.set_xlim(*_limits(series, metric))
        axes.set_xlabel(label)
        if base is not None:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.55 / height), frameon=False)
    return out[0]


def _reference(line: Any, span: Any, base: Estimate | None) -> None:
    """The base rate with its interval; without one, a line at zero."""
    if base is None:
        line(0, color=_INK, linewidth=0.8)
        return
    line(base.value, color=_INK, linewidth=1.2, linestyle="--", label="base rate: clean victims")
    if base.low is not None and base.high is not None:
        span(base.low, base.high, color=_INK, alpha=0.12, linewidth=0)


def _limits(series: Sequence[Series], metric: str) -> tuple[float, float]:
    """Zero to one, further down where an interval goes below zero."""
    lows = [e.low for s in series for e in _values(s, metric) if e.low is not None]
    return min(0.0, *lows, 0.0) - 0.03, 1.03
