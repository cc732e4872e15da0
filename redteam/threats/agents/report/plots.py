"""The frontier of privacy against utility, drawn as `redteam.report.plots` draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from redteam.report.plots import _INK, _MARKERS, _SERIES, _bars, _figure
from redteam.threats.agents.report.series import Group, Point

# Eight hues; the page gives the last two their variables. Controls are drawn in the colour of the text.
COLOURS = 8
_HUES = (*_SERIES, *(f"#fe01{i:02x}" for i in range(len(_SERIES), COLOURS)))
# The markers as characters, for the tables.
GLYPHS = ("\u25cf", "\u25a0", "\u25b2", "\u25c6", "\u25bc", "\u271a", "\u2716", "\u2605")
assert len(GLYPHS) == len(_MARKERS)


def glyph(point: Point) -> str:
    """The marker of a point's defence."""
    return GLYPHS[point.shape % len(GLYPHS)]


def colour(group: Group) -> str:
    """The CSS colour of an attack."""
    return "currentColor" if group.role == "control" else f"var(--series-{group.colour % COLOURS})"


def frontier_svg(
    groups: Sequence[Group], own: str, name: str = "frontier", *, small: bool = False
) -> Markup | None:
    """Every point of the groups, and the edge of what the settings reach under the attack of the run `own`.

    With one group alone, its edge. own: id of the run whose point is filled. small: drawn for a narrow column.
    None if there is no point.
    """
    drawn = [(g, p) for g in groups for p in g.points if p.privacy is not None and p.utility is not None]
    if not drawn:
        return None
    with _figure(name, 4.0) as (figure, axes, out):
        if small:
            figure.set_size_inches(2.9, 2.7)
        _trivial(axes)
        for g in groups:
            if len(groups) == 1 or own in g.ids:
                xs, ys = zip(*g.stairs(), strict=True)
                axes.plot(
                    xs, ys, color=_hue(g), linewidth=1.3, alpha=0.8, solid_joinstyle="miter", zorder=1.5
                )
        # This run's own point last, so that nothing covers it.
        for g, p in sorted(drawn, key=lambda pair: own in pair[1].ids):
            _mark(axes, g, p, own=own in p.ids)
        axes.set_xlabel("utility" if small else "utility: share of allowed fields provided")
        axes.set_ylabel("privacy" if small else "privacy: share of forbidden fields withheld")
        axes.set_xlim(-0.05, 1.05)
        axes.set_ylim(-0.1, 1.13)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    return _coloured(out[0])


def _hue(group: Group) -> str:
    return _INK if group.role == "control" else _HUES[group.colour % COLOURS]


def _mark(axes: Any, group: Group, point: Point, *, own: bool) -> None:
    assert point.privacy is not None and point.utility is not None
    x, y, hue = point.utility, point.privacy, _hue(group)
    axes.errorbar(
        [x.value], [y.value], xerr=_bars([x]), yerr=_bars([y]), linestyle="none", ecolor=hue,
        elinewidth=1.6 if own else 1, alpha=0.95 if own else 0.55, zorder=3 if own else 2,
    )  # fmt: skip
    axes.plot(
        [x.value], [y.value], linestyle="none", marker=_MARKERS[point.shape % len(_MARKERS)], color=hue,
        markersize=10 if own else 7, markerfacecolor=hue if own else "none", markeredgewidth=1.6,
        zorder=4 if own else 3,
    )  # fmt: skip


def _trivial(axes: Any) -> None:
    """What needs no data: sharing nothing, everything, or each field with one probability."""
    axes.plot([0, 1], [1, 0], color=_INK, linewidth=0.9, linestyle=":", alpha=0.6, zorder=1)
    axes.plot([0, 1], [1, 0], color=_INK, linestyle="none", marker="+", markersize=9, zorder=1)
    axes.text(-0.03, 1.06, "shares nothing", ha="left", va="bottom", fontsize=9)
    axes.text(1.03, -0.025, "shares everything", ha="right", va="top", fontsize=9)


def _coloured(svg: Markup) -> Markup:
    text = str(svg)
    for i, hue in enumerate(_HUES[len(_SERIES) :], len(_SERIES)):
        text = text.replace(hue, f"var(--series-{i})")
    return Markup(text)
