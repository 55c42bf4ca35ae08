"""What `mesh.yaml` says of one thing in two places, and names that nothing bears: found before anything starts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from clusters.grid import CarbonFeed, UnknownZone
from mesh.yaml_document import Fault
from placement.pins import region_matches

if TYPE_CHECKING:
    from mesh.settings import AccountSettings, ModelSettings, PoolSettings, SiliconSettings, SiteSettings

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """The lists of `mesh.yaml`; None stands for an entry that is malformed, which others may mean.

    ``hourly_zones`` are the grid zones that `carbon.hourly` has files for.
    """

    sites: "Sequence[SiteSettings | None]"
    silicon: "Sequence[SiliconSettings | None]"
    models: "Sequence[ModelSettings | None]"
    pools: "Sequence[PoolSettings | None]"
    accounts: "Sequence[AccountSettings | None]"
    hourly_zones: Sequence[str] = ()


def contradictions(entries: Entries, means: CarbonFeed) -> list[Fault]:
    """All of them; ``means`` must have a figure for every site's grid zone."""
    return [
        *_twice("sites", entries.sites, lambda site: site.key),
        *_twice("silicon", entries.silicon, lambda silicon: silicon.kind),
        *_twice("models", entries.models, lambda model: model.name),
        *_twice("pools", entries.pools, lambda pool: pool.key),
        *_twice("accounts", entries.accounts, lambda account: account.name),
        *_unknown_in_pools(entries),
        *_unknown_operators(entries),
        *_accounts_without_a_site(entries),
        *_one_each("country", entries.sites, lambda site: ("region", site.region, site.country)),
        *_one_each("grid_zone", entries.sites, lambda site: ("region", site.region, site.grid_zone)),
        *_one_each("legal_entity", entries.sites, lambda site: ("operator", site.operator, site.legal_entity)),
        *_unknown_zones(entries, means),
        *_zones_without_a_site(entries),
    ]


def _present(items: Iterable[_Item | None]) -> Iterator[tuple[int, _Item]]:
    return ((place, item) for place, item in enumerate(items) if item is not None)


def _twice(part: str, items: Sequence[_Item | None], key_of: Callable[[_Item], str]) -> Iterator[Fault]:
    seen: set[str] = set()
    for place, item in _present(items):
        key = key_of(item)
        if key in seen:
            yield Fault((part, place), f"{key!r} is defined twice")
        seen.add(key)


def _unknown_in_pools(entries: Entries) -> Iterator[Fault]:
    models = _names(entries.models, lambda model: model.name)
    sites = _names(entries.sites, lambda site: site.key)
    kinds = _names(entries.silicon, lambda silicon: silicon.kind)
    for place, pool in _present(entries.pools):
        if models is not None and pool.model not in models:
            yield Fault(("pools", place, "model"), f"there is no model {pool.model!r}")
        if sites is not None and pool.site not in sites:
            yield Fault(("pools", place, "site"), f"there is no site {pool.site!r} (a site is operator/region)")
        if kinds is not None and pool.silicon is not None and pool.silicon not in kinds:
            yield Fault(("pools", place, "silicon"), f"there is no silicon of the kind {pool.silicon!r}")


def _unknown_operators(entries: Entries) -> Iterator[Fault]:
    operators = _names(entries.sites, lambda site: site.operator)
    for place, account in _present(entries.accounts):
        for operator in sorted(account.operators or ()):
            if operators is not None and operator not in operators:
                yield Fault(("accounts", place, "operators"), f"no site has the operator {operator!r}")


def _accounts_without_a_site(entries: Entries) -> Iterator[Fault]:
    """An entry that no site matches is for a site to come; with none that matches, every request would be refused."""
    sites = [site for _, site in _present(entries.sites)]
    for place, account in _present(entries.accounts):
        stays = any(region_matches(each, site.region, site.country) for each in account.residency for site in sites)
        if account.residency and not stays and len(sites) == len(entries.sites):
            wanted = " or ".join(account.residency)
            yield Fault(
                ("accounts", place, "residency"), f"no site is in {wanted} (a region, a prefix such as eu, a country)"
            )


def _names(items: Sequence[_Item | None], name_of: Callable[[_Item], str]) -> set[str] | None:
    """Every name there is; None where a malformed entry may bear the one that is looked for."""
    names = {name_of(item) for _, item in _present(items)}
    return None if None in items else names


def _one_each(
    field: str,
    sites: "Sequence[SiteSettings | None]",
    says: "Callable[[SiteSettings], tuple[str, str, str | None]]",
) -> Iterator[Fault]:
    """A region has one country and grid zone, an operator one legal entity; null is "not published"."""
    first: dict[str, tuple[int, str]] = {}
    for place, site in _present(sites):
        what, name, value = says(site)
        if value is None:
            continue
        first_place, first_value = first.setdefault(name, (place, value))
        if value != first_value:
            yield Fault(
                ("sites", place, field),
                f"{what} {name!r} has the {field} {value!r} here and {first_value!r} in sites.{first_place}",
            )


def _unknown_zones(entries: Entries, means: CarbonFeed) -> Iterator[Fault]:
    for place, site in _present(entries.sites):
        try:
            means.intensity(site.grid_zone)
        except UnknownZone as unknown:
            yield Fault(("sites", place, "grid_zone"), str(unknown))


def _zones_without_a_site(entries: Entries) -> Iterator[Fault]:
    zones = _names(entries.sites, lambda site: site.grid_zone)
    for zone in entries.hourly_zones:
        if zones is not None and zone not in zones:
            yield Fault(("carbon", "hourly", zone), f"no site is in the grid zone {zone!r}")
