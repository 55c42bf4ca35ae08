"""The mesh as one Ray Serve application: the ingress, and a deployment per pool."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray.serve as ray_serve
from ray.actor import ActorHandle
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from clusters.silicon_kinds import SiliconKind
from placement.replica_ranking import ReplicaRates
from serve.composition import Composition
from serve.deadlines import Deadlines
from serve.door import Dispatch
from serve.engine_spec import EngineSpec
from serve.holds import HoldLedger
from serve.ingress import Ingress
from serve.meter_actor import meters_of
from serve.pools import deployment_name
from serve.replica import EngineReplica

# More than the ingress takes by itself, so that it answers those that it refuses, and not Ray Serve.
_REFUSED_AT_A_TIME = 200
_QUEUED_PER_REPLICA = 200
# How soon Ray Serve finds a dead replica, and puts another in its place; its own ten seconds are an outage.
_LOOK_EVERY_S = 1.0
# One that answers no look is given up after three in a row, each that long: a stopped process is out in ten seconds,
# with Ray Serve's own thirty in ninety. What may hold the interpreter that long is behind it: a replica is looked at
# once its engine has started, the engine computes in a process of its own, tokenizers let go of the lock, and the
# largest body (10 MB) is read in a third of a second.
_ANSWERS_LOOK_WITHIN_S = 3.0
# How soon a replica that is to stop sees that nothing is under way; Ray Serve's own two seconds are in every stop.
_DRAINED_LOOK_EVERY_S = 0.5
# While a pool is full, Ray Serve's router looks for a free place twice in so many seconds for each replica. With its
# own half a second places stood empty: of what a full pool could do, a third was lost.
_FULL_LOOK_EVERY_S = 0.025
# A pool grows before it is full, so that the next replica is there when it is.
_FULL_AT = 0.8
_DEMAND_EVERY_S = 1.0
_DEMAND_OVER_S = 5.0
_GROW_AFTER_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """How many a pool has: ``least`` to ``most``, one given up after ``idle_s`` that its work did not need it."""

    least: int
    most: int
    idle_s: float

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to scale."""
        return self.least == self.most


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolDeployment:
    """One pool as a Serve deployment. ``key`` names it in plans; ``label_selector`` says which nodes may carry it,
    ``silicon`` what must be detected there, None where the pool names none.

    ``rates`` are what its request router weighs between its replicas.
    """

    key: str
    model: str
    engine: EngineSpec
    replicas: Replicas
    cpus: float
    gpus: int
    max_ongoing_requests: int
    environment: Mapping[str, str]
    label_selector: Mapping[str, str]
    silicon: SiliconKind | None
    rates: ReplicaRates
    deadlines: Deadlines
    stop_within_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressDeployment:
    """How many ingresses there are, each on a node of its own, which nodes may carry them, and what each takes."""

    replicas: int
    label_selector: Mapping[str, str]
    most_requests: int


def application(
    pools: Sequence[PoolDeployment],
    ingress: IngressDeployment,
    *,
    compose: Callable[[Dispatch, HoldLedger], Composition],
    ledger: ActorHandle[Any],
    group_key: dict[str, Any],
    namespace: str,
    operator_account: str,
) -> ray_serve.Application:
    """Bind everything; `ray.serve.run` starts it. Keys of the ``operator_account`` may see the meters."""
    engines = {pool.key: _engine(pool, namespace) for pool in pools}
    spread: dict[str, Any] = {"max_replicas_per_node": 1} if ingress.replicas > 1 else {}
    deployment = ray_serve.deployment(
        name="ingress",
        num_replicas=ingress.replicas,
        max_ongoing_requests=ingress.most_requests + _REFUSED_AT_A_TIME,
        max_queued_requests=_REFUSED_AT_A_TIME,
        graceful_shutdown_wait_loop_s=_DRAINED_LOOK_EVERY_S,
        health_check_period_s=_LOOK_EVERY_S,
        health_check_timeout_s=_ANSWERS_LOOK_WITHIN_S,
        ray_actor_options={"num_cpus": 0.1, **_on(ingress.label_selector)},
        **spread,
    )(ray_serve.ingress()(Ingress))
    return deployment.bind(compose, ledger, group_key, engines, partial(meters_of, namespace), operator_account)


def _engine(pool: PoolDeployment, namespace: str) -> ray_serve.Application:
    deployment = ray_serve.deployment(
        name=deployment_name(pool.key),
        max_ongoing_requests=pool.max_ongoing_requests,
        max_queued_requests=_QUEUED_PER_REPLICA * pool.replicas.most,
        graceful_shutdown_timeout_s=pool.stop_within_s,
        graceful_shutdown_wait_loop_s=_DRAINED_LOOK_EVERY_S,
        health_check_period_s=_LOOK_EVERY_S,
        health_check_timeout_s=_ANSWERS_LOOK_WITHIN_S,
        # An engine that cannot start cannot start: say why at once instead of after twenty tries.
        max_constructor_retry_count=1,
        ray_actor_options={
            "num_cpus": pool.cpus,
            "num_gpus": pool.gpus,
            "runtime_env": {"env_vars": dict(pool.environment)},
            **_on(pool.label_selector),
        },
        request_router_config=_router(pool.rates),
        **_scaling(pool),
    )(EngineReplica)
    return deployment.bind(pool.engine, pool.model, namespace, pool.deadlines, pool.silicon)


def _on(label_selector: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {"label_selector": dict(label_selector)} if label_selector else {}


def _router(rates: ReplicaRates) -> RequestRouterConfig:
    # Ray's own annotation of its keyword arguments is that all of them are dictionaries.
    settings: dict[str, Any] = {
        "request_router_class": "placement.ray_router.JouleAwareRouter",
        "request_router_kwargs": dataclasses.asdict(rates),
        "request_routing_stats_period_s": _LOOK_EVERY_S,
        "initial_backoff_s": _FULL_LOOK_EVERY_S,
        "max_backoff_s": _FULL_LOOK_EVERY_S,
    }
    return RequestRouterConfig(**settings)


def _scaling(pool: PoolDeployment) -> dict[str, Any]:
    replicas = pool.replicas
    if replicas.is_fixed:
        return {"num_replicas": replicas.least}
    with warnings.catch_warnings():
        # The way to a shorter interval that Ray names in its place is not read by Ray 2.60.
        warnings.simplefilter("ignore", DeprecationWarning)
        config = AutoscalingConfig(
            min_replicas=replicas.least,
            initial_replicas=replicas.least,
            max_replicas=replicas.most,
            target_ongoing_requests=max(1.0, _FULL_AT * pool.max_ongoing_requests),
            metrics_interval_s=_DEMAND_EVERY_S,
            look_back_period_s=_DEMAND_OVER_S,
            upscale_delay_s=_GROW_AFTER_S,
            downscale_delay_s=replicas.idle_s,
            policy=AutoscalingPolicy(policy_function="placement.ray_autoscaling:scale_pool"),
        )
    return {"autoscaling_config": config}
