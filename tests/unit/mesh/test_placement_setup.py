"""From settings to what placement plans with."""

import importlib.resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from clusters.grid import YearlyMeansFeed
from clusters.nodes import OPERATOR_LABEL, REGION_LABEL, ROLE_LABEL, SILICON_LABEL, Inventory, NodeFacts
from mesh.placement_setup import (
    account_pins,
    node_catalogue,
    node_selectors,
    rates_of,
    replica_rates,
    start_carbon_feed,
)
from mesh.pool_setup import known_pool
from mesh.settings import Settings, load_settings
from placement.pins import Pins


def builtin() -> dict[str, Any]:
    """With its first model and pool only."""
    document = yaml.safe_load(importlib.resources.files("clusters").joinpath("local.yaml").read_text())
    return {**document, "models": document["models"][:1], "pools": document["pools"][:1]}


def load(tmp_path: Path, document: dict[str, Any]) -> Settings:
    (tmp_path / "mesh.yaml").write_text(yaml.safe_dump(document))
    return load_settings(tmp_path / "mesh.yaml", port=None, data_dir=None)


def two_sites() -> dict[str, Any]:
    document = builtin()
    (site,), (pool,) = document["sites"], document["pools"]
    document["sites"] = [
        {**site, "operator": "acme", "region": "eu-fi", "country": "FI", "grid_zone": "FI", "dc_pue": 1.5},
        {**site, "operator": "acme", "region": "eu-de", "country": "DE", "grid_zone": "DE", "usd_per_kwh": 0.1}
        | {"network_ms": 250},
    ]
    document["silicon"] = [{"kind": "moon", "detected_as": "Moon*", "simulated": True}]
    document["pools"] = [
        {**pool, "site": "acme/eu-fi", "replicas": {"min": 0, "max": 3, "idle_s": 7}, "wake_s": 33},
        {**pool, "site": "acme/eu-de", "silicon": "moon", "prior_joules_per_token": 2.0},
    ]
    return document


def pools(settings: Settings) -> list[Any]:
    return [known_pool(pool, settings) for pool in settings.pools]


def nodes(*labels: dict[str, str], settings: Settings) -> Inventory:
    facts = [
        NodeFacts(node_id=str(number), name="n", address="a", is_alive=True, labels=each, cpus=1.0, gpus=0.0)
        for number, each in enumerate(labels)
    ]
    return Inventory.read(facts, node_catalogue(settings))


def test_a_pool_has_its_sites_price_and_its_own_prior(tmp_path):
    first, second = pools(load(tmp_path, two_sites()))
    assert (first.usd_per_kwh, second.usd_per_kwh) == (0.5, 0.1)
    assert (first.prior_microjoules_per_token, second.prior_microjoules_per_token) == (0.1e6, 2e6)
    assert (first.least_replicas, first.most_replicas, first.wake_s) == (0, 3, 33)
    assert (second.least_replicas, second.most_replicas) == (1, 1)
    assert (first.network_s, second.network_s) == (0.0, 0.25)
    assert (first.simulated, second.simulated) == (False, True)
    assert second.key.endswith("@acme/eu-de/moon")


def test_one_site_needs_no_labels(tmp_path):
    settings = load(tmp_path, builtin())
    selectors = node_selectors(settings, nodes({}, settings=settings))
    assert list(selectors.pools.values()) == [{}]
    assert selectors.ingress == {}


def test_pools_of_several_sites_run_on_nodes_that_carry_their_labels(tmp_path):
    settings = load(tmp_path, two_sites())
    selectors = node_selectors(settings, nodes({ROLE_LABEL: "ingress"}, {}, settings=settings))
    assert list(selectors.pools.values()) == [
        {OPERATOR_LABEL: "acme", REGION_LABEL: "eu-fi"},
        {OPERATOR_LABEL: "acme", REGION_LABEL: "eu-de", SILICON_LABEL: "moon"},
    ]
    assert selectors.ingress == {ROLE_LABEL: "ingress"}


def test_rates_are_the_preferences_unless_they_are_given(tmp_path):
    document = builtin()
    document["placement"] = {"prefer": "cleanest", "usd_per_hour_waited": 0.5}
    rates = rates_of(load(tmp_path, document))
    assert (rates.usd_per_kgco2, rates.usd_per_hour_waited) == (100.0, 0.5)


def test_a_joule_between_replicas_costs_its_price_and_its_carbon_at_the_facility(tmp_path):
    document = two_sites()
    document["placement"] = {"prefer": "balanced", "usd_per_kgco2": 1.0, "usd_per_hour_waited": 3.6}
    settings = load(tmp_path, document)
    rates = replica_rates(pools(settings)[0], settings, YearlyMeansFeed())
    grams = YearlyMeansFeed().intensity("FI").gco2_per_kwh
    assert rates.usd_per_microjoule == pytest.approx((0.5 + grams / 1000) * 1.5 / 3.6e12)
    assert rates.usd_per_second_waited == pytest.approx(0.001)


def test_accounts_have_their_pins(tmp_path):
    document = two_sites()
    document["accounts"] = [{"name": "bank", "operators": ["acme"], "residency": ["DE", "eu"]}]
    assert account_pins(load(tmp_path, document)) == {
        "bank": Pins(residency=("DE", "eu"), operators=frozenset({"acme"}))
    }


def test_the_hourly_feed_reads_its_files_before_it_is_asked(tmp_path):
    series = tmp_path / "de.csv"
    series.write_text("utc_hour,gco2_per_kwh\n2020-01-01T00:00Z,123.5\n")
    document = two_sites()
    document["carbon"] = {"source": "hourly", "hourly": {"DE": str(series)}}
    feed: Any = start_carbon_feed(load(tmp_path, document))
    try:
        # So old a figure is no more than a reason to take the year's mean.
        assert "the newest is of 2020-01-01" in feed.intensity("DE").source
    finally:
        feed.stop()


def test_without_a_key_the_live_feed_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("ELECTRICITY_MAPS_API_KEY", raising=False)
    document = two_sites()
    document["carbon"] = {"source": "electricity-maps"}
    feed: Any = start_carbon_feed(load(tmp_path, document))
    try:
        grid = feed.intensity("DE")
        assert "ELECTRICITY_MAPS_API_KEY" in grid.source
        assert grid.is_estimated
    finally:
        feed.stop()
