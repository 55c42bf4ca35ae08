"""`jc nodes`: the running mesh's Ray nodes, what their labels say, what is really there, and which are refused."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clusters.grid import CarbonFeed, GridIntensity
from clusters.hourly_figures import HourlyFeed
from clusters.nodes import Inventory, Node, NodeCatalogue, NodeFacts
from mesh.errors import MeshError
from mesh.hosts import detected_silicon, hosts_of, place_nodes
from mesh.placement_setup import node_catalogue, start_carbon_feed
from mesh.ray_session import join_ray
from mesh.run_state import DataFolder
from mesh.settings import Settings, SiteSettings

_ANSWERS_WITHIN_S = 20.0
_SECONDS_PER_MINUTE = 60
_WIDTH = 200
# A narrower terminal gets fewer columns.
_ALL_COLUMNS_FROM = 160
_HEADERS = ("node", "address", "site", "country", "grid g/kWh", "PUE", "silicon", "CPU/GPU", "state")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """One node; ``site`` and ``grid`` are None where its labels name no site of the settings.

    ``state`` is accepted, refused or dead; ``faults`` say why it is refused. ``is_simulated`` is None without a label.
    """

    facts: NodeFacts
    state: str
    faults: tuple[str, ...]
    site: SiteSettings | None
    grid: GridIntensity | None
    silicon: str | None
    is_simulated: bool | None
    carries_ingresses: bool

    def to_jsonable(self) -> dict[str, Any]:
        """As `--json` prints it."""
        facts, site, grid = self.facts, self.site, self.grid
        return {
            "name": facts.name,
            "node_id": facts.node_id,
            "address": facts.address,
            "state": self.state,
            "faults": list(self.faults),
            "carries_ingresses": self.carries_ingresses,
            "operator": None if site is None else site.operator,
            "region": None if site is None else site.region,
            "country": None if site is None else site.country,
            "dc_pue": None if site is None else site.dc_pue,
            "grid": None if grid is None else _grid_object(grid),
            "silicon": {"label": self.silicon, "detected": facts.detected, "is_simulated": self.is_simulated},
            "cpus": facts.cpus,
            "gpus": facts.gpus,
        }


def show_nodes(settings: Settings, console: Console, *, as_json: bool) -> bool:
    """Show every node; whether none that lives is refused.

    Raises:
        NotRunning: no mesh runs on this data folder.
        MeshError: its Ray cluster does not answer.
    """
    with _carbon(settings) as carbon:
        rows = node_rows(_inventory(settings, node_catalogue(settings)), settings, carbon)
    if as_json:
        console.print_json(json.dumps({"object": "list", "data": [row.to_jsonable() for row in rows]}))
    else:
        if not console.is_terminal:  # a file or another program has no edge
            console.width = max(console.width, _WIDTH)
        for part in picture(rows, width=console.width):
            console.print(part)
    return not any(row.state == "refused" for row in rows)


def node_rows(inventory: Inventory, settings: Settings, carbon: CarbonFeed) -> list[NodeRow]:
    """A row for each node: the accepted, then the refused, then the dead."""
    judged = [(node, "accepted") for node in inventory.accepted] + [(node, "refused") for node in inventory.refused]
    judged += [(Node(facts=facts, faults=()), "dead") for facts in inventory.dead]
    sites = {(site.operator, site.region): site for site in settings.sites}
    simulated = {kind.kind: kind.simulated for kind in settings.silicon}
    rows = []
    for node, state in judged:
        site = sites.get(node.site) if node.site is not None else None
        rows.append(
            NodeRow(
                facts=node.facts,
                state=state,
                faults=node.faults,
                site=site,
                grid=None if site is None else carbon.intensity(site.grid_zone),
                silicon=node.silicon,
                is_simulated=None if node.silicon is None else simulated.get(node.silicon),
                carries_ingresses=node.carries_ingresses,
            )
        )
    return rows


def picture(rows: list[NodeRow], *, width: int = _WIDTH) -> Iterator[Table | Text]:
    """The table, and a line for each reason of a refusal.

    In a narrow ``width`` it is without addresses, countries and Ray's counts, and breaks lines between words.
    """
    table = Table(box=None, padding=(0, 1, 0, 0) if width < _ALL_COLUMNS_FROM else (0, 1))
    left_out = ("address", "country", "CPU/GPU") if width < _ALL_COLUMNS_FROM else ()
    columns = [header for header in _HEADERS if header not in left_out]
    for header in columns:
        is_figure = header in ("grid g/kWh", "PUE")
        table.add_column(header, justify="right" if is_figure else "left", no_wrap=header in ("node", "site", "PUE"))
    for row in rows:
        cells = dict(zip(_HEADERS, _cells(row), strict=True))
        style = {"refused": "red", "dead": "dim"}.get(row.state)
        table.add_row(*(cells[header] for header in columns), style=style)
    yield table
    for row in rows:
        for fault in row.faults:
            yield Text(f"  {row.facts.name} is refused: {fault}", style="red")


def _cells(row: NodeRow) -> tuple[str, ...]:
    facts, site = row.facts, row.site
    return (
        facts.name,
        facts.address,
        "-" if site is None else site.key,
        "-" if site is None else site.country or "-",
        "-" if row.grid is None else _grid_text(row.grid),
        "-" if site is None else f"{site.dc_pue:g}",
        _silicon_text(row),
        f"{facts.cpus:g}/{facts.gpus:g}",
        f"{row.state}, ingress" if row.carries_ingresses else row.state,
    )


def _silicon_text(row: NodeRow) -> str:
    detected = row.facts.detected or "not known"
    if row.silicon is None:
        return detected
    return f"{row.silicon} (simulated; {detected})" if row.is_simulated else f"{row.silicon} ({detected})"


def _grid_text(grid: GridIntensity) -> str:
    if grid.age_s is None:
        mark = f", mean of {grid.as_of}"
    elif grid.age_s > 0:
        mark = f", {grid.age_s / _SECONDS_PER_MINUTE:.0f} min old"
    else:
        mark = ", estimated" if grid.is_estimated else ""
    return f"{grid.zone} {grid.gco2_per_kwh:g}{mark}"


def _grid_object(grid: GridIntensity) -> dict[str, Any]:
    return {
        "zone": grid.zone,
        "gco2_per_kwh": grid.gco2_per_kwh,
        "source": grid.source,
        "as_of": grid.as_of,
        "is_estimated": grid.is_estimated,
        "age_s": grid.age_s,
    }


@contextmanager
def _carbon(settings: Settings) -> Iterator[CarbonFeed]:
    feed = start_carbon_feed(settings)
    try:
        yield feed
    finally:
        if isinstance(feed, HourlyFeed):
            feed.stop()


def _inventory(settings: Settings, catalogue: NodeCatalogue) -> Inventory:
    state = DataFolder(settings.mesh.data_dir).running()
    join_ray(state, settings.mesh.data_dir)
    import ray
    from ray.exceptions import RayError

    from clusters.node_inventory import node_facts, read_inventory

    try:
        own = str(ray.get_runtime_context().get_node_id())
        hosts = hosts_of(place_nodes(node_facts(), within_s=_ANSWERS_WITHIN_S), own_node_id=own)
        return read_inventory(catalogue, detected_silicon(hosts, _metered(state.namespace)))
    except RayError as away:
        raise MeshError(f"the mesh's Ray cluster does not answer: {type(away).__name__}") from away
    finally:
        ray.shutdown()


def _metered(namespace: str) -> Mapping[str, str]:
    """What each host's meter detected, by the host's boot id."""
    import ray

    from serve.messages import MeterCard
    from serve.meter_actor import meters_by_host

    found: dict[str, str] = {}
    for host, meter in meters_by_host(namespace).items():
        card = cast("MeterCard", ray.get(meter.card.remote(), timeout=_ANSWERS_WITHIN_S))
        found[host] = card.silicon
    return found
