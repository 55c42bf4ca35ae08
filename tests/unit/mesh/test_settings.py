import importlib.resources
import pickle
import threading
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from mesh.app import door_builder, start_mesh
from mesh.errors import BadSettings
from mesh.placement_setup import NodeSelectors
from mesh.progress import Progress
from mesh.settings import load_settings


def _builtin() -> dict:
    return yaml.safe_load(importlib.resources.files("clusters").joinpath("local.yaml").read_text())


def _load(tmp_path: Path, document: object):
    path = tmp_path / "mesh.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return load_settings(path, port=None, data_dir=None)


def test_the_builtin_settings_are_valid_and_listen_on_loopback_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load_settings(None, port=None, data_dir=None)
    assert settings.mesh.host == "127.0.0.1"
    assert settings.pools[0].key == "smollm2-135m-instruct@self-hosted/local"
    assert settings.mesh.data_dir.is_absolute()


def test_a_mesh_yaml_beside_the_caller_is_used(tmp_path, monkeypatch):
    document = _builtin()
    document["mesh"]["port"] = 8123
    (tmp_path / "mesh.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.chdir(tmp_path)
    assert load_settings(None, port=None, data_dir=None).mesh.port == 8123


def test_port_and_data_folder_can_be_given(tmp_path):
    settings = load_settings(None, port=9, data_dir=tmp_path)
    assert (settings.mesh.port, settings.mesh.data_dir) == (9, tmp_path)


def test_an_unknown_field_is_refused_with_its_place(tmp_path):
    document = _builtin()
    document["models"][0]["colour"] = "red"
    with pytest.raises(BadSettings, match=r"models\.0\.colour"):
        _load(tmp_path, document)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["pools"][0].update(model="nope"), "no model 'nope'"),
        (lambda d: d["pools"][0].update(site="nope"), "no site 'nope'"),
        (lambda d: d["pools"].append(dict(d["pools"][0])), "defined twice"),
        (lambda d: d["models"][0].update(weights={}), "exactly one of"),
        (lambda d: d["models"][0]["weights"].update(revision="x"), "revision goes with hub"),
        (
            lambda d: d["models"][0]["weights"].update(folder="model"),
            "package goes together with either file or folder",
        ),
        (lambda d: d["models"][1].update(weights={"folder": "x", "path": "/y"}), "package goes together"),
        (lambda d: d["models"][1].update(weights={"package": "x"}), "package goes together"),
        (lambda d: d["models"][1].update(task="sing"), r"models\.1\.task"),
        (lambda d: d["mesh"].update(port=0), r"mesh\.port"),
        (lambda d: d["sites"][0].update(dc_pue=0.9), "dc_pue"),
        (lambda d: d["sites"][0].update(dc_pue=float("inf")), "finite"),
        (lambda d: d["sites"][0].update(operator="Own machine"), r"sites\.0\.operator: .*pattern"),
        (lambda d: d["sites"][0].update(region="eu/fi"), r"sites\.0\.region: .*pattern"),
    ],
)
def test_contradictions_are_refused(tmp_path, change, says):
    document = _builtin()
    change(document)
    with pytest.raises(BadSettings, match=says):
        _load(tmp_path, document)


def test_a_grid_zone_without_a_figure_is_refused_with_its_line(tmp_path):
    document = _builtin()
    document["sites"][0]["grid_zone"] = "XX"
    with pytest.raises(BadSettings, match=r"line \d+, sites\.0\.grid_zone: .*'XX'"):
        _load(tmp_path, document)


def test_a_carbon_feed_that_cannot_work_is_refused_before_anything_starts(tmp_path):
    document = _builtin()
    document["carbon"] = {"source": "hourly", "hourly": {document["sites"][0]["grid_zone"]: "nowhere.csv"}}
    settings = _load(tmp_path, document)
    with pytest.raises(BadSettings, match="nowhere"), start_mesh(settings, Progress(Console()), threading.Event()):
        pass


@pytest.mark.parametrize("text", ["a: [", "- just\n- a list", "", "\x00"])
def test_garbage_is_refused_and_names_the_file(tmp_path, text):
    with pytest.raises(BadSettings, match=r"mesh\.yaml"):
        _load(tmp_path, text)


class TestLedger:
    def test_it_lies_in_the_data_folder_unless_another_place_is_named(self, tmp_path):
        document = _builtin()
        document["mesh"]["data_dir"] = str(tmp_path)
        assert _load(tmp_path, document).ledger_url == f"sqlite:///{tmp_path}/ledger.sqlite3"
        del document["ledger"]
        assert _load(tmp_path, document).ledger_url == f"sqlite:///{tmp_path}/ledger.sqlite3", "as in older files"
        document["ledger"] = {"url": "postgresql://ledger@db.example/mesh"}
        assert _load(tmp_path, document).ledger_url == "postgresql://ledger@db.example/mesh"

    def test_a_password_in_it_is_shown_nowhere(self, tmp_path):
        document = _builtin()
        document["ledger"]["url"] = "postgresql://ledger:geheim@db.example/mesh"
        settings = _load(tmp_path, document)
        assert "geheim" not in f"{settings!r}{settings}{settings.ledger!r}{settings.model_dump()}"
        assert "geheim" in settings.ledger_url

    def test_a_password_in_it_does_not_travel_to_the_ingress(self, tmp_path):
        document = _builtin()
        document["ledger"]["url"] = "postgresql://ledger:geheim@db.example/mesh"
        settings = _load(tmp_path, document)
        assert b"geheim" in pickle.dumps(settings)
        assert b"geheim" not in pickle.dumps(door_builder(settings, NodeSelectors(pools={}, ingress={})))

    @pytest.mark.parametrize("url", ["mysql://ledger:geheim@h/d", "ledger:geheim", 7, ["geheim"], "sqlite:///relative"])
    def test_another_kind_of_place_is_refused_and_not_repeated(self, tmp_path, url):
        document = _builtin()
        document["ledger"]["url"] = url
        with pytest.raises(BadSettings, match=r"ledger\.url: ") as refused:
            _load(tmp_path, document)
        assert "geheim" not in f"{refused.value}{refused.value.__cause__}"
