"""A mesh of three labelled nodes on this machine, with a pool of the same model on each."""

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

SITES: Final = {
    "fi": ("nordic", "eu-fi", "FI", 1.1),
    "de": ("mitte", "eu-de", "DE", 1.3),
    "us": ("east", "us-east", "US", 1.5),
}
"""By node: operator, region, country and grid zone, PUE. Silicon is this machine's everywhere."""

DEADLINE_S: Final = 2.0
"""Between tokens; what a hang costs at the least."""

_FIRST_TOKEN_S: Final = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreeSites:
    """The files to start it from, and each node's pool."""

    config: Path
    nodes: Path
    pools: Mapping[str, str]


def write_three_sites(folder: Path) -> ThreeSites:
    """Write settings and nodes into the folder."""
    settings = yaml.safe_load(importlib.resources.files("clusters").joinpath("local.yaml").read_text())
    site, pool, model = settings["sites"][0], settings["pools"][0], settings["models"][0]["name"]
    settings["sites"] = [
        {**site, "operator": operator, "region": region, "country": zone, "grid_zone": zone, "dc_pue": pue}
        for operator, region, zone, pue in SITES.values()
    ]
    keys = {name: f"{operator}/{region}" for name, (operator, region, _, _) in SITES.items()}
    settings["pools"] = [{**pool, "site": key, "cpus_per_replica": 0.5} for key in keys.values()]
    settings["deadlines"] |= {"first_token_s": _FIRST_TOKEN_S, "between_tokens_s": DEADLINE_S}
    config, nodes = folder / "mesh.yaml", folder / "nodes.yaml"
    config.write_text(yaml.safe_dump(settings))
    listed = [{"name": name, "site": key, "cpus": 1} for name, key in keys.items()]
    nodes.write_text(yaml.safe_dump({"nodes": listed}))
    return ThreeSites(config=config, nodes=nodes, pools={name: f"{model}@{key}" for name, key in keys.items()})
