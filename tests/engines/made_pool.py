"""A pool as an ingress knows it, for a test that cares for a few of its figures."""

from typing import Any

from clusters.sites import Site
from placement.tiers import Tier
from serve.pools import Pool


def make_pool(key: str, **changes: Any) -> Pool:
    """The pool ``model@operator/region`` or ``model@operator/region/silicon``; a change may be to it or to its site."""
    model, _, place = key.partition("@")
    operator, region, *silicon = place.split("/")
    site: dict[str, Any] = {
        "operator": operator,
        "legal_entity": None,
        "region": region,
        "country": None,
        "grid_zone": "WORLD",
        "dc_pue": 1.0,
        "dc_ref_renewable_share": None,
    }
    pool: dict[str, Any] = {
        "key": key,
        "model": model,
        "model_revision": "r1",
        "silicon": silicon[0] if silicon else None,
        "capable_up_to": Tier.L3,
        "context_tokens": 2048,
        "features": frozenset({"generate"}),
        "prior_microjoules_per_token": 1e5,
        "usd_per_kwh": 0.5,
        "max_ongoing": 8,
        "wake_s": 30.0,
        "simulated": False,
    }
    of_site = {name: changes.pop(name) for name in list(changes) if name in site}
    return Pool(site=Site(**{**site, **of_site}), **{**pool, **changes})
