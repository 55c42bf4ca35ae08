"""Ray Serve's autoscaling policy for one pool, over `wanted_replicas`.

Ray calls it in its controller several times a second: it computes on what Ray hands it and never waits. The delays
(how long a demand must last, how long a pool must be idle) are Ray's own, from the deployment's configuration.
Ray 2.60 takes one policy for all pools of an application only by its REST configuration, which replaces whatever
else runs on a joined cluster; so each pool has its own, and what concerns several pools is the ingress's
(`next_to_wake`).
"""

from typing import Any

from ray.serve.config import AutoscalingContext

from placement.scaling import PoolLoad, wanted_replicas


def scale_pool(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """The pool's wanted replicas, and no state to keep."""
    config = context.config
    assert config is not None, "a deployment that scales has a configuration"
    load = PoolLoad(
        pool=context.deployment_name,
        in_flight=context.total_num_requests,
        per_replica=config.target_ongoing_requests,
        running=context.current_num_replicas,
        least=context.capacity_adjusted_min_replicas,
        most=context.capacity_adjusted_max_replicas,
    )
    return wanted_replicas(load), {}
