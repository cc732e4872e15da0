"""The two pictures of a run of adversarial strings."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from redteam.core.stats import Estimate
from redteam.report import figures
from redteam.threats.strings.report.series import Series

_UNITS = {"queries": "queries", "tokens": "tokens", "usd": "US dollars"}


def success_svg(
    series: Sequence[Series], own: str, initial: Estimate | None, unit: str = "queries"
) -> Markup | None:
    """Share of strings found against what a search spends, a line a series; the marks are fresh success at the end.

    own: id of the run whose line gets a band. initial: drawn as the level reached without any search.
    None if no search of any series can be drawn.
    """
    curves = [(i, s, s.curve()) for i, s in enumerate(series)]
    drawn = [(i, s, points) for i, s, points in curves if points]
    if not drawn:
        return None
    top = max(1.0 if unit == "queries" else 1e-9, *(points[-1][0] for _, _, points in drawn))
    with figures.figure(f"success-{unit}", 3.4) as (axes, out):
        if initial is not None:
            axes.axhline(
                initial.value, color=figures.INK, linewidth=1, linestyle="--", label="initial prompts"
            )
        for place, (i, one, points) in enumerate(drawn):
            points, style = [*points, (top, points[-1][1])], "-" if one.role == "attack" else ":"
            xs, ys = [q for q, _ in points], [e.value for _, e in points]
            axes.step(
                xs, ys, where="post", color=figures.hue(i), linewidth=1.5, linestyle=style, label=one.label
            )
            if own in one.ids and len(one.ids) != 2:
                figures.band(axes, points, figures.hue(i), step="post", alpha=0.15)
            if (fresh := one.metrics["success"]) is not None:
                # Beside the end of the axis, and apart, else the bars of several series hide each other.
                at = top * (1.03 + 0.03 * place)
                axes.errorbar(
                    [at], [fresh.value], yerr=figures.bars([fresh]), linestyle="none", **figures.mark(i)
                )
        axes.set_xlabel(f"{_UNITS[unit]} of the search, for one string")
        axes.set_ylabel("share of strings")
        axes.set_xlim(-0.01 * top, top * (1.06 + 0.03 * len(drawn)))
        figures.shares(axes)
        figures.legend(axes, [s.label for _, s, _ in drawn], 0.18)
    return out[0]


def trace_svg(queries: Sequence[int], losses: Sequence[float], found_at: int | None) -> Markup:
    """The best exact loss of one search, in nats, against the queries it had made."""
    with figures.figure("trace", 2.8) as (axes, out):
        axes.step(queries, losses, where="post", color=figures.hue(0), linewidth=1.5)
        axes.plot(queries, losses, linestyle="none", marker="o", markersize=4, color=figures.hue(0))
        if found_at is not None:
            axes.axvline(found_at, color=figures.INK, linewidth=1, linestyle="--", label="string first seen")
            axes.legend(loc="upper right", frameon=False)
        axes.set_xlabel("queries")
        axes.set_ylabel("best exact loss, nats")
        axes.set_ylim(bottom=min(0.0, *losses))
    return out[0]
