"""`mesh.yaml` against itself; each fault with its line."""

import importlib.resources
from pathlib import Path

import pytest
import yaml

from mesh.errors import BadSettings
from mesh.settings import Settings, load_settings


def _three_sites() -> str:
    return importlib.resources.files("clusters").joinpath("three-sites.yaml").read_text()


def _line(text: str, part: str, occurrence: int = 1) -> int:
    lines = [number for number, line in enumerate(text.splitlines(), start=1) if part in line]
    return lines[occurrence - 1]


def _refusal(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mesh.yaml"
    path.write_text(text)
    with pytest.raises(BadSettings) as refused:
        load_settings(path, port=None, data_dir=None)
    return str(refused.value)


def test_the_example_is_valid(tmp_path):
    path = tmp_path / "mesh.yaml"
    path.write_text(_three_sites())
    settings = load_settings(path, port=None, data_dir=None)
    assert [pool.key.partition("@")[2] for pool in settings.pools] == [
        "nordlys/eu-fi/mi300x",
        "rheinwerk/eu-de/h100",
        "tidewater/us-east/grace",
    ]


@pytest.mark.parametrize(
    ("old", "new", "place", "says"),
    [
        ("site: nordlys/eu-fi", "site: nordlys/eu-xx", "pools.0.site", "no site 'nordlys/eu-xx'"),
        ("silicon: mi300x", "silicon: tpu", "pools.0.silicon", "no silicon of the kind 'tpu'"),
        ("grid_zone: FI", "grid_zone: XX", "sites.0.grid_zone", "'XX'"),
        ("{kind: h100,", "{kind: mi300x,", "silicon.1", "'mi300x' is defined twice"),
        ("country: FI", "country: Finland", "sites.0.country", "pattern"),
        ("dc_pue: 1.09", "dc_pue: 0.9", "sites.0.dc_pue", "greater than or equal to 1"),
        ("usd_per_kwh: 0.46", "usd_per_kwh: -1", "sites.0.usd_per_kwh", "greater than or equal to 0"),
    ],
)
def test_a_fault_is_told_with_its_line_and_place(tmp_path, old, new, place, says):
    text = _three_sites()
    assert text.count(old) == 1
    told = _refusal(tmp_path, text.replace(old, new))
    assert f"  line {_line(text, old)}, {place}: " in told
    assert says in told


def test_one_region_has_one_country_and_one_grid_zone(tmp_path):
    text = _three_sites().replace("region: eu-de", "region: eu-fi")
    told = _refusal(tmp_path, text)
    assert "sites.1.country: region 'eu-fi' has the country 'DE' here and 'FI' in sites.0" in told
    assert "sites.1.grid_zone: region 'eu-fi' has the grid_zone 'DE' here and 'FI' in sites.0" in told
    assert f"line {_line(text, 'country: DE')}, " in told


def test_one_operator_has_one_legal_entity(tmp_path):
    text = _three_sites().replace("operator: rheinwerk", "operator: nordlys")
    told = _refusal(tmp_path, text)
    assert (
        "operator 'nordlys' has the legal_entity 'Rheinwerk Rechenzentrum GmbH' here and 'Nordlys Compute Oy'" in told
    )


def test_what_is_not_published_contradicts_nothing(tmp_path):
    text = _three_sites().replace("operator: rheinwerk", "operator: nordlys").replace("rheinwerk/", "nordlys/")
    path = tmp_path / "mesh.yaml"
    path.write_text(text.replace("legal_entity: Rheinwerk Rechenzentrum GmbH", "legal_entity: null"))
    assert len(load_settings(path, port=None, data_dir=None).sites) == 3


def test_the_same_pool_twice_is_refused(tmp_path):
    text = _three_sites().replace("\nmeter:", "  - {<<: *pool}\n\nmeter:")
    assert "pools.3: 'smollm2-135m-instruct@nordlys/eu-fi/mi300x' is defined twice" in _refusal(tmp_path, text)


def test_an_accounts_operator_must_exist(tmp_path):
    text = _three_sites() + "accounts:\n  - {name: acme, operators: [nordlys, nobody]}\n"
    told = _refusal(tmp_path, text)
    assert f"line {len(text.splitlines())}, accounts.0.operators: no site has the operator 'nobody'" in told
    assert "'nordlys'" not in told


@pytest.mark.parametrize(
    ("residency", "is_fine"), [("[eu-dee]", False), ("[europe, asia]", False), ("[eu, asia]", True)]
)
def test_an_account_must_have_a_site_to_stay_at(tmp_path, residency: str, is_fine: bool):
    text = _three_sites() + f"accounts:\n  - {{name: acme, residency: {residency}}}\n"
    path = tmp_path / "mesh.yaml"
    path.write_text(text)
    if is_fine:
        load_settings(path, port=None, data_dir=None)
    else:
        assert f"line {len(text.splitlines())}, accounts.0.residency: no site is in " in _refusal(tmp_path, text)


def test_a_residency_that_is_no_name_is_refused(tmp_path):
    assert "accounts.0.residency" in _refusal(
        tmp_path, _three_sites() + 'accounts:\n  - {name: a, residency: ["eu", " "]}\n'
    )


def test_a_key_twice_is_refused(tmp_path):
    text = _three_sites().replace("  port: 8000", "  port: 8000\n  port: 8001")
    assert f"line {_line(text, 'port: 8001')}: port stands twice" in _refusal(tmp_path, text)


def test_malformed_entries_and_contradictions_are_told_together(tmp_path):
    text = (
        _three_sites()
        .replace("dc_pue: 1.09", "dc_pue: 0.5")
        .replace("site: rheinwerk/eu-de, silicon: h100", "site: rheinwerk/eu-de, silicon: tpu")
        .replace("grid_zone: DE", "grid_zone: XX")
        .replace("stop_s: 30", "stop_s: 0")
    )
    told = _refusal(tmp_path, text)
    for place in ("sites.0.dc_pue", "pools.1.silicon", "sites.1.grid_zone", "deadlines.stop_s"):
        assert place in told
    assert "pools.0.site" not in told, "a malformed site may be the one that a pool means"
    numbers = [int(line.split()[1].rstrip(",")) for line in told.splitlines()[1:]]
    assert numbers == sorted(numbers)


def test_settings_that_are_made_otherwise_are_held_to_it_too():
    document = yaml.safe_load(_three_sites())
    document["pools"][0]["model"] = "nope"
    with pytest.raises(ValueError, match="no model 'nope'"):
        Settings.model_validate(document)


def test_an_hourly_file_for_a_zone_without_a_site_is_refused(tmp_path):
    text = _three_sites().replace("source: yearly", "source: hourly\n  hourly: {FI: FI.csv, DEE: DE.csv}")
    told = _refusal(tmp_path, text)
    assert f"line {_line(text, 'DEE')}, carbon.hourly.DEE: no site is in the grid zone 'DEE'" in told
    assert "hourly.FI" not in told


def test_hourly_files_are_found_beside_the_settings(tmp_path):
    path = tmp_path / "mesh.yaml"
    path.write_text(
        _three_sites().replace("source: yearly", "source: hourly\n  hourly: {FI: FI.csv, DE: /data/DE.csv}")
    )
    hourly = load_settings(path, port=None, data_dir=None).carbon.hourly
    assert hourly == {"FI": tmp_path / "FI.csv", "DE": Path("/data/DE.csv")}
