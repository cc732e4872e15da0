"""A federation over its rounds, and what a defence costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from redteam.core.stats import Estimate
from redteam.report import figures
from redteam.threats.poisoning.federation.report.series import Judged, Line, Point, Steps

_NEAR = 0.12, 0.06  # of the axes: numbers beside points that lie closer in both are left out
_SPAN = 0.06  # the least height of the axis of clean accuracy in the trade-off
RATES = ("filter_tpr", "filter_fpr")


def rounds_svg(
    lines: Sequence[Line], metric: str, base: Sequence[tuple[int, Estimate]], drift: Sequence[int]
) -> Markup | None:
    """`metric` (asr or cta) at every snapshot of every line, and of the clean reference; drift: thin verticals.

    The line of the run itself is thick and has its interval as a band. None if there is nothing to draw.
    """
    drawn = [(line, steps) for line in lines if (steps := _steps(line, metric))]
    if not drawn:
        return None
    with figures.figure(f"rounds-{metric}", 3.3) as (axes, out):
        figures.verticals(axes, drift)
        if base:
            xs, ys = [n for n, _ in base], [e.value for _, e in base]
            axes.plot(xs, ys, color=figures.INK, linewidth=1.2, linestyle="--", zorder=2)
        # This run's own line last, so that nothing covers it.
        for i, (line, steps) in enumerate(sorted(drawn, key=lambda pair: pair[0].own)):
            apart = max(1, len(steps) // 6)
            # Markers of lines that run together stand beside each other.
            figures.line(axes, steps, line.place, own=line.own, markevery=(i % apart, apart))
        axes.set_xlabel("rounds done")
        axes.set_ylabel(metric)
        axes.set_xlim(0, None)
        if metric == "asr":
            figures.shares(axes)
    return out[0]


def _steps(line: Line, metric: str) -> Steps:
    return line.asr if metric == "asr" else line.cta


def trade_svg(
    points: Sequence[Point], own: str, base_asr: Estimate | None, base_cta: Estimate | None
) -> Markup | None:
    """cta against asr of the final models, intervals as crosses. own: id of the run whose point is filled.

    Points of the run's defence at other shares of malicious clients are small, joined and carry their share.
    Dashed: the clean reference. None if no point has both numbers.
    """
    drawn = [
        (p, x, y)
        for p in points
        if (x := p.numbers["asr"]) is not None and (y := p.numbers["cta"]) is not None
    ]
    if not drawn:
        return None
    with figures.figure("trade", 4.0) as (axes, out):
        for base, line in ((base_asr, axes.axvline), (base_cta, axes.axhline)):
            if base is not None:
                line(base.value, color=figures.INK, linewidth=1, linestyle="--", alpha=0.7, zorder=1)
        joined = sorted((p.fraction, x.value, y.value) for p, x, y in drawn if p.line)
        axes.plot(
            [x for _, x, _ in joined], [y for _, _, y in joined], linewidth=1, alpha=0.7, zorder=1.5,
            color=figures.hue(next((p.place for p, _, _ in drawn if p.line), 0)),
        )  # fmt: skip
        for p, x, y in sorted(drawn, key=lambda d: own in d[0].ids):
            hue, shape, mine = figures.hue(p.place), figures.marker(p.place), own in p.ids
            figures.cross(axes, x, y, hue, shape, own=mine, strong=mine or p.here)
        axes.set_xlabel("asr of the final model")
        axes.set_ylabel("cta of the final model")
        axes.set_xlim(-0.05, 1.05)
        low, high = _limits([y for _, _, y in drawn], base_cta)
        axes.set_ylim(low, high)
        if len(joined) > 1:
            _shares(axes, joined, high - low)
    return out[0]


def _limits(values: Sequence[Estimate], base: Estimate | None) -> tuple[float, float]:
    """Around all values. Means over two seeds have intervals as wide as the axis, which would hide all differences."""
    every = [e.value for e in [*values, *([base] if base is not None else [])]]
    more = max(0.25 * (max(every) - min(every)), _SPAN / 2)
    return min(every) - more, max(every) + more


def _shares(axes: Any, joined: Sequence[tuple[float, float, float]], height: float) -> None:
    """The shares of malicious clients beside the points, where there is room."""
    placed: list[tuple[float, float]] = []
    for share, x, y in joined:
        if all(abs(x - a) / 1.1 > _NEAR[0] or abs(y - b) / height > _NEAR[1] for a, b in placed):
            axes.annotate(
                f"{share:g}", (x, y), xytext=(-7, 7), textcoords="offset points", ha="right", va="bottom", fontsize=9
            )  # fmt: skip
            placed.append((x, y))


def filter_svg(spans: Sequence[Judged], rounds: int, drift: Sequence[int]) -> Markup | None:
    """filter_tpr and filter_fpr over spans of rounds, intervals as bars. rounds: of the whole run."""
    if not any(name in s.metrics for s in spans for name in RATES):
        return None
    with figures.figure("filter", 3.0) as (axes, out):
        figures.verticals(axes, drift)
        for i, name in enumerate(RATES):
            for j, run in enumerate(_unbroken(spans)):
                mine = [((s.first + s.last) / 2, e) for s in run if (e := s.metrics.get(name)) is not None]
                axes.errorbar(
                    [x for x, _ in mine], [e.value for _, e in mine], yerr=figures.bars([e for _, e in mine]),
                    label=None if j else name, color=figures.hue(i), marker=figures.marker(i), markersize=5,
                    linewidth=1.3, elinewidth=0.9,
                )  # fmt: skip
        axes.set_xlabel("rounds done")
        axes.set_ylabel("share removed")
        axes.set_xlim(0, rounds + 1)
        figures.shares(axes)
        figures.legend(axes, RATES)
    return out[0]


def _unbroken(spans: Sequence[Judged]) -> list[list[Judged]]:
    """The spans, parted where no filter was at work between two of them."""
    out: list[list[Judged]] = []
    for span in spans:
        if out and span.first == out[-1][-1].last + 1:
            out[-1].append(span)
        else:
            out.append([span])
    return out
