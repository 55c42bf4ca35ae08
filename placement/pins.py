"""Pins: where a request must run and on what. A pin rejects a pool; nothing makes up for it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """What the client and its account leave no choice about; the defaults leave every choice.

    ``region`` is a region, a prefix of regions or a country, as `region_matches` reads it; of ``residency`` at least
    one entry must match the same way, and none means no restriction. ``operators`` is the account's allow-list, None
    where it has none; an empty one allows nobody.

    Raises:
        ValueError: a name is empty; it would silently match nothing.
    """

    model: str | None = None
    region: str | None = None
    residency: tuple[str, ...] = ()
    operators: frozenset[str] | None = None

    def __post_init__(self) -> None:
        named = (("model", self.model), ("region", self.region), *(("residency", each) for each in self.residency))
        for name, value in named:
            if value is not None and not value.strip():
                raise ValueError(f"a pin's {name} must not be empty")

    def refusal(self, *, model: str, region: str, country: str | None, operator: str) -> str | None:
        """The first pin that a pool of this model, place and operator breaks, in words; None where it keeps all."""
        if self.model is not None and self.model != model:
            return f"serves {model}, the request is pinned to {self.model}"
        if self.region is not None and not region_matches(self.region, region, country):
            return f"is in region {_place(region, country)}, the request is pinned to {self.region}"
        if self.residency and not any(region_matches(each, region, country) for each in self.residency):
            return f"is in region {_place(region, country)}, the account's data must stay in {_any(self.residency)}"
        if self.operators is not None and operator not in self.operators:
            return f"is run by {operator}, the account allows {_any(sorted(self.operators)) or 'no operator'}"
        return None


def region_matches(wanted: str, region: str, country: str | None) -> bool:
    """Whether a pool in ``region`` of ``country`` (ISO 3166-1 alpha-2) is where ``wanted`` says; case is no matter.

    ``wanted`` is the region itself, a prefix of it that ends at a dash ("eu" is "eu-de" but not "europe"), or the
    country's code. Nothing is known of which countries a bloc has: "eu" is a prefix, no list of members.
    """
    return wanted.casefold() in names_of(region, country)


def names_of(region: str, country: str | None) -> frozenset[str]:
    """Everything that may be asked for to get this place, case-folded: region, its prefixes, country."""
    parts = region.casefold().split("-")
    names = {"-".join(parts[:count]) for count in range(1, len(parts) + 1)}
    if country is not None:
        names.add(country.casefold())
    return frozenset(names - {""})


def _place(region: str, country: str | None) -> str:
    return region if country is None else f"{region} ({country})"


def _any(names: tuple[str, ...] | list[str]) -> str:
    return " or ".join(names)
