"""The three sites of `clusters/three-sites.yaml` with real engines, as a run that breaks them needs them.

Float32, so that an answer that another engine goes on with is the same; deadlines that don't let a hang take long;
grids whose intensity the run itself writes; and accounts that allow only some operators or places.
"""

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import yaml

ALLOW_LISTED: Final = "allow-listed"
RESIDENT: Final = "resident"
OPERATORS: Final = frozenset({"rheinwerk", "tidewater"})
"""Whom the account `ALLOW_LISTED` allows."""
RESIDENCY: Final = ("DE", "us")
"""Where the account `RESIDENT` lets its data go: a country, and a prefix of regions."""

REFRESH_S: Final = 2.0
BETWEEN_TOKENS_S: Final = 3.0

_FIRST_TOKEN_S: Final = 30.0
_HOURS: Final = 6
_HOUR_FORMAT: Final = "%Y-%m-%dT%H:00Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a pool is, and the Ray node that stands in for it."""

    node: str
    operator: str
    region: str
    country: str
    zone: str

    def keeps(self, region: str | None, account: str) -> bool:
        """Whether a request with this X-Region and account may run here; told again, apart from the code under test."""
        return (
            (region is None or self._is_in(region))
            and (account != RESIDENT or any(map(self._is_in, RESIDENCY)))
            and (account != ALLOW_LISTED or self.operator in OPERATORS)
        )

    def _is_in(self, wanted: str) -> bool:
        asked, own = wanted.lower(), self.region.lower()
        return asked in (own, self.country.lower()) or own.startswith(f"{asked}-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grids:
    """Hourly series of the grid zones, in files that the mesh reads again when they change."""

    files: Mapping[str, Path]

    def write(self, gco2_per_kwh: Mapping[str, float]) -> None:
        """Each zone's intensity from an hour ago on, for some hours."""
        first = datetime.now(UTC) - timedelta(hours=1)
        for zone, figure in gco2_per_kwh.items():
            hours = [first + timedelta(hours=more) for more in range(_HOURS)]
            rows = [f"{hour.strftime(_HOUR_FORMAT)},{figure}" for hour in hours]
            partial = self.files[zone].with_suffix(".partial")
            partial.write_text("\n".join(["utc_hour,gco2_per_kwh", *rows, ""]))
            partial.replace(self.files[zone])


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSites:
    """The files to start it from, each pool's place, and the model that all of them serve."""

    config: Path
    nodes: Path
    grids: Grids
    places: Mapping[str, Place]
    model: str

    def pool_at(self, operator: str, region: str) -> str:
        """The pool of a receipt's operator and region."""
        return next(key for key, each in self.places.items() if (each.operator, each.region) == (operator, region))

    def cleanest(self, pool: str) -> None:
        """From the next refresh on the pool's grid is far cleaner than the others'."""
        zone = self.places[pool].zone
        self.grids.write({each: 30.0 if each == zone else 700.0 for each in self.grids.files})


def write_engine_sites(folder: Path) -> EngineSites:
    """Write settings, nodes and grids into the folder."""
    settings, listed = _packaged("three-sites.yaml"), _packaged("three-sites-nodes.yaml")
    for model in settings["models"]:
        model["engine_arguments"]["dtype"] = "float32"
    settings["deadlines"] |= {"first_token_s": _FIRST_TOKEN_S, "between_tokens_s": BETWEEN_TOKENS_S}
    # Grams decide: against a request of a few joules, even the network's way would weigh at the preference's own rate.
    settings["placement"] |= {"prefer": "cleanest", "usd_per_hour_waited": 0.01}
    files = {site["grid_zone"]: folder / f"{site['grid_zone']}.csv" for site in settings["sites"]}
    settings["carbon"] = {
        "source": "hourly",
        "hourly": {zone: str(file) for zone, file in files.items()},
        "refresh_s": REFRESH_S,
    }
    settings["accounts"] = [
        {"name": ALLOW_LISTED, "operators": sorted(OPERATORS)},
        {"name": RESIDENT, "residency": list(RESIDENCY)},
    ]
    config, nodes = folder / "mesh.yaml", folder / "nodes.yaml"
    config.write_text(yaml.safe_dump(settings))
    nodes.write_text(yaml.safe_dump(listed))
    sites = EngineSites(
        config=config,
        nodes=nodes,
        grids=Grids(files=files),
        places=_places(settings, listed),
        model=settings["models"][0]["name"],
    )
    sites.cleanest(next(iter(sites.places)))
    return sites


def _places(settings: dict, listed: dict) -> dict[str, Place]:
    sites = {f"{site['operator']}/{site['region']}": site for site in settings["sites"]}
    nodes = {(node["site"], node["silicon"]): node["name"] for node in listed["nodes"]}
    return {
        f"{pool['model']}@{pool['site']}/{pool['silicon']}": Place(
            node=nodes[pool["site"], pool["silicon"]],
            operator=sites[pool["site"]]["operator"],
            region=sites[pool["site"]]["region"],
            country=sites[pool["site"]]["country"],
            zone=sites[pool["site"]]["grid_zone"],
        )
        for pool in settings["pools"]
    }


def _packaged(name: str) -> dict:
    return yaml.safe_load(importlib.resources.files("clusters").joinpath(name).read_text())
