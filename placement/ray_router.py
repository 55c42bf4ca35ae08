"""Ray Serve's request router for one pool's replicas, over `rank_replicas`.

The router API is alpha in Ray 2.60: nothing else in the project touches it, and Ray is pinned. Ray pickles this
module by value, so what it needs of the project it imports.
"""

from collections.abc import Mapping
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

from placement.replica_ranking import ReplicaFacts, ReplicaRates, rank_replicas


class JouleAwareRouter(FIFOMixin, RequestRouter):
    """Ranks a pool's live replicas by the expected USD of a request's joules and wait there."""

    def initialize_state(self, **kwargs: Any) -> None:  # noqa: ANN401 - the signature is Ray's
        """Ray calls it with the deployment's ``request_router_kwargs``: the fields of `ReplicaRates`."""
        self._rates = ReplicaRates(**kwargs)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """All of them, each a rank of its own. Asks nobody: queues are from Ray's cache, or as the rest reported."""
        if pending_request is not None:
            # Without it Ray asks again at once, forever, while every replica is full, and the event loop stands.
            pending_request.routing_context.should_backoff = True
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        ranked = rank_replicas((self._facts(replica) for replica in candidate_replicas), self._rates)
        return [[by_name[name]] for name in ranked]

    def _facts(self, replica: RunningReplica) -> ReplicaFacts:
        stats: Mapping[str, Any] = replica.routing_stats
        queue_length = self.replica_queue_len_cache.get(replica.replica_id)
        return ReplicaFacts(
            replica=replica.replica_id.unique_id,
            queue_length=stats.get("running") if queue_length is None else queue_length,
            max_ongoing=replica.max_ongoing_requests,
            microjoules_per_token=stats.get("microjoules_per_token"),
            service_s=stats.get("service_s"),
        )
