"""What Ray Serve is told of each pool and of the ingresses. No Ray is started."""

import warnings
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve's own, when it is imported
    from ray.serve._private.build_app import build_app
    from ray.serve._private.constants import REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD

    from serve.application import IngressDeployment, PoolDeployment, Replicas, application

from echo import EchoSpec

from placement.replica_ranking import ReplicaRates
from serve.deadlines import Deadlines

RATES = ReplicaRates(usd_per_microjoule=1e-13, usd_per_second_waited=3e-6, tokens=512)
LABELS = {"joule-mesh.io/operator": "acme"}


def pool(key: str, replicas: Replicas, **labels: str) -> PoolDeployment:
    return PoolDeployment(
        key=key,
        model="small",
        engine=EchoSpec(model_name="small"),
        replicas=replicas,
        cpus=1,
        gpus=0,
        max_ongoing_requests=20,
        environment={"A": "b"},
        label_selector=labels,
        silicon=None,
        rates=RATES,
        deadlines=Deadlines(first_token_s=10, between_tokens_s=5),
        stop_within_s=30,
    )


def built(*pools: PoolDeployment, ingresses: int = 1, **labels: str) -> dict[str, Any]:
    nothing: Any = None
    app = application(
        pools,
        IngressDeployment(replicas=ingresses, label_selector=labels, most_requests=100),
        compose=nothing,
        ledger=nothing,
        group_key={},
        namespace="mesh",
        operator_account="operator",
    )
    return {each.name: each for each in build_app(app, name="mesh").deployments}


@pytest.fixture(scope="module")
def deployments() -> dict[str, Any]:
    fixed = pool("small@acme/eu-fi", Replicas(least=2, most=2, idle_s=0), **LABELS)
    sleepy = pool("small@acme/eu-de/moon", Replicas(least=0, most=3, idle_s=300))
    return built(fixed, sleepy, ingresses=2, **{"joule-mesh.io/role": "ingress"})


def test_each_pool_is_a_deployment_of_its_own(deployments):
    assert set(deployments) == {"small--acme--eu-fi", "small--acme--eu-de--moon", "ingress"}


def test_a_fixed_pool_has_its_number_and_its_labels(deployments):
    fixed = deployments["small--acme--eu-fi"]
    assert fixed.num_replicas == 2
    assert fixed._deployment_config.autoscaling_config is None
    assert fixed.ray_actor_options["label_selector"] == LABELS
    assert not deployments["small--acme--eu-de--moon"].ray_actor_options.get("label_selector")


def test_a_sleepy_pool_starts_with_none_and_scales_by_our_policy(deployments):
    scaling = deployments["small--acme--eu-de--moon"]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.initial_replicas, scaling.max_replicas) == (0, 0, 3)
    assert (scaling.downscale_delay_s, scaling.target_ongoing_requests) == (300, 16)
    assert scaling.policy.get_policy().__name__ == "scale_pool"


def test_pools_are_routed_by_our_router_and_ingresses_by_rays(deployments):
    config = deployments["small--acme--eu-fi"]._deployment_config.request_router_config
    assert config.get_request_router_class().__name__ == "JouleAwareRouter"
    assert config.request_router_kwargs == {
        "usd_per_microjoule": 1e-13,
        "usd_per_second_waited": 3e-6,
        "tokens": 512,
    }
    assert deployments["ingress"]._deployment_config.request_router_config.is_default_request_router()


def test_several_ingresses_are_each_on_a_node_of_their_own_that_carries_ingresses(deployments):
    ingress = deployments["ingress"]
    assert ingress.num_replicas == 2
    assert ingress._replica_config.max_replicas_per_node == 1
    assert ingress.ray_actor_options["label_selector"] == {"joule-mesh.io/role": "ingress"}


def test_one_ingress_may_be_anywhere():
    ingress = built(pool("small@acme/eu-fi", Replicas(least=1, most=1, idle_s=0)))["ingress"]
    assert ingress._replica_config.max_replicas_per_node is None
    assert not ingress.ray_actor_options.get("label_selector")


@pytest.mark.parametrize("name", ["ingress", "small--acme--eu-fi"])
def test_one_that_stands_still_is_given_up_in_about_ten_seconds(deployments, name):
    """Ray Serve does so after a number of looks in a row that were not answered in time."""
    config = deployments[name]._deployment_config
    looks = REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD
    assert 5 < looks * max(config.health_check_timeout_s, config.health_check_period_s) <= 10


@pytest.mark.parametrize("name", ["ingress", "small--acme--eu-fi"])
def test_a_stop_is_not_held_up_by_looking_seldom_whether_anything_is_under_way(deployments, name):
    assert deployments[name]._deployment_config.graceful_shutdown_wait_loop_s <= 0.5
