"""Numbers, names, sentences and commands as a reader sees them. Pure text, escaped by the template."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from redteam.core.hashing import canonical_json
from redteam.core.record import Metric, Record
from redteam.core.stats import Estimate
from redteam.report.curve import Series, of_metric
from redteam.threats.poisoning.artifact import Poison

DEFINITIONS = {
    "cta": "share of the plain test images that the victims give their true class",
    "pta": "share of the source class's test images that, wearing the trigger, are given the target class",
    "trigger_lift": "pta minus the share of the same images given the target class without the trigger",
    "asr": "share of all test images but the target class's that, triggered, are given the target class",
    "ra": "share of the same triggered images as in asr that are still given their true class",
    "base_cta": "cta of the reference victims, trained from the same seeds on the clean data",
    "base_pta": "pta of the reference victims: the rate at which the trigger works with no attack",
    "cta_drop": "base_cta minus cta, image by image",
    "poison_rate": "share of the training rows whose label or image was changed",
    "filter_tpr": "share of the poisoned rows that the defence removed",
    "filter_fpr": "share of the clean rows that the defence removed",
    "filter_precision": "share of the removed rows that were poisoned",
    "filter_auroc": "share of the pairs of a poisoned and a clean row of one given label that the score orders rightly",
    "retrain_cost": "images put through training steps, over those of the reference victims",
}
HEADLINE = ("trigger_lift", "pta", "base_pta", "cta", "cta_drop", "filter_tpr", "filter_fpr")


def fraction(value: float, places: int = 3) -> str:
    """A fixed number of decimals, and no minus sign before zero."""
    return f"{round(value, places) + 0.0:.{places}f}"


def bounds(low: float | None, high: float | None) -> str:
    """`[0.310, 0.604]`, or what to read instead."""
    return "no interval" if low is None or high is None else f"[{fraction(low)}, {fraction(high)}]"


def with_interval(e: Estimate | Metric | None) -> str:
    """`0.452 [0.310, 0.604]`, or `not measured`."""
    return "not measured" if e is None else f"{fraction(e.value)} {bounds(e.low, e.high)}"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """`1 victim`, `3 victims`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def class_name(number: int, classes: Sequence[str] | None) -> str:
    """`class 9 (truck)`; the number alone where the data set was not given, or calls its classes so."""
    if classes is None or classes[number] == str(number):
        return f"class {number}"
    return f"class {number} ({classes[number]})"


def source_name(artifact: Poison, classes: Sequence[str] | None) -> str:
    """The images the trigger is to turn."""
    if artifact.source_class < 0:
        return "every class but the target's"
    return class_name(artifact.source_class, classes)


def plain(value: Any) -> str:
    """A config value as JSON, but a bare word for text."""
    return value if isinstance(value, str) else canonical_json(value)


