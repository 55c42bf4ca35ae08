"""The thin classes that Ray Serve calls, on fakes of what it calls them with. No Ray is started."""

import asyncio
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve's own, when it is imported
    from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID
    from ray.serve._private.request_router.common import RequestRoutingContext
    from ray.serve.config import AutoscalingConfig

    from placement.ray_autoscaling import scale_pool
    from placement.ray_router import JouleAwareRouter

DEPLOYMENT = DeploymentID(name="pool", app_name="mesh")


def replica(name: str, **stats: float) -> Any:
    return SimpleNamespace(
        replica_id=ReplicaID(unique_id=name, deployment_id=DEPLOYMENT), max_ongoing_requests=64, routing_stats=stats
    )


@pytest.fixture
def router() -> JouleAwareRouter:
    made = JouleAwareRouter(
        deployment_id=DEPLOYMENT, handle_source=DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True
    )
    made.initialize_state(usd_per_microjoule=1e-13, usd_per_second_waited=3e-6, tokens=512)
    return made


def ranks(router: JouleAwareRouter, *replicas: Any) -> list[list[str]]:
    pending: Any = SimpleNamespace(routing_context=RequestRoutingContext())
    chosen = asyncio.run(router.choose_replicas(list(replicas), pending))
    assert pending.routing_context.should_backoff, "Ray would ask again at once, forever"
    return [[each.replica_id.unique_id for each in rank] for rank in chosen]


def test_without_a_replica_there_is_no_rank_and_ray_backs_off(router):
    assert ranks(router) == []


def test_the_queue_that_ray_knows_of_decides_between_equals(router):
    a, b = (
        replica("a", microjoules_per_token=1e5, service_s=5.0),
        replica("b", microjoules_per_token=1e5, service_s=5.0),
    )
    assert ranks(router, a, b) == [["a"], ["b"]]
    router.on_new_queue_len_info(a.replica_id, 3)
    router.on_new_queue_len_info(b.replica_id, 1)
    assert ranks(router, a, b) == [["b"], ["a"]]


def test_what_a_replica_reports_stands_in_for_a_queue_that_ray_does_not_know(router):
    assert ranks(router, replica("a", running=8.0, service_s=5.0), replica("b", running=2.0)) == [["b"], ["a"]]


def test_fewer_joules_for_each_token_come_first(router):
    thrifty, dear = replica("z", microjoules_per_token=1e5), replica("a", microjoules_per_token=4e5)
    assert ranks(router, dear, thrifty) == [["z"], ["a"]]


def test_a_probe_without_a_request_is_ranked_too(router):
    assert len(asyncio.run(router.choose_replicas([replica("a")], None))) == 1


@pytest.mark.parametrize(("in_flight", "running", "wanted"), [(0, 1, 0), (50, 0, 1), (50, 1, 5), (500, 5, 8)])
def test_ray_is_told_how_many_replicas_a_pool_wants(in_flight: int, running: int, wanted: int):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AutoscalingConfig(min_replicas=0, max_replicas=8, target_ongoing_requests=10.0)
    context: Any = SimpleNamespace(
        deployment_name="pool",
        total_num_requests=in_flight,
        current_num_replicas=running,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=8,
        config=config,
    )
    assert scale_pool(context) == (wanted, {})
