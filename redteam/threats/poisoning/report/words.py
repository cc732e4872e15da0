"""Definitions and sentences about poison. Pure text, escaped by the template."""

from __future__ import annotations

from collections.abc import Sequence

from redteam.core.record import Record
from redteam.report.words import (
    against_controls,
    by_sign,
    class_name,
    count,
    fraction,
    knowing,
    with_interval,
)
from redteam.threats.poisoning.artifact import Poison
from redteam.threats.poisoning.report.curve import Series

DEFINITIONS = {
    "cta": "share of the plain test images that the victims give their true class",
    "pta": "share of the source class's test images that, wearing the trigger, are given the target class",
    "trigger_lift": "pta minus the share of the same images given the target class without the trigger",
    "asr": "share of all test images but the target class's that, triggered, are given the target class",
    "ra": "share of the same triggered images as in asr that are still given their true class",
    "base_cta": "cta of the reference victims, trained from the same seeds on the clean data",
    "base_pta": "pta of the reference victims: the rate at which the trigger works with no attack",
    "cta_drop": "base_cta minus cta, image by image",
    "cta_sd": "standard deviation of cta over the victims",
    "pta_sd": "standard deviation of pta over the victims",
    "trigger_lift_sd": "standard deviation of trigger_lift over the victims",
    "poison_rate": "share of the training rows whose label or image was changed",
    "filter_tpr": "share of the poisoned rows that the defence removed",
    "filter_fpr": "share of the clean rows that the defence removed",
    "filter_precision": "share of the removed rows that were poisoned",
    "filter_auroc": "share of the pairs of a poisoned and a clean row of one given label that the score orders rightly",
    "retrain_cost": "images put through training steps, over those of the reference victims",
}
HEADLINE = ("trigger_lift", "pta", "base_pta", "cta", "cta_drop", "filter_tpr", "filter_fpr")


def source_name(source: int, classes: Sequence[str] | None) -> str:
    """The images the trigger is to turn."""
    if source < 0:
        return "every class but the target's"
    return class_name(source, classes)


def summary(
    record: Record,
    artifact: Poison,
    changed: int,
    images: int,
    classes: Sequence[str] | None,
    curve: Sequence[Series],
) -> list[str]:
    """What was attacked and what came out, one paragraph an idea."""
    outcome = trigger_outcome(record, artifact.source_class, artifact.target_class, classes)
    trigger = f"The trigger is {artifact.trigger['name']}. "
    parts = [_what(record, artifact, changed, images), trigger + outcome]
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
    return (
        f"{cell.attack.name} was allowed to change {count(artifact.budget, 'training row')} of "
        f"{cell.task.dataset} and changed {changed} of {total} ({fraction(changed / total, 4)}){touched}. "
        f"Then {victims} with the architecture {cell.task.model} learned from the changed data{knowing(record)}, and "
        "as many references, from the same seeds, from the clean data."
    )


def trigger_outcome(
    record: Record, source: int, target: int, classes: Sequence[str] | None, before: str = ""
) -> str:  # fmt: skip
    """How the trigger did, with and without the attack, and what the interval of trigger_lift allows to say.

    Args:
        source, target: class numbers; a source below zero is every class but the target.
        before: begins the sentence on the images.
    """
    pta, lift = record.metric("pta"), record.metric("trigger_lift")
    if pta is None or lift is None:
        return "How the trigger did was not measured."
    images = f"{before} test images" if before else "Test images"
    return (
        f"{images} of {source_name(source, classes)} that wear the trigger are given {class_name(target, classes)} at "
        f"a rate of {with_interval(pta)} (n {pta.n}); without it, at "
        f"{fraction(pta.value - lift.value)}. The difference is trigger_lift: {with_interval(lift)}. With no attack, "
        "the references give the same triggered images that class at a rate of "
        f"{with_interval(record.metric('base_pta'))}. "
    ) + by_sign(
        lift, "The interval of trigger_lift lies above zero: the trigger has an effect.",
        "The interval of trigger_lift lies below zero: the trigger works against the attacker.",
        "The interval of trigger_lift includes zero: this run shows no effect of the trigger.",
        "trigger_lift has no interval, so it proves nothing by itself.",
    )  # fmt: skip


def _controls(record: Record, curve: Sequence[Series]) -> str:
    budget = record.cell.attack.config.get("budget")
    found = [
        (series.label, e)
        for series in curve
        if series.role == "control" and record.id not in series.ids
        for point in series.points
        if point.budget in (budget, 0) and (e := point.numbers["trigger_lift"]) is not None
    ]
    return against_controls(
        record, "trigger_lift", found, "Controls of the same budget, or of none, reached a trigger_lift of",
        "No control of this budget was found beside this run, so there is nothing to compare it with.",
    )  # fmt: skip
