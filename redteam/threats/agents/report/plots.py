"""The frontier of privacy against utility."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from redteam.report import figures
from redteam.threats.agents.report.series import Group


def colour(group: Group) -> str:
    """The CSS colour of an attack; controls have that of the text."""
    return "currentColor" if group.role == "control" else figures.colour(group.colour)


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
    with figures.figure(name, *((2.7, 2.9) if small else (4.0, 4.8))) as (axes, out):
        _trivial(axes)
        for g in groups:
            if len(groups) == 1 or own in g.ids:
                xs, ys = zip(*g.stairs(), strict=True)
                axes.plot(
                    xs, ys, color=_hue(g), linewidth=1.3, alpha=0.8, solid_joinstyle="miter", zorder=1.5
                )
        # This run's own point last, so that nothing covers it.
        for g, p in sorted(drawn, key=lambda pair: own in pair[1].ids):
            assert p.privacy is not None and p.utility is not None
            shape = figures.marker(p.shape)
            figures.cross(axes, p.utility, p.privacy, _hue(g), shape, own=own in p.ids)
        axes.set_xlabel("utility" if small else "utility: share of allowed fields provided")
        axes.set_ylabel("privacy" if small else "privacy: share of forbidden fields withheld")
        axes.set_xlim(-0.05, 1.05)
        axes.set_ylim(-0.1, 1.13)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    return out[0]


def _hue(group: Group) -> str:
    return figures.INK if group.role == "control" else figures.hue(group.colour)


def _trivial(axes: Any) -> None:
    """What needs no data: sharing nothing, everything, or each field with one probability."""
    axes.plot([0, 1], [1, 0], color=figures.INK, linewidth=0.9, linestyle=":", alpha=0.6, zorder=1)
    axes.plot([0, 1], [1, 0], color=figures.INK, linestyle="none", marker="+", markersize=9, zorder=1)
    axes.text(-0.03, 1.06, "shares nothing", ha="left", va="bottom", fontsize=9)
    axes.text(1.03, -0.025, "shares everything", ha="right", va="top", fontsize=9)
