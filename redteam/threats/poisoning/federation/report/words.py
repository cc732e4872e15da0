"""Definitions and sentences about malicious clients of a federation. Pure text, escaped by the template."""

from __future__ import annotations

from collections.abc import Sequence

from redteam.core.record import Metric, Record
from redteam.core.stats import Estimate
from redteam.report.beside import pooled
from redteam.report.words import (
    UNDEFENDED,
    as_control,
    behind,
    class_name,
    count,
    fraction,
    knowing,
    with_interval,
)
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.report import series
from redteam.threats.poisoning.federation.report.series import Line, Point
from redteam.threats.poisoning.report import words
from redteam.threats.poisoning.report.words import source_name, trigger_outcome

HEADLINE = (
    "asr", "asr_max", "base_pta", "trigger_lift", "cta", "cta_drop", "filter_tpr", "filter_fpr",
)  # fmt: skip
DEFINITIONS = {
    **words.DEFINITIONS,
    "cta": "share of the plain test images that the final models give their true class",
    "base_cta": "cta of the references: undefended federations of honest clients from the same seeds",
    "base_pta": "pta of the references: the rate at which the trigger works with no attack",
    "asr_mean": "mean of asr over all snapshots, the images as they look in each one's last round",
    "asr_max": "largest asr of any snapshot: the backdoor at its strongest",
    "cta_mean": "mean of cta over all snapshots, the images as they look in each one's last round",
    "malicious_rate": "share of the appearances of clients in rounds that acted against the goal of the training",
    "rejected_rate": "share of the appearances whose update was not finite and was rejected before any rule",
    "filter_tpr": "share of the malicious appearances that were removed, in rounds with a filter at work",
    "filter_fpr": "share of the honest appearances that were removed, in rounds with a filter at work",
    "filter_precision": "share of the removed appearances that were malicious",
    "filter_auroc": "share of the pairs of a malicious and an honest client of one round that the score orders rightly",
    "retrain_cost": "images put through training steps, over those of the undefended reference",
}
AT_A_ROUND = {
    "asr": "share of all test images but the target class's that, triggered, that round's model gives the target class",
    "cta": "share of the plain test images that it gives their true class; the axis does not begin at zero",
}
NOTES = {
    "launch": "the backbone has converged on the label; clients are pooled for its shadow",
    "unsuspected": "the label is not among the most suspicious; it is watched no longer",
    "threshold": "the filter of a shadow is set; the score from which a client is left out",
    "stop": "the label's shadow has converged and answers from now on",
    "relaunch": "accuracy on current data has fallen; the label waits for a new shadow",
    "rejected": "updates that were not finite",
    "nothing-kept": "no client was left; the model stayed as it was",
    "clip-norm": "longest update that passes unshortened (L2)",
    "noise-sd": "standard deviation of the noise on each coordinate",
    "passes": "passes until the geometric median was found",
}
LABELLED = ("launch", "unsuspected", "stop", "relaunch")


def summary(
    record: Record, artifact: Clients, lines: Sequence[Line], points: Sequence[Point],
    controls: Sequence[Record], classes: Sequence[str] | None,
) -> list[str]:  # fmt: skip
    """What was attacked and what came out, one paragraph an idea."""
    own = next((line for line in lines if line.own), None)
    parts = [
        _what(record, artifact), _clients(record, artifact, classes),
        trigger_outcome(record, artifact.source_class, artifact.target_class, classes, "In the end,"),
        _over_rounds(record, own), _price(record), _filter(record), _beside(record, points, controls),
    ]  # fmt: skip
    return [p for p in parts if p]


def _what(record: Record, artifact: Clients) -> str:
    cell, config = record.cell, record.cell.task.config
    cta = record.metric("cta")
    runs = count(cta.seeds, "federation") if cta else "the federations"
    drift = {
        "rotation": "; all images are turned by {drift_angle:g} degrees every {drift_every} rounds",
        "labels": "; every client's mix of classes is drawn anew every {drift_every} rounds",
    }.get(config.get("drift", "static"), "")
    split = f"{config['split']} split" + (
        f" ({config['concentration']:g})" if config["split"] == "dirichlet" else ""
    )
    return (
        f"{cell.attack.name} held {len(artifact.ids)} of {config['clients']} clients "
        f"({fraction(len(artifact.ids) / config['clients'], 4)}). The server trained {runs} of the architecture "
        f"{cell.task.model} on {cell.task.dataset}{knowing(record) or ' without a defence'}: "
        f"{config['rounds']} rounds of {config['per_round']} clients with {config['images']} images each, "
        f"{split}{drift.format(**config)}. As many references, from the same seeds, "
        "have honest clients alone and no defence."
    )


