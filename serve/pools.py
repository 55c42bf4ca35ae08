"""Pools as the ingress knows them."""

from dataclasses import dataclass

from clusters.sites import Site
from placement.tiers import Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One model on one kind of a site's silicon; ``key`` names it in plans, receipts and settings.

    ``silicon`` is the kind that the settings name, None where they name none; ``simulated`` when it is only a label.
    ``usd_per_kwh`` is this site's price; ``network_s`` how far it is from the ingress. A replica takes at most
    ``max_ongoing`` requests at once; starting one takes ``wake_s`` until it is learned. ``least_replicas`` is 0 for
    a pool that sleeps when idle.
    """

    key: str
    model: str
    model_revision: str | None
    site: Site
    silicon: str | None
    capable_up_to: Tier
    context_tokens: int
    features: frozenset[str]
    prior_microjoules_per_token: float
    usd_per_kwh: float
    max_ongoing: int
    wake_s: float
    simulated: bool
    network_s: float = 0.0
    least_replicas: int = 1
    most_replicas: int = 1

    @property
    def deployment(self) -> str:
        """The pool's key in the characters that Ray Serve allows."""
        return deployment_name(self.key)


def deployment_name(pool: str) -> str:
    """A pool's Serve deployment."""
    return pool.replace("@", "--").replace("/", "--")
