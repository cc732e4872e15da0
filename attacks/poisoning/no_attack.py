"""Control: train on the clean data and stamp the trigger at test time all the same.

Threat: none. What it shows: the base rate at which an untouched victim gives triggered source
images the target class. Any attack must be read against it.
Source: [jha2023flip], whose abstract gives clean accuracy as a drop from the clean model.
"""

from __future__ import annotations

from dataclasses import replace

from attacks.poisoning._backdoor import Backdoor, backdoor_spec, poison
from attacks.poisoning._backdoor import resolve as resolve_backdoor
from redteam.core.context import Context
from redteam.threats.poisoning.artifact import Poison
from redteam.threats.poisoning.nouns import Trainable


def resolve(config: Backdoor, target: Trainable) -> Backdoor:
    """Class numbers as for any backdoor; the budget is zero whatever was asked."""
    return replace(resolve_backdoor(replace(config, budget=1), target), budget=0)


def run(target: Trainable, config: Backdoor, ctx: Context) -> Poison:
    """The clean labels, with the trigger that will be stamped at test time."""
    return poison(config, target.train.labels.copy())


SPEC = backdoor_spec("no-attack", run, "jha2023flip", role="control", resolver=resolve, deterministic=True)
