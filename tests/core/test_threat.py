"""The seam: what is found by kind, by record and by artifact, and what is refused."""

from dataclasses import replace

import pytest

from redteam.core import threat
from redteam.core.errors import ArtifactError, ConfigError, ThreatMismatchError
from redteam.core.threat import Threat

ENTRIES = [entry for room in threat.threats().values() for entry in room.targets]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.kind)
def test_one_type_of_target_is_found_by_its_kind_its_records_and_its_artifacts(entry):
    found = threat.of_target(entry.kind)
    assert found is threat.of_record(entry.threat, entry.target)
    assert found is threat.of_artifact(entry.artifact, "a file")


def test_what_no_threat_owns_is_said_or_nothing():
    with pytest.raises(
        ThreatMismatchError, match="no target of the kind 'toaster' can be run; known: .*trainable"
    ):
        threat.of_target("toaster")
    with pytest.raises(
        ArtifactError, match="x.npz holds an artifact of kind 'toast'; this version reads: .*poison"
    ):
        threat.of_artifact("toast", "x.npz")
    assert (
        threat.of_record("poisoning", "toaster") is None and threat.pairing_of("poisoning", "toaster") is None
    )
    with pytest.raises(ArtifactError, match="expected an artifact of kind 'poison', got one of kind 'int'"):
        threat.of_target("trainable").check(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "both claim target trainable"),
        ({"kind": "toaster"}, "both claim records poisoning image-classifier"),
        ({"kind": "toaster", "target": "toaster"}, "both claim artifacts poison"),
    ],
)
def test_two_threats_may_not_claim_one_thing(change, message):
    ours = threat.threats()["poisoning"]
    theirs = Threat(name="other", targets=(replace(ours.targets[0], **change),), board=ours.board)
    with pytest.raises(ConfigError, match=message):
        threat._check_claims({"poisoning": ours, "other": theirs})


@pytest.mark.parametrize(
    ("name", "what"),
    [("profiles@3", "a set of users for agents"), ("mnist-to-usps", "a pair of domains, for targets that adapt"),
     ("cifar10", None)],
)  # fmt: skip
def test_a_data_set_of_one_threat_is_known_to_be_its(name, what):
    assert threat.claimed(name) == what
