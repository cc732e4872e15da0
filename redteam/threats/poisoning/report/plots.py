"""Success against budget, or by attack where there is one budget alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from redteam.core.stats import Estimate
from redteam.report import figures
from redteam.threats.poisoning.report.curve import Series, budgets


def curve_svg(series: Sequence[Series], metric: str, base: Estimate | None) -> Markup:
    """`metric` (pta or trigger_lift) of every series: against budget, or by attack if there is one budget alone."""
    if len(budgets(series)) > 1:
        return _against_budget(series, metric, base)
    return _by_attack(series, metric, base)


def _values(series: Series, metric: str) -> list[Estimate]:
    return [e for p in series.points if (e := p.numbers[metric]) is not None]


def _against_budget(series: Sequence[Series], metric: str, base: Estimate | None) -> Markup:
    top = max(budgets(series))
    with figures.figure(metric.removeprefix("trigger_"), 3.2) as (axes, out):
        _reference(axes.axhline, axes.axhspan, base)
        for i, one in enumerate(series):
            pairs = [(p.budget, e) for p in one.points if (e := p.numbers[metric]) is not None]
            if not pairs:
                continue
            # Series are moved apart a little, else bars of one budget hide each other.
            aside = 0.008 * top * (i - (len(series) - 1) / 2)
            estimates = [e for _, e in pairs]
            axes.errorbar(
                [b + aside for b, _ in pairs], [e.value for e in estimates], yerr=figures.bars(estimates),
                label=one.label, linestyle="-" if one.role == "attack" else ":", **figures.mark(i),
            )  # fmt: skip
        axes.set_xlabel("budget: training rows that may change")
        axes.set_ylabel(metric)
        axes.set_ylim(*_limits(series, metric))
        figures.legend(axes, [s.label for s in series])
    return out[0]


def _by_attack(series: Sequence[Series], metric: str, base: Estimate | None) -> Markup:
    drawn = [(i, s.label, e) for i, s in enumerate(series) for e in _values(s, metric)]
    height = 0.6 + 0.5 * len(drawn)
    with figures.figure(metric.removeprefix("trigger_"), height) as (axes, out):
        _reference(axes.axvline, axes.axvspan, base)
        for place, (i, name, e) in enumerate(drawn):
            axes.errorbar([e.value], [place], xerr=figures.bars([e]), linestyle="none", **figures.mark(i))
            # The name stands above its bar, as beside the axis long names would shrink the drawing; and to
            # the right, as base rates are low.
            where = axes.get_yaxis_transform()
            axes.text(0.99, place - 0.25, name, transform=where, va="bottom", ha="right")
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(drawn) - 0.6, -0.8)
        axes.set_xlim(*_limits(series, metric))
        axes.set_xlabel(metric)
        if base is not None:
            figures.legend(axes, [], 0.55 / height, columns=1)
    return out[0]


def _reference(line: Any, span: Any, base: Estimate | None) -> None:
    """The base rate with its interval; without one, a line at zero."""
    if base is None:
        line(0, color=figures.INK, linewidth=0.8)
        return
    line(base.value, color=figures.INK, linewidth=1.2, linestyle="--", label="base rate: clean victims")
    if base.low is not None and base.high is not None:
        span(base.low, base.high, color=figures.INK, alpha=0.12, linewidth=0)


def _limits(series: Sequence[Series], metric: str) -> tuple[float, float]:
    """Zero to one, further down where an interval goes below zero."""
    lows = [e.low for s in series for e in _values(s, metric) if e.low is not None]
    return min(0.0, *lows, 0.0) - 0.03, 1.03