def settings(content: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of a config, by name."""
    return [(k, plain(v)) for k, v in sorted(content.items())]


def summary(
    record: Record,
    artifact: Poison,
    changed: int,
    images: int,
    classes: Sequence[str] | None,
    curve: Sequence[Series],
) -> list[str]:
    """What was attacked and what came out, one paragraph an idea."""
    parts = [_what(record, artifact, changed, images), _outcome(record, artifact, classes)]
    if (cta := record.metric("cta")) is not None:
        parts.append(
            f"On plain test images the victims are right at a rate of {with_interval(cta)}; the references "
            f"at {with_interval(record.metric('base_cta'))}. The price of the attack in clean accuracy is "
            f"{with_interval(record.metric('cta_drop'))}."
        )
    return [*parts, _controls(record, curve)]


def _what(record: Record, artifact: Poison, changed: int, images: int) -> str:
    cell, total = record.cell, len(artifact.targets)
    touched = f", the images of {images} of them too" if images else ""
    lift = record.metric("trigger_lift")
    victims = count(lift.seeds, "victim") if lift else "the victims"
    behind = ""
    if cell.defenses:
        knew = "knew of it" if cell.knowledge == "adaptive" else "did not know of it"
        behind = f", behind {' and '.join(d.name for d in cell.defenses)} (the attack {knew})"
    return (
        f"{cell.attack.name} was allowed to change {count(artifact.budget, 'training row')} of "
        f"{cell.task.dataset} and changed {changed} of {total} ({fraction(changed / total, 4)}){touched}. "
        f"Then {victims} with the architecture {cell.task.model} learned from the changed data{behind}, and "
        "as many references, from the same seeds, from the clean data."
    )


def _outcome(record: Record, artifact: Poison, classes: Sequence[str] | None) -> str:
    pta, lift = record.metric("pta"), record.metric("trigger_lift")
    if pta is None or lift is None:
        return "How the trigger did was not measured."
    goal = class_name(artifact.target_class, classes)
    source = source_name(artifact, classes)
    text = (
        f"The trigger is {artifact.trigger['name']}. Test images of {source} that wear it are given {goal} "
        f"at a rate of {with_interval(pta)}; without it, at {fraction(pta.value - lift.value)}. The "
        f"difference is trigger_lift: {with_interval(lift)}. For comparison, the references give the target "
        f"class to images that wear the trigger at a rate of {with_interval(record.metric('base_pta'))}. "
    )
    if lift.low is None or lift.high is None:
        return text + "trigger_lift has no interval, so it proves nothing by itself."
    if lift.low > 0:
        return f"{text}The interval of trigger_lift lies above zero: the trigger has an effect."
    if lift.high < 0:
        return f"{text}The interval of trigger_lift lies below zero: the trigger works against the attacker."
    return text + "The interval of trigger_lift includes zero: this run shows no effect of the trigger."


def _controls(record: Record, curve: Sequence[Series]) -> str:
    budget = record.cell.attack.config.get("budget")
    found = [
        (series.label, point.lift)
        for series in curve
        if series.role == "control" and record.id not in series.ids
        for point in series.points
        if point.budget in (budget, 0) and point.lift is not None
    ]
    own = "This run is itself a control. " if record.role == "control" else ""
    if not found:
        return (
            own
            + "No control of this budget was found beside this run, so there is nothing to compare it with."
        )
    listed = "; ".join(f"{name} {with_interval(e)}" for name, e in found)
    text = f"{own}Controls of the same budget, or of none, reached a trigger_lift of: {listed}."
    lift = of_metric(record, "trigger_lift")
    if own or lift is None or lift.low is None:
        return text
    close = [name for name, e in found if e.high is None or e.high >= lift.low]
    if not close:
        return text + " The interval of this run lies above that of every one of them."
    return text + f" The interval of this run does not lie above that of {', '.join(close)}."


def command(record: Record) -> str | None:
    """The command that runs this cell again, every setting named. None if nobody here ran it."""
    cell = record.cell
    if record.source != "measured":
        return None
    dataset = cell.task.dataset.removesuffix("-jpeg")
    words = [
        "redteam",
        "attack",
        cell.attack.name,
        "--dataset",
        dataset,
        "-o",
        f"target.model={cell.task.model}",
    ]
    for d in cell.defenses:
        pairs = ",".join(f"{k}={_option(v)}" for k, v in sorted(d.config.items()))
        words += ["--defense", f"{d.name}:{pairs}" if pairs else d.name]
    if cell.defenses and cell.knowledge == "adaptive":
        words.append("--adaptive")
    for prefix, config in (("", cell.attack.config), ("target.", cell.task.config)):
        # `content` pins a model file; it is no setting.
        for key, value in sorted((k, v) for k, v in config.items() if k != "content"):
            words += ["-o", f"{prefix}{key}={_option(value)}"]
    return " ".join(map(shlex.quote, [*words, "--controls", "none", "--seed", str(cell.seed)]))


def _option(value: Any) -> str:
    """A config value as the command line takes it."""
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ",".join(map(_option, value))
    return plain(value)
