"""The two pictures of a run of adversarial strings, drawn as `redteam.report.plots` draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from redteam.core.stats import Estimate
from redteam.report.plots import _INK, _bars, _figure, _mark
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
    with _figure(f"success-{unit}", 3.4) as (_, axes, out):
        if initial is not None:
            axes.axhline(initial.value, color=_INK, linewidth=1, linestyle="--", label="initial prompts")
        for place, (i, one, points) in enumerate(drawn):
            _line(
                axes,
                one,
                [*points, (top, points[-1][1])],
                _mark(i),
                band=own in one.ids and len(one.ids) != 2,
            )
            if (fresh := one.metrics["success"]) is not None:
                # Beside the end of the axis, and apart, else the bars of several series hide each other.
                at = top * (1.03 + 0.03 * place)
                axes.errorbar([at], [fresh.value], yerr=_bars([fresh]), linestyle="none", **_mark(i))
        axes.set_xlabel(f"{_UNITS[unit]} of the search, for one string")
        axes.set_ylabel("share of strings")
        axes.set_xlim(-0.01 * top, top * (1.06 + 0.03 * len(drawn)))
        axes.set_ylim(-0.03, 1.03)
        columns = 1 if max(len(s.label) for _, s, _ in drawn) > 22 else 2
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=columns, frameon=False)
    return out[0]


def _line(
    axes: Any, one: Series, points: Sequence[tuple[float, Estimate]], mark: dict[str, Any], *, band: bool
) -> None:
    queries, estimates = [q for q, _ in points], [e for _, e in points]
    style = "-" if one.role == "attack" else ":"
    look = {"color": mark["color"], "linewidth": mark["linewidth"], "linestyle": style, "label": one.label}
    axes.step(queries, [e.value for e in estimates], where="post", **look)
    if band:
        ends = [(e.low, e.high) for e in estimates if e.low is not None and e.high is not None]
        axes.fill_between(
            queries, [low for low, _ in ends], [high for _, high in ends], step="post",
            color=mark["color"], alpha=0.15, linewidth=0,
        )  # fmt: skip


def trace_svg(queries: Sequence[int], losses: Sequence[float], found_at: int | None) -> Markup:
    """The best exact loss of one search, in nats, against the queries it had made."""
    mark = _mark(0)
    with _figure("trace", 2.8) as (_, axes, out):
        axes.step(queries, losses, where="post", color=mark["color"], linewidth=1.5)
        axes.plot(queries, losses, linestyle="none", marker="o", markersize=4, color=mark["color"])
        if found_at is not None:
            axes.axvline(found_at, color=_INK, linewidth=1, linestyle="--", label="string first seen")
            axes.legend(loc="upper right", frameon=False)
        axes.set_xlabel("queries")
        axes.set_ylabel("best exact loss, nats")
        axes.set_ylim(bottom=min(0.0, *losses))
    return out[0]
