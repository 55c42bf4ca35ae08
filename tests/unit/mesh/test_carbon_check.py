import importlib.resources
from pathlib import Path

import pytest
import yaml

from mesh.carbon_check import check_carbon
from mesh.errors import BadSettings
from mesh.settings import Settings


def _settings(**carbon: object) -> Settings:
    document = yaml.safe_load(importlib.resources.files("clusters").joinpath("local.yaml").read_text())
    document["carbon"] = carbon
    document["sites"] += [
        {**document["sites"][0], "region": zone.lower(), "grid_zone": zone} for zone in carbon.get("hourly", {})
    ]
    return Settings.model_validate(document)


def _series(path: Path, row: str) -> str:
    path.write_text(f"utc_hour,gco2_per_kwh\n{row}\n")
    return str(path)


def test_yearly_means_need_nothing():
    check_carbon(_settings(source="yearly"), {})


def test_every_hourly_file_is_read_and_every_fault_told(tmp_path):
    good = _series(tmp_path / "FR.csv", "2020-01-01T00:00Z,54.4")
    check_carbon(_settings(source="hourly", hourly={"FR": good}), {})
    bad = {zone: _series(tmp_path / f"{zone}.csv", "2020-01-01T00:00Z,x") for zone in ("DE", "FI")}
    with pytest.raises(BadSettings) as refused:
        check_carbon(_settings(source="hourly", hourly={"FR": good, **bad}), {})
    assert [line.partition(":")[0] for line in str(refused.value).splitlines()] == [
        "carbon.hourly.DE",
        "carbon.hourly.FI",
    ]
    assert "DE.csv, line 2" in str(refused.value)


def test_the_live_service_needs_a_key_in_the_variable_that_is_named():
    settings = _settings(source="electricity-maps", api_key_variable="MY_KEY")
    with pytest.raises(BadSettings, match="MY_KEY"):
        check_carbon(settings, {})
    with pytest.raises(BadSettings, match="MY_KEY"):
        check_carbon(settings, {"MY_KEY": ""})
    check_carbon(settings, {"MY_KEY": "x"})


def test_in_a_joined_cluster_the_key_is_elsewhere():
    check_carbon(_settings(source="electricity-maps"), {"RAY_ADDRESS": "10.0.0.1:6379"})
