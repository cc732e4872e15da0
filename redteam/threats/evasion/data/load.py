"""Pairs of domains by name: `SOURCE-to-TARGET` of digits, folders, or one ordinary data set without a target."""

from __future__ import annotations

from redteam.core.errors import DataError, UnknownNameError
from redteam.data import catalog
from redteam.data.access import Access
from redteam.threats.evasion.data import names
from redteam.threats.evasion.domain import DomainDataset


def load_domains(
    name: str, *, data_dir: str | None = None, offline: bool = False, download: bool = False
) -> DomainDataset:
    """Load a pair of domains, or an ordinary data set as one domain: see `load_pair`."""
    return load_pair(name, Access.resolve(data_dir, offline=offline, download=download))


def load_pair(name: str, access: Access) -> DomainDataset:
    """Load a source and a target domain, or one ordinary data set: its training images, its test set, no target.

    Args:
        name: `SOURCE-to-TARGET` of digit domains such as `syn*-to-optdigits` (`syn-star` for `syn*`);
            `officehome:PATH:SOURCE-to-TARGET`, `pacs:`, `visda:` or `domains:` alike, with `?size=N`;
            or a name of `redteam.data.load`.
        access: where data may be read from, and whether the network may be asked for it.

    Raises:
        UnknownNameError: no such domain or data set. ConfigError: a name that is not of a form above.
        DataError: one domain twice or alone, classes that differ, data that is missing or damaged.
    """
    from redteam.threats.evasion.data.folders import is_folder_pair, load_folder_pair

    if is_folder_pair(name):
        return load_folder_pair(name)
    if not names.is_pair(name):
        return _ordinary(name, access)
    from redteam.threats.evasion.data.digits import load_digit_pair

    return load_digit_pair(name, access)


def _ordinary(name: str, access: Access) -> DomainDataset:
    if names.is_lone_domain(name):
        raise DataError(f"'{name}' is one domain; expected a pair such as '{name}-to-usps'")
    try:
        of = catalog.load(
            name, data_dir=str(access.data_dir), offline=access.offline, download=access.download
        )
    except UnknownNameError:
        known = [*catalog.names(), *names.DOMAINS]
        raise UnknownNameError("data set or pair of domains", name, known) from None
    return DomainDataset(
        name=of.name, source=of.train, target=None, test=of.test, origin=of.source, licence=of.licence
    )
