"""The mesh as one Ray Serve application: the ingress, and a deployment per pool."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray.serve as ray_serve
from ray.actor import ActorHandle

from serve.deadlines import Deadlines
from serve.door import Dispatch, Door
from serve.engine_spec import EngineSpec
from serve.holds import Holds
from serve.ingress import Ingress
from serve.meter_actor import meters_of
from serve.replica import EngineReplica

_INGRESS_ONGOING = 1000
_QUEUED_PER_REPLICA = 200
# How soon Ray Serve finds a dead replica, and puts another in its place; its own ten seconds are an outage.
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolDeployment:
    """One pool as a Serve deployment. ``key`` names it in plans, ``deployment`` in Ray Serve."""

    key: str
    model: str
    engine: EngineSpec
    replicas: int
    cpus: float
    gpus: int
    max_ongoing_requests: int
    environment: Mapping[str, str]
    deadlines: Deadlines
    stop_within_s: float

    @property
    def deployment(self) -> str:
        """The pool's key in the characters that Ray Serve allows."""
        return self.key.replace("@", "--").replace("/", "--")


def application(
    pools: Sequence[PoolDeployment],
    *,
    build_door: Callable[[Dispatch, Holds], Door],
    ledger: ActorHandle[Any],
    group_key: dict[str, Any],
    namespace: str,
    operator_account: str,
) -> ray_serve.Application:
    """Bind everything; `ray.serve.run` starts it. Keys of the ``operator_account`` may see the meters."""
    engines = {pool.key: _engine(pool, namespace) for pool in pools}
    ingress = ray_serve.deployment(
        name="ingress",
        num_replicas=1,
        max_ongoing_requests=_INGRESS_ONGOING,
        health_check_period_s=_LOOK_EVERY_S,
        ray_actor_options={"num_cpus": 0.1},
    )(ray_serve.ingress()(Ingress))
    return ingress.bind(build_door, ledger, group_key, engines, partial(meters_of, namespace), operator_account)


def _engine(pool: PoolDeployment, namespace: str) -> ray_serve.Application:
    deployment = ray_serve.deployment(
        name=pool.deployment,
        num_replicas=pool.replicas,
        max_ongoing_requests=pool.max_ongoing_requests,
        max_queued_requests=_QUEUED_PER_REPLICA * pool.replicas,
        graceful_shutdown_timeout_s=pool.stop_within_s,
        health_check_period_s=_LOOK_EVERY_S,
        # An engine that cannot start cannot start: say why at once instead of after twenty tries.
        max_constructor_retry_count=1,
        ray_actor_options={
            "num_cpus": pool.cpus,
            "num_gpus": pool.gpus,
            "runtime_env": {"env_vars": dict(pool.environment)},
        },
    )(EngineReplica)
    return deployment.bind(pool.engine, pool.model, namespace, pool.deadlines)
