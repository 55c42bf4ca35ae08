import importlib.resources
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from clusters.grid import GridIntensity
from clusters.nodes import Inventory, NodeFacts
from mesh.nodes_table import NodeRow, node_rows, picture
from mesh.placement_setup import node_catalogue
from mesh.settings import Settings, load_settings


class _Carbon:
    """Figures of all ages."""

    def intensity(self, zone: str) -> GridIntensity:
        figure = {"zone": zone, "source": "a test", "is_estimated": True}
        return {
            "FI": GridIntensity(gco2_per_kwh=72.25, as_of="2024", **figure),
            "DE": GridIntensity(gco2_per_kwh=300.0, as_of="2026-01-01T00:00Z", age_s=1500.0, **figure),
            "US-MIDA-PJM": GridIntensity(
                gco2_per_kwh=380.0, as_of="2026-01-01T00:00Z", age_s=0.0, **figure | {"is_estimated": False}
            ),
        }[zone]


def _facts(name: str, *, is_alive: bool = True, detected: str | None = "AMD EPYC", **labels: str) -> NodeFacts:
    return NodeFacts(
        node_id=f"id-{name}",
        name=name,
        address="127.0.0.1",
        is_alive=is_alive,
        labels={f"joule-mesh.io/{label}": value for label, value in labels.items()},
        cpus=1,
        gpus=0,
        detected=detected,
    )


@pytest.fixture
def settings() -> Settings:
    path = Path(str(importlib.resources.files("clusters"))) / "three-sites.yaml"
    return load_settings(path, port=None, data_dir=None)


@pytest.fixture
def rows(settings) -> list[NodeRow]:
    nodes = [
        _facts("head", role="ingress"),
        _facts("eu-fi", operator="nordlys", region="eu-fi", silicon="mi300x"),
        _facts("eu-de", operator="rheinwerk", region="eu-de", silicon="h100", detected=None),
        _facts("us-east", operator="tidewater", region="us-east"),
        _facts("odd", operator="tidewater", region="eu-fi", colour="red"),
        _facts("gone", is_alive=False, operator="nordlys", region="eu-fi", silicon="mi300x"),
    ]
    return node_rows(Inventory.read(nodes, node_catalogue(settings)), settings, _Carbon())


def _text(rows: list[NodeRow], *, width: int = 200) -> str:
    # As the command makes it.
    console = Console(file=io.StringIO(), width=width, highlight=False, soft_wrap=True)
    for part in picture(rows, width=width):
        console.print(part)
    return console.file.getvalue()


def test_every_node_has_a_row_the_accepted_first(rows):
    assert [(row.facts.name, row.state) for row in rows] == [
        ("eu-de", "accepted"),
        ("eu-fi", "accepted"),
        ("head", "accepted"),
        ("us-east", "accepted"),
        ("odd", "refused"),
        ("gone", "dead"),
    ]


def test_a_row_says_whose_and_where_it_is_and_what_is_really_there(rows):
    line = next(line for line in _text(rows).splitlines() if line.startswith(" eu-fi"))
    for part in ("nordlys", "FI", "72.25, mean of 2024", "1.09", "mi300x (simulated; AMD EPYC)", "1/0", "accepted"):
        assert part in line


def test_grids_show_their_age_and_silicon_that_is_not_known_says_so(rows):
    told = _text(rows)
    assert "DE 300, 25 min old" in told
    assert "US-MIDA-PJM 380 " in told
    assert "h100 (simulated; not known)" in told
    assert "accepted, ingress" in told


def test_in_eighty_columns_no_line_goes_over_the_edge_and_no_word_is_broken(rows):
    told = _text([row for row in rows if not row.faults], width=80)
    assert max(map(len, told.splitlines())) <= 80
    assert "\u2026" not in told
    words = set(told.split())
    assert {"tidewater/us-east", "US-MIDA-PJM", "380", "mi300x", "(simulated;", "accepted,", "ingress"} <= words
    assert "127.0.0.1" not in words


def test_a_refused_node_is_told_with_every_reason(rows):
    told = _text(rows)
    assert "odd is refused: label joule-mesh.io/colour is unknown" in told
    assert "odd is refused: no site is tidewater/eu-fi" in told


def test_the_same_as_json(rows):
    objects = {row.facts.name: row.to_jsonable() for row in rows}
    assert json.loads(json.dumps(objects)) == objects
    assert objects["eu-de"]["grid"] == {
        "zone": "DE",
        "gco2_per_kwh": 300.0,
        "source": "a test",
        "as_of": "2026-01-01T00:00Z",
        "is_estimated": True,
        "age_s": 1500.0,
    }
    assert objects["eu-fi"]["silicon"] == {"label": "mi300x", "detected": "AMD EPYC", "is_simulated": True}
    assert objects["head"] | {"node_id": ""} == {
        "name": "head",
        "node_id": "",
        "address": "127.0.0.1",
        "state": "accepted",
        "faults": [],
        "carries_ingresses": True,
        "operator": None,
        "region": None,
        "country": None,
        "dc_pue": None,
        "grid": None,
        "silicon": {"label": None, "detected": "AMD EPYC", "is_simulated": None},
        "cpus": 1,
        "gpus": 0,
    }
    assert len(objects["odd"]["faults"]) == 2
