"""Accuracy against the radius, survivors of an ensemble and validations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from redteam.core.stats import Estimate
from redteam.report import figures
from redteam.threats.evasion.report.series import After, Curve, Line, Validated

# A largest radius that is so many times the next one would leave the others no room on a linear axis.
_FAR = 3.0
_ROOM = 0.055  # of the axis: labels of radii that lie closer are left out


def stretched(lines: Sequence[Line]) -> float | None:
    """Where the axis of radii becomes logarithmic: the smallest radius, or None where it is linear throughout."""
    found = sorted({eps for line in lines for eps, _ in line.points if eps > 0})
    far = len(found) > 2 and found[-1] > _FAR * found[-2]
    return found[0] if far else None


def curve_svg(lines: Sequence[Line], norm: str, main: float, chance: float | None) -> Markup | None:
    """Robust accuracy of every line against the radius. chance: drawn dashed; main: a thin vertical.

    The line of the run itself is thick and has its interval as a band. None if no line has a radius above 0.
    """
    if not any(eps > 0 for line in lines for eps, _ in line.points):
        return None
    with figures.figure("curve", 3.7, 6.0) as (axes, out):
        if (start := stretched(lines)) is not None:
            axes.set_xscale("symlog", linthresh=start)
        if chance is not None:
            axes.axhline(chance, color=figures.INK, linewidth=1, linestyle="--", alpha=0.7, zorder=1)
        figures.verticals(axes, [main])
        # This run's own line last, so that nothing covers it.
        for line in sorted(lines, key=lambda one: one.own):
            figures.line(axes, line.points, line.place, own=line.own, clip_on=False)
        axes.set_xlabel(f"eps: radius of the ball in {norm}, for pixels in [0, 1]")
        axes.set_ylabel("robust_accuracy")
        figures.shares(axes)
        axes.set_xlim(0, max(eps for line in lines for eps, _ in line.points) * 1.03)
        _ticks(axes, next(line for line in lines if line.own).points)
    return out[0]


def _ticks(axes: Any, points: Curve) -> None:
    """Labels at the radii of this run, where there is room."""
    radii = [eps for eps, _ in points]
    place = axes.transAxes.inverted().transform(axes.transData.transform([(r, 0.0) for r in radii]))[:, 0]
    shown: list[int] = []
    # The ends first, as they say how far it goes.
    for i in [0, len(radii) - 1, *range(1, len(radii) - 1)]:
        if all(abs(place[i] - place[j]) > _ROOM for j in shown):
            shown.append(i)
    axes.set_xticks([radii[i] for i in sorted(shown)], [f"{radii[i]:.3g}" for i in sorted(shown)])
    axes.minorticks_off()


def survivors_svg(accuracy: Estimate | None, stages: Sequence[After]) -> Markup | None:
    """Bars: images read right as they are, then after each attack, with their intervals. None without an ensemble."""
    if not stages:
        return None
    bars: list[tuple[str, Any]] = [("as they are", accuracy)] if accuracy is not None else []
    bars += [(f"after {s.name}", s.stands) for s in stages]
    return figures.share_bars("survivors", bars, "share of the test images still read right")


def history_svg(history: Sequence[Validated]) -> Markup | None:
    """Each criterion over the updates, the mean over victims. Thin verticals: states that were attacked."""
    if len(history) < 2:
        return None
    names = list(dict.fromkeys(name for v in history for name in v.values))
    with figures.figure("history", 3.2) as (axes, out):
        figures.verticals(axes, [v.step for v in history if v.chosen])
        for i, name in enumerate(names):
            seen = [(v.step, v.values[name][0]) for v in history if name in v.values]
            axes.plot(
                [s for s, _ in seen], [x for _, x in seen], label=name, color=figures.hue(i), linewidth=1.4,
                marker=figures.marker(i), markersize=5, zorder=3,
            )  # fmt: skip
        axes.set_xlabel("updates done")
        axes.set_ylabel("share of validation images")
        figures.shares(axes)
        figures.legend(axes, names, columns=3)
    return out[0]
