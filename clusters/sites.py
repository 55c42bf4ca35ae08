"""A site: whose silicon it is, where it stands and on which grid."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One operator's data centre in one region, with what the operator publishes about it.

    ``country`` is ISO 3166-1 alpha-2; ``dc_pue`` is facility over IT energy (at least 1);
    ``dc_ref_renewable_share`` is 0 to 1. None is "not published".
    """

    operator: str
    legal_entity: str | None
    region: str
    country: str | None
    grid_zone: str
    dc_pue: float
    dc_ref_renewable_share: float | None
