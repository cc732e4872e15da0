"""A federation over its rounds, and what a defence costs, drawn as `redteam.report.plots` draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from redteam.core.stats import Estimate
from redteam.report.plots import _INK, _MARKERS, _bars, _figure
from redteam.threats.agents.report.plots import _HUES, COLOURS, GLYPHS, _coloured
from redteam.threats.poisoning.federation.report.series import Judged, Line, Point

_NEAR = 0.12, 0.06  # of the axes: numbers beside points that lie closer in both are left out
_SPAN = 0.06  # the least height of the axis of clean accuracy in the trade-off
Steps = Sequence[tuple[int, Estimate]]


def glyph(place: int) -> str:
    """The marker of a defence."""
    return GLYPHS[_marker(place)]


def colour(place: int) -> str:
    """The CSS colour of a defence."""
    return f"var(--series-{place % COLOURS})"


def _marker(place: int) -> int:
    """Eight colours with eight markers each: the second eight defences get other markers than the first."""
    return (place + place // COLOURS) % len(_MARKERS)


def rounds_svg(lines: Sequence[Line], metric: str, base: Steps, drift: Sequence[int]) -> Markup | None:
    """`metric` (asr or cta) at every snapshot of every line, and of the clean reference; drift: thin verticals.

    The line of the run itself is thick and has its interval as a band. None if there is nothing to draw.
    """
    drawn = [(line, steps) for line in lines if (steps := _steps(line, metric))]
    if not drawn:
        return None
    with _figure(f"rounds-{metric}", 3.3) as (_, axes, out):
        _verticals(axes, drift)
        if base:
            axes.plot(
                [n for n, _ in base], [e.value for _, e in base], color=_INK, linewidth=1.2, linestyle="--", zorder=2
            )  # fmt: skip
        # This run's own line last, so that nothing covers it.
        for i, (line, steps) in enumerate(sorted(drawn, key=lambda pair: pair[0].own)):
            _drawn(axes, line, steps, i)
        axes.set_xlabel("rounds done")
        axes.set_ylabel(metric)
        axes.set_xlim(0, None)
        if metric == "asr":
            axes.set_ylim(-0.03, 1.03)
    return _coloured(out[0])


def _steps(line: Line, metric: str) -> Steps:
    return line.asr if metric == "asr" else line.cta


def _drawn(axes: Any, line: Line, steps: Steps, index: int) -> None:
    hue = _HUES[line.place % COLOURS]
    xs, ys = [n for n, _ in steps], [e.value for _, e in steps]
    apart = max(1, len(xs) // 6)
    axes.plot(
        xs, ys, color=hue, linewidth=2.6 if line.own else 1.2, alpha=1 if line.own else 0.8,
        marker=_MARKERS[_marker(line.place)], markersize=7 if line.own else 5,
        # Markers of lines that run together stand beside each other.
        markevery=(index % apart, apart), markerfacecolor=hue if line.own else "none", zorder=5 if line.own else 3,
    )  # fmt: skip
    if line.own:
        _band(axes, steps, hue)


def _band(axes: Any, steps: Steps, hue: str) -> None:
    known = [(n, e.low, e.high) for n, e in steps if e.low is not None and e.high is not None]
    if known:
        xs, lows, highs = zip(*known, strict=True)
        axes.fill_between(xs, lows, highs, color=hue, alpha=0.2, linewidth=0, zorder=1)


def _verticals(axes: Any, drift: Sequence[int]) -> None:
    for number in drift:
        axes.axvline(number, color=_INK, linewidth=0.7, alpha=0.5, zorder=1)


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
    with _figure("trade", 4.0) as (_, axes, out):
        for base, line in ((base_asr, axes.axvline), (base_cta, axes.axhline)):
            if base is not None:
                line(base.value, color=_INK, linewidth=1, linestyle="--", alpha=0.7, zorder=1)
        joined = sorted((p.fraction, x.value, y.value) for p, x, y in drawn if p.line)
        axes.plot(
            [x for _, x, _ in joined], [y for _, _, y in joined], linewidth=1, alpha=0.7, zorder=1.5,
            color=_HUES[next((p.place for p, _, _ in drawn if p.line), 0) % COLOURS],
        )  # fmt: skip
        for p, x, y in sorted(drawn, key=lambda d: own in d[0].ids):
            _cross(axes, p, x, y, own=own in p.ids)
        axes.set_xlabel("asr of the final model")
        axes.set_ylabel("cta of the final model")
        axes.set_xlim(-0.05, 1.05)
        low, high = _limits([y for _, _, y in drawn], base_cta)
        axes.set_ylim(low, high)
        if len(joined) > 1:
            _shares(axes, joined, high - low)
    return _coloured(out[0])


def _limits(values: Sequence[Estimate], base: Estimate | None) -> tuple[float, float]:
    """Around all values. Means over two seeds have intervals as wide as the axis, which would hide all differences."""
    every = [e.value for e in [*values, *([base] if base is not None else [])]]
    more = max(0.25 * (max(every) - min(every)), _SPAN / 2)
    return min(every) - more, max(every) + more


def _cross(axes: Any, point: Point, x: Estimate, y: Estimate, *, own: bool) -> None:
    hue, strong = _HUES[point.place % COLOURS], own or point.here
    axes.errorbar(
        [x.value], [y.value], xerr=_bars([x]), yerr=_bars([y]), linestyle="none", ecolor=hue,
        elinewidth=1.6 if own else 1, alpha=0.95 if own else 0.55, zorder=3 if own else 2,
    )  # fmt: skip
    axes.plot(
        [x.value], [y.value], linestyle="none", marker=_MARKERS[_marker(point.place)], color=hue,
        markersize=10 if own else 7 if strong else 4, markerfacecolor=hue if own else "none",
        markeredgewidth=1.6 if strong else 1, zorder=4 if own else 3,
    )  # fmt: skip


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
    with _figure("filter", 3.0) as (_, axes, out):
        _verticals(axes, drift)
        for i, name in enumerate(RATES):
            for j, run in enumerate(_unbroken(spans)):
                mine = [((s.first + s.last) / 2, e) for s in run if (e := s.metrics.get(name)) is not None]
                axes.errorbar(
                    [x for x, _ in mine], [e.value for _, e in mine], yerr=_bars([e for _, e in mine]),
                    label=None if j else name, color=_HUES[i], marker=_MARKERS[i], markersize=5, linewidth=1.3,
                    elinewidth=0.9,
                )  # fmt: skip
        axes.set_xlabel("rounds done")
        axes.set_ylabel("share removed")
        axes.set_xlim(0, rounds + 1)
        axes.set_ylim(-0.03, 1.03)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    return _coloured(out[0])


def _unbroken(spans: Sequence[Judged]) -> list[list[Judged]]:
    """The spans, parted where no filter was at work between two of them."""
    out: list[list[Judged]] = []
    for span in spans:
        if out and span.first == out[-1][-1].last + 1:
            out[-1].append(span)
        else:
            out.append([span])
    return out


RATES = ("filter_tpr", "filter_fpr")
