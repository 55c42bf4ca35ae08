"""From settings to what placement plans with: nodes, replicas, pins, rates and the carbon feed."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clusters.electricity_maps import ElectricityMaps, ElectricityMapsClient
from clusters.grid import CarbonFeed, YearlyMeansFeed
from clusters.hourly_figures import HourlyFeed
from clusters.hourly_files import HourlyFiles
from clusters.nodes import Inventory, NodeCatalogue, ingress_selector, needs_labels, pool_selector
from clusters.silicon_kinds import SiliconKind
from mesh.settings import PoolSettings, Settings
from placement.exchange_rates import ExchangeRates, exchange_rates
from placement.pins import Pins
from placement.replica_ranking import ReplicaRates
from serve.pools import Pool

if TYPE_CHECKING:  # it imports ray, which reads its environment then
    from serve.application import Replicas

_MICROJOULES_PER_KWH = 3.6e12
_SECONDS_PER_HOUR = 3600.0
_GRAMS_PER_KG = 1000.0
_REQUEST_TOKENS = 512
_FIRST_FIGURES_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSelectors:
    """Which nodes may carry each pool, by its key, and which the ingresses."""

    pools: Mapping[str, Mapping[str, str]]
    ingress: Mapping[str, str]


def node_catalogue(settings: Settings) -> NodeCatalogue:
    """What node labels may say in this mesh."""
    return NodeCatalogue(
        sites=frozenset((site.operator, site.region) for site in settings.sites),
        kinds={kind.kind: SiliconKind(**kind.model_dump()) for kind in settings.silicon},
    )


def node_selectors(settings: Settings, inventory: Inventory) -> NodeSelectors:
    """The label selectors of a mesh on these nodes; empty ones where one site on one kind needs none."""
    is_labelled = needs_labels(
        sites=len(settings.sites),
        is_silicon_named=any(pool.silicon is not None for pool in settings.pools),
        has_pool_labels=inventory.has_pool_labels,
    )
    pools = {}
    for pool in settings.pools:
        site = settings.site(pool.site)
        pools[pool.key] = pool_selector(
            operator=site.operator, region=site.region, silicon=pool.silicon, is_labelled=is_labelled
        )
    return NodeSelectors(pools=pools, ingress=ingress_selector(inventory))


def rates_of(settings: Settings) -> ExchangeRates:
    """The exchange rates of the ranking: the preference's, or those that are given."""
    chosen = settings.placement
    return exchange_rates(
        chosen.prefer, usd_per_kgco2=chosen.usd_per_kgco2, usd_per_hour_waited=chosen.usd_per_hour_waited
    )


def account_pins(settings: Settings) -> dict[str, Pins]:
    """What accounts allow, by name."""
    return {each.name: Pins(residency=each.residency, operators=each.operators) for each in settings.accounts}


def replicas_of(pool: PoolSettings) -> "Replicas":
    """How many replicas its deployment has."""
    from serve.application import Replicas

    if isinstance(pool.replicas, int):
        return Replicas(least=pool.replicas, most=pool.replicas, idle_s=0.0)
    return Replicas(least=pool.replicas.min, most=pool.replicas.max, idle_s=pool.replicas.idle_s)


def replica_rates(pool: Pool, settings: Settings, means: CarbonFeed) -> ReplicaRates:
    """What a joule and a second are worth at the pool: its price and PUE, with its grid's yearly mean."""
    rates = rates_of(settings)
    grams = means.intensity(pool.site.grid_zone).gco2_per_kwh
    usd_per_kwh = pool.usd_per_kwh + grams / _GRAMS_PER_KG * rates.usd_per_kgco2
    return ReplicaRates(
        usd_per_microjoule=usd_per_kwh * pool.site.dc_pue / _MICROJOULES_PER_KWH,
        usd_per_second_waited=rates.usd_per_hour_waited / _SECONDS_PER_HOUR,
        tokens=_REQUEST_TOKENS,
    )


def start_carbon_feed(settings: Settings) -> CarbonFeed:
    """The feed that the settings name, refreshed in a thread of this process from now on."""
    means, chosen = YearlyMeansFeed(), settings.carbon
    if chosen.source == "yearly":
        return means
    source: HourlyFiles | ElectricityMaps
    if chosen.source == "hourly":
        source = HourlyFiles({zone: path.expanduser() for zone, path in chosen.hourly.items()})
    else:
        source = _electricity_maps(settings)
    feed = HourlyFeed(source, means, wall_clock_s=time.time, refresh_s=chosen.refresh_s)
    feed.start(within_s=_FIRST_FIGURES_WITHIN_S)
    return feed


def _electricity_maps(settings: Settings) -> ElectricityMaps:
    chosen = settings.carbon
    key = os.environ.get(chosen.api_key_variable)
    return ElectricityMaps(
        None if key is None else ElectricityMapsClient(chosen.url, key, wall_clock_s=time.time),
        (site.grid_zone for site in settings.sites),
        missing=f"no API key in {chosen.api_key_variable}",
        wall_clock_s=time.time,
        pause=time.sleep,
    )