def _clients(record: Record, artifact: Clients, classes: Sequence[str] | None) -> str:
    if not len(artifact.ids):
        return "There was no malicious client."
    presence = (
        "the same share of every round is malicious" if artifact.presence == "fixed" else "clients are sampled blindly"
    )  # fmt: skip
    acted = record.metric("malicious_rate")
    rate = f", and {fraction(acted.value)} of all appearances in rounds acted maliciously" if acted else ""
    does = series.conduct(artifact.conduct)
    act = (
        f"They act otherwise than honest clients: {does}"
        if does
        else "Beyond their data they act like honest ones"
    )
    each = artifact.stamped.sum(1)
    stamps = (
        f"stamps the trigger {artifact.trigger['name']} on {fraction(float(each.mean()), 1)} of its "
        f"{artifact.stamped.shape[1]} images"
        if each.any()
        else "stamps no image and changes labels alone"
    )
    return (
        f"A malicious client on average {stamps}. The goal: test images of "
        f"{source_name(artifact.source_class, classes)} that wear the trigger "
        f"{artifact.trigger['name']} are to be given {class_name(artifact.target_class, classes)}. "
        f"{act}; {presence}{rate}."
    )


def _full(m: Metric | Estimate | None) -> str:
    return with_interval(m) + (f" (n {m.n})" if m is not None else "")


def _over_rounds(record: Record, own: Line | None) -> str:
    mean, most = record.metric("asr_mean"), record.metric("asr_max")
    if own is None or not own.asr or mean is None or most is None:
        return ""
    over = [number for number, e in own.asr if e.value > 0.5]
    when = (
        f"; of the {len(own.asr)} places drawn below it is above one half first after {count(over[0], 'round')}"
        if over
        else f"; at none of the {len(own.asr)} places drawn below is it above one half"
    )
    return (
        f"Over all snapshots, asr is {with_interval(mean)} in the mean and at most "
        f"{with_interval(most)}{when}. A model that is used while it trains is exposed to that, "
        "whatever the last one does."
    )


def _price(record: Record) -> str:
    if (cta := record.metric("cta")) is None:
        return ""
    cost = record.metric("retrain_cost")
    paid = "attack and defence together" if record.cell.defenses else "the attack"
    trained = f" Training took {fraction(cost.value, 2)} times the images of the reference." if cost else ""
    return (
        f"On plain test images the final models are right at a rate of {_full(cta)}; the references at "
        f"{with_interval(record.metric('base_cta'))}. The price in clean accuracy of {paid} is "
        f"{with_interval(record.metric('cta_drop'))}.{trained}"
    )


def _filter(record: Record) -> str:
    tpr, fpr, area = (record.metric(f"filter_{name}") for name in ("tpr", "fpr", "auroc"))
    if tpr is None and fpr is None:
        return "No client was removed or scored." if record.cell.defenses else ""
    text = (
        f"Of the malicious appearances in rounds with a filter at work {_full(tpr)} were removed, and of the "
        f"honest ones {_full(fpr)}."
    )
    if area is not None:
        text += (
            " Its score puts a malicious client above an honest one of the same round at a rate of "
            f"{with_interval(area)}."
        )
    return text + (_tells(tpr, fpr) if tpr is not None and fpr is not None else "")


def _tells(tpr: Metric, fpr: Metric) -> str:
    if tpr.low is None or tpr.high is None or fpr.low is None or fpr.high is None:
        return ""
    if tpr.low > fpr.high:
        return " It removes malicious clients more often than honest ones."
    if tpr.high < fpr.low:
        return " It removes honest clients more often than malicious ones."
    return (
        " The two intervals meet: this run does not show that it tells them apart better than blind removal."
    )


def _beside(record: Record, points: Sequence[Point], controls: Sequence[Record]) -> str:
    own = as_control(record)
    found = [
        f"{p.label} ({count(len(p.ids), 'seed')}), asr {with_interval(p.numbers['asr'])}, cta "
        f"{with_interval(p.numbers['cta'])}"
        for p in points
        if p.here and not p.line and p.label == UNDEFENDED
    ]
    groups: dict[str, list[Record]] = {}
    for c in controls:
        groups.setdefault(f"{c.cell.attack.name}, {behind(c)}", []).append(c)
    found += [
        f"{name} ({count(len(cells), 'seed')}), asr {with_interval(pooled(cells, 'asr'))}, cta "
        f"{with_interval(pooled(cells, 'cta'))}"
        for name, cells in groups.items()
    ]
    if not found:
        return (
            f"{own}Neither this attack without a defence nor a control was found beside this run; what there is to "
            "compare it with is the reference."
        )
    return f"{own}For comparison: {'; '.join(found)}."


def note_value(name: str, value: float) -> str:
    """What a note says: `label 4`, or a number."""
    return f"label {value:g}" if name in LABELLED else f"{value:.4g}"
