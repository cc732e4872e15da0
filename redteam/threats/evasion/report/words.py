"""Definitions and sentences about perturbed images. Pure text, escaped by the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from redteam.core.record import Record
from redteam.core.stats import Estimate
from redteam.report.beside import Row
from redteam.report.words import UNDEFENDED, behind, by_sign, count, fraction, with_interval
from redteam.threats.evasion.artifact import Perturbed
from redteam.threats.evasion.metrics import black_box_gain, claims, rises
from redteam.threats.evasion.report import series
from redteam.threats.evasion.report.series import After, AtRadius

HEADLINE = (
    "accuracy", "robust_accuracy", "robust_drop", "attack_success", "pseudo_accuracy", "selection_gap",
    "forwards_mean", "backwards_mean",
)  # fmt: skip
# Not shares of anything: printed with one decimal, and without an interval.
COUNTS = ("forwards_mean", "backwards_mean")
DEFINITIONS = {
    "accuracy": "share of the test images read right as they are",
    "robust_accuracy": "share read right as they are and as the attack left them, at the main radius",
    "robust_drop": "accuracy minus robust_accuracy, image by image",
    "attack_success": "share misread as the attack left them, of the images read right as they are",
    "accuracy_sd": "standard deviation of accuracy over the victims",
    "robust_accuracy_sd": "standard deviation of robust_accuracy over the victims",
    "forwards_mean": "images put through the network for one test image, as the attack counted them",
    "backwards_mean": "gradients taken for one test image, as the attack counted them",
    "pseudo_accuracy": "share of the pseudo-labels that are right as they stand when the training ended, the last "
    "refresh included",
    "selection_gap": "what the oracle's choice of state has over the one in use, in accuracy under the scorer's PGD",
    "val_source_clean": "of the attacked state: accuracy on validation images of the source",
    "val_source_pgd": "of the attacked state: accuracy on validation images of the source under PGD",
    "val_pseudo": "of the attacked state: accuracy on validation images of the target under PGD, by pseudo-labels",
    "val_oracle": "of the attacked state: accuracy on validation images of the target under PGD, by true labels",
    "val_oracle_clean": "of the attacked state: accuracy on validation images of the target as they are",
}
CRITERIA = {
    "source_clean": "accuracy on the source",
    "source_pgd": "accuracy on the source under PGD",
    "pseudo": "accuracy on the target under PGD, by pseudo-labels",
    "oracle": "accuracy on the target under PGD, by true labels",
    "oracle_clean": "accuracy on the target, by true labels",
}
SELECTORS = {
    "source-clean": "best accuracy on the source's validation images",
    "source-pgd": "best accuracy on the source's validation images under PGD",
    "pseudo": "best agreement with pseudo-labels on the target's validation images under PGD; needs no labels there",
    "oracle": "best accuracy on the target's validation images under PGD; looks at labels nobody would have",
    "last": "the state in which the training ended",
}
# (what it measures, the flag it raises). Thresholds are those of docs/flags.md.
PROBES = {
    "classes": ("logits the network gives", "few-classes"),
    "logit-difference": ("largest difference of logits between two passes of the same images", "randomised-output"),
    "answers-differ": ("images answered otherwise in a second pass", "randomised-output"),
    "probabilities": ("outputs that are probabilities and no logits", "softmax-output"),
    "zero-gradient-ce": ("images read right whose cross-entropy has no gradient", "zero-gradients"),
    "zero-gradient-margin": ("images read right whose margin has no gradient", "zero-gradients"),
    "left-in-the-full-ball": ("images still read right when PGD may turn each into any other", "not-at-chance"),
    "autograd-in-forward": ("calls of autograd or an optimiser within one forward pass", "optimises-in-forward"),
    "target-labels-used": ("labels of the target domain chose the state or its pseudo-labels", "oracle-selected"),
    "replayed": ("the images were made on the undefended networks and replayed", None),
}  # fmt: skip
YES_NO = ("target-labels-used", "replayed")
FLAGS = {
    "randomised-output": "two passes of the same images differ. Attacks that judge success once are too weak against "
    "it, and the accuracy is that of one draw.",
    "softmax-output": "the network gives probabilities. Attacks expect logits; on probabilities their losses have "
    "small gradients or none.",
    "zero-gradients": "for some images read right the gradient is zero, not finite or not there. Believe only attacks "
    "that need no gradient.",
    "not-at-chance": "PGD that may turn every image into any other leaves more read right than guessing would. The "
    "attack fails for reasons of its own, or the network says one thing of everything.",
    "optimises-in-forward": "a forward pass differentiates or optimises. Attacks mostly see too little of such a loop.",
    "few-classes": "fewer than four classes: the targeted DLR loss is not defined, and the margin stands in for it.",
    "oracle-selected": "labels of the target domain chose the state, or its pseudo-labels. Nobody who adapts without "
    "labels can do that; read selection_gap.",
    "black-box-beats-white-box": "images that stood after the white-box attacks fell to the black-box one. Gradients "
    "mislead the attacks: robust accuracy may be too high.",
    "not-monotone": "robust accuracy is higher at a larger radius than at a smaller one, so the attack at the larger "
    "one failed.",
    "not-reproduced": "more than 0.01 of the images said to fool the network were read right when asked afresh.",
    "ensemble-cut-short": "survivors took fewer steps or queries than the ensemble's definition says, so it is not "
    "called by its name.",
    "accuracy-at-chance": "accuracy is not above guessing: the network learnt nothing that shows, and its robustness "
    "means nothing.",
}  # fmt: skip


def flag_meanings(record: Record, given: Mapping[str, str]) -> dict[str, str]:
    """The meaning of each flag of a record: what the caller gave, else ours."""
    return {f: text for f in record.flags if (text := given.get(f, FLAGS.get(f, "")))}


def replayed(probes: pd.DataFrame) -> bool:
    """Whether the images were made on other networks than those that were asked."""
    return bool(probes.loc[probes["name"] == "replayed", "value"].any())


def summary(
    record: Record, artifact: Perturbed, tables: Mapping[str, pd.DataFrame], at: Sequence[AtRadius],
    rows: Sequence[Row], attacks: Sequence[Row],
) -> list[str]:  # fmt: skip
    """What was attacked and what came out, one paragraph an idea."""
    parts = [
        _what(record, artifact, replayed(tables["probes"])), _outcome(record), _over_radii(at),
        _ensemble(artifact, series.survivors(record, artifact)), _choice(record), _beside(rows, attacks),
    ]  # fmt: skip
    return [p for p in parts if p]


def _what(record: Record, artifact: Perturbed, other: bool) -> str:
    cell, config = record.cell, record.cell.task.config
    if cell.defenses:
        how = f"trained by {behind(record)}"
    else:
        how = "given with its weights" if "model_sha256" in config else "trained without a defence"
    held = (
        "The images were made on the undefended networks; these were then asked about the same images."
        if other
        else "The attack held the very networks that were then asked about its images."
        if record.role != "control"
        else "This is a control: what it gives, an attack must beat."
    )
    chosen = SELECTORS.get(str(config.get("select")))
    state = f" Attacked is the state of each training that the selector {config['select']} takes: {chosen}."
    return (
        f"{cell.attack.name} was allowed to move each of {count(len(artifact.rows), 'test image')} of "
        f"{cell.task.dataset} by at most {artifact.main:g} in {artifact.norm}, for pixels in [0, 1], so that "
        f"{count(artifact.victims, 'network')} of the architecture {cell.task.model}, {how}, misread it. {held}"
        f"{state if chosen and 'model_sha256' not in config else ''}"
    )


def _outcome(record: Record) -> str:
    clean, stands = record.metric("accuracy"), record.metric("robust_accuracy")
    drop, success = record.metric("robust_drop"), record.metric("attack_success")
    if clean is None or stands is None or drop is None:
        return "What the networks make of the images was not measured."
    text = (
        f"As they are, {with_interval(clean)} of the images are read right; as the attack left them, "
        f"{with_interval(stands)}. The difference, image by image, is {with_interval(drop)}"
    )
    if success is not None:
        text += f"; of those that were read right, {with_interval(success)} were turned"
    none = "The interval of the difference includes zero: this run shows no effect."
    verdict = by_sign(
        drop, "The interval of the difference lies above zero: moving the images has an effect.", none, none,
        "The difference has no interval, so it proves nothing by itself.",
    )  # fmt: skip
    return f"{text}. {verdict} Robust accuracy is that under this attack alone; a stronger one leaves less."


def _over_radii(at: Sequence[AtRadius]) -> str:
    if len(at) < 2:
        return ""
    first, last = at[0], at[-1]
    return (
        f"{len(at)} radii were attacked, each by itself: robust accuracy goes from {with_interval(first.robust)} at "
        f"{first.eps:.4g} to {with_interval(last.robust)} at {last.eps:.4g}."
    )


def _ensemble(artifact: Perturbed, stages: Sequence[After]) -> str:
    if not stages:
        return ""
    broke = ", ".join(f"{s.name} {with_interval(s.broke)}" for s in stages)
    # A short ensemble runs under the plug-in's name and must not pass for the one of the definition.
    called = artifact.notes.get("ensemble")
    what = f" By its own account, what ran is: {called}." if called else ""
    return (
        "Each attack of the ensemble met only the images that those before it had left. Of all test images, "
        f"these shares fell to each first: {broke}.{what}"
    )


def _choice(record: Record) -> str:
    gap, pseudo = record.metric("selection_gap"), record.metric("pseudo_accuracy")
    parts = []
    if pseudo is not None:
        parts.append(
            "The pseudo-labels as they stand when the training ended, the last refresh included, are right at a rate "
            f"of {with_interval(pseudo)}."
        )
    if gap is not None:
        text = (
            "Had labels of the target domain chosen the state, accuracy under the scorer's own PGD would differ by "
            f"{with_interval(gap)}"
        )
        verdict = by_sign(
            gap, "choosing without them has a price", "choosing without them did better",
            "this run shows no price of choosing without them", "that has no interval",
        )  # fmt: skip
        parts.append(f"{text}: {verdict}.")
    return " ".join(parts)


def _beside(rows: Sequence[Row], attacks: Sequence[Row]) -> str:
    bare = next((r for r in rows[1:] if r.label == UNDEFENDED), None)
    same = attacks[1:]
    parts = []
    if bare is not None:
        parts.append(
            f"Without a defence, robust accuracy under the same attack is "
            f"{with_interval(bare.numbers['robust_accuracy'])} ({count(len(bare.ids), 'seed')})."
        )
    if same:
        listed = "; ".join(f"{r.label} {with_interval(r.numbers['robust_accuracy'])}" for r in same)
        parts.append(f"Of the same networks under other attacks and controls: {listed}.")
        known = [(r, e) for r in attacks if (e := r.numbers["robust_accuracy"]) is not None]
        least = min(known, key=lambda pair: pair[1].value)[0] if known else None
        if least is not None and least is not attacks[0]:
            parts.append(
                f"The least of these is that of {least.label}: believe it, and not the number above."
            )
    return " ".join(parts) or (
        "Neither a control, nor another attack, nor the same attack without a defence was found beside this run, so "
        "there is nothing to compare it with."
    )


def checks(artifact: Perturbed, outcomes: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(what, measured, flag) of what the outcomes themselves say about the attack."""
    claimed, held = claims(outcomes)
    up = rises(outcomes)
    worst = max(up, key=lambda r: r[2].value, default=None)
    gain = black_box_gain(outcomes, artifact.main, artifact.attacks)
    most = f"; most from {worst[0]:.4g} to {worst[1]:.4g}: {with_interval(worst[2])}" if worst else ""
    found = [
        ("images said to fool the network, read right when asked afresh", f"{held} of {claimed}", "not-reproduced"),
        ("pairs of radii where the larger leaves more standing, beyond chance", f"{len(up)}{most}", "not-monotone"),
    ]  # fmt: skip
    if gain is not None:
        what = "share of the images that fell to a black-box attack after white-box ones"
        found.append((what, with_interval(gain), "black-box-beats-white-box"))
    return found


def probe_value(name: str, value: float, n: int) -> str:
    """`3 of 100`, `yes`, or a number."""
    if name in YES_NO:
        return "yes" if value else "no"
    if name in ("classes", "logit-difference", "autograd-in-forward"):
        return f"{value:.3g}"
    return f"{value:g} of {n}"


def measured(name: str, e: Estimate | None) -> str:
    """A number as the table of attacks shows it: counts with one decimal."""
    if e is None:
        return "not measured"
    return fraction(e.value, 1) if name in COUNTS else with_interval(e)
