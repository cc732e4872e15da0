"""The eleven variants of the testbed through the loop: each trains, and its target says what it was trained by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from redteam.core.config import build
from redteam.core.errors import ConfigError
from redteam.threats.evasion.adapt.config import DomainConfig
from redteam.threats.evasion.target import DomainTarget
from redteam.threats.evasion.tiny import pair, single
from tests.conftest import context
from tests.defenses.evasion.test_adaptation import name_of
from tests.defenses.evasion.updates import EVERY, MODULES

TINY = DomainConfig(
    model="digit-cnn-small", size=0, rows=0, steps=2, batch_size=12, check_every=1, val_rows=20, val_steps=2,
    inner_steps=2, critic_width=8, victims=2,
)  # fmt: skip


def defended(name: str, values: dict, data, config: DomainConfig = TINY) -> DomainTarget:
    spec = MODULES[name].SPEC
    settings = build(spec.config, values, base=spec.presets["default"].config)
    return spec.run(DomainTarget(data, config), settings, context())


@pytest.fixture(scope="module")
def domains():
    return pair(120)


@pytest.fixture(scope="module")
def undefended(domains):
    return DomainTarget(domains, TINY).fit(context())[0].network


@pytest.mark.parametrize("case", EVERY, ids=name_of)
def test_every_variant_trains_in_the_loop(case, domains, undefended):
    name, values = case
    target = defended(name, values, domains)
    assert target.kind == "classifier" and target.algorithm.name == name
    x = torch.rand(5, 3, 8, 8)
    fitted = target.fit(context())
    assert len(fitted) == 2
    with torch.no_grad():
        first, second = (f.network(x) for f in fitted)
        assert torch.isfinite(first).all() and not torch.allclose(first, second)
        assert not torch.allclose(first, undefended(x))
    history = target.history(context())
    assert np.isfinite(np.asarray(history["value"], float)).all()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_tasks_without_a_target_domain_take_what_trains_on_the_source_alone(name):
    config = replace(TINY, select="source-pgd")
    if name in ("at-source", "trades-source"):
        assert len(defended(name, {}, single(60), config).fit(context())) == 2
    else:
        with pytest.raises(ConfigError, match="target domain"):
            defended(name, {}, single(60), config)
