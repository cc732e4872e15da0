"""Figures as inline SVG, and the one palette: Matplotlib draws, the page's CSS colours.

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

from redteam.core.record import Metric
from redteam.core.stats import Estimate

INK = "#fe0200"
# Eight hues; style.html.j2 gives each its colour on light and on dark pages.
HUES = tuple(f"#fe01{i:02x}" for i in range(8))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# The markers as characters, for tables and keys.
GLYPHS = ("\u25cf", "\u25a0", "\u25b2", "\u25c6", "\u25bc", "\u271a", "\u2716", "\u2605")
_STYLE: Any = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "text.parse_math": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
    "ytick.color": INK, "figure.facecolor": "none", "axes.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
_IDS = re.compile(r'(\bid="|url\(#|href="#)')
_LONG = 22  # characters of a label; longer ones stand in one column


# ---------------------------------------------------------------- colours and markers


def hue(place: int) -> str:
    """The colour of a series, as the figures draw it."""
    return HUES[place % len(HUES)]


def colour(place: int) -> str:
    """The CSS colour of a series."""
    return f"var(--series-{place % len(HUES)})"


def marker(place: int) -> str:
    """The Matplotlib marker of a series."""
    return MARKERS[_shape(place)]


def glyph(place: int) -> str:
    """The marker of a series as a character."""
    return GLYPHS[_shape(place)]


def _shape(place: int) -> int:
    """Eight colours with eight markers each: the second eight series get other markers than the first."""
    return (place + place // len(HUES)) % len(MARKERS)


def mark(place: int) -> dict[str, Any]:
    """How `errorbar` draws a series: colour, marker and widths."""
    return {
        "marker": marker(place), "color": hue(place), "markersize": 6, "capsize": 3, "linewidth": 1.5,
    }  # fmt: skip


# ---------------------------------------------------------------- the drawing


@contextmanager
def figure(name: str, height: float, width: float = 4.8) -> Iterator[tuple[Any, list[Markup]]]:
    """Axes to draw on; after the block the list holds their SVG.

    Args:
        name: sets the ids of this figure apart from those of others on the page.
        height, width: in inches.
    """
    out: list[Markup] = []
    with rc_context():
        rcdefaults()  # the reader's own style file must not show
        rcParams.update({**_STYLE, "svg.hashsalt": f"redteam-{name}"})
        drawn = Figure(figsize=(width, height))
        yield drawn.add_subplot(), out
        buffer = io.StringIO()
        drawn.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    out.append(_inline(buffer.getvalue(), name))


def _inline(svg: str, name: str) -> Markup:
    """The drawing alone, scaled by the page, with ids of its own and CSS colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head) + ' aria-hidden="true"'
    svg = _IDS.sub(lambda m: f"{m.group(1)}{name}-", f"{head}>{rest}")
    svg = svg.replace(INK, "currentColor")
    for i, drawn in enumerate(HUES):
        svg = svg.replace(drawn, f"var(--series-{i})")
    return Markup(svg)


# ---------------------------------------------------------------- parts of a drawing


def bars(estimates: Sequence[Estimate | Metric]) -> list[list[float]]:
    """Lengths of the error bars below and above; none where there is no interval."""
    below = [e.value - e.low if e.low is not None else 0.0 for e in estimates]
    above = [e.high - e.value if e.high is not None else 0.0 for e in estimates]
    return [below, above]


def line(axes: Any, points: Sequence[tuple[float, Estimate]], place: int, *, own: bool, **style: Any) -> None:
    """One series as a line: that of the run itself thick, filled and with its interval as a band."""
    xs, ys = [x for x, _ in points], [e.value for _, e in points]
    look = {
        "color": hue(place), "linewidth": 2.6 if own else 1.2, "marker": marker(place), "markersize": 7 if own else 5,
        "markerfacecolor": hue(place) if own else "none", "alpha": 1 if own else 0.8, "zorder": 5 if own else 3,
    }  # fmt: skip
    axes.plot(xs, ys, **look, **style)
    if own:
        band(axes, points, hue(place), alpha=0.2, zorder=1)


def band(axes: Any, points: Sequence[tuple[float, Estimate]], colour: str, **style: Any) -> None:
    """The intervals of points along the x axis, where they have any."""
    known = [(x, e.low, e.high) for x, e in points if e.low is not None and e.high is not None]
    if known:
        axes.fill_between(*zip(*known, strict=True), color=colour, linewidth=0, **style)


def cross(
    axes: Any, x: Estimate, y: Estimate, colour: str, marker: str, *, own: bool, strong: bool = True
) -> None:
    """A point of two estimates with both intervals. own: filled, in front; strong: no mere companion."""
    axes.errorbar(
        [x.value], [y.value], xerr=bars([x]), yerr=bars([y]), linestyle="none", ecolor=colour,
        elinewidth=1.6 if own else 1, alpha=0.95 if own else 0.55, zorder=3 if own else 2,
    )  # fmt: skip
    axes.plot(
        [x.value], [y.value], linestyle="none", marker=marker, color=colour,
        markersize=10 if own else 7 if strong else 4, markerfacecolor=colour if own else "none",
        markeredgewidth=1.6 if strong else 1, zorder=4 if own else 3,
    )  # fmt: skip


def verticals(axes: Any, places: Sequence[float]) -> None:
    """Thin lines in the colour of the text."""
    for x in places:
        axes.axvline(x, color=INK, linewidth=0.7, alpha=0.5, zorder=1)


def shares(axes: Any) -> None:
    """The y axis of shares: from zero to one, with room for markers."""
    axes.set_ylim(-0.03, 1.03)


def legend(axes: Any, labels: Sequence[str], below: float = 0.2, columns: int = 2) -> None:
    """The legend under the axes, in one column where a label is long. below: in heights of the axes."""
    longest = max(map(len, labels), default=0)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -below), ncols=1 if longest > _LONG else columns, frameon=False
    )  # fmt: skip


# ---------------------------------------------------------------- whole drawings


def share_bars(name: str, shares: Sequence[tuple[str, Estimate | Metric]], label: str) -> Markup:
    """Bars of shares from above to below with their intervals; the first one, that of no attack, is darker."""
    with figure(name, 0.7 + 0.36 * len(shares)) as (axes, out):
        for place, (_, e) in enumerate(shares):
            axes.barh(place, e.value, height=0.62, color=hue(0), alpha=0.45 if place else 0.8, zorder=2)
            axes.errorbar(
                [e.value], [place], xerr=bars([e]), linestyle="none", ecolor=INK, elinewidth=1, capsize=3, zorder=3
            )  # fmt: skip
        axes.set_yticks(range(len(shares)), [text for text, _ in shares])
        axes.set_ylim(len(shares) - 0.5, -0.5)
        axes.set_xlim(0, 1.0)
        axes.set_xlabel(label)
    return out[0]
