"""How the request behind a receipt was served, for those who read the ledger line by line."""

from dataclasses import dataclass
from typing import Any, Self

from receipts.canonical import parse_strict
from receipts.errors import InvalidDocument


@dataclass(frozen=True, slots=True, kw_only=True)
class LineService:
    """Where it ran, what it was pinned to, how long it waited, and after how many failed attempts it was answered.

    All but ``retries`` are None on receipts of before there was placement; ``region_pin`` is None too where there was
    none.
    """

    retries: int
    pool: str | None
    region_pin: str | None
    waited_ms: int | None
    resumed_after_tokens: int | None

    @classmethod
    def of_signed_bytes(cls, signed: object) -> Self:
        """From a stored receipt's bytes, of which nothing else is looked at.

        Raises:
            InvalidDocument: they are none of a receipt.
        """
        if not isinstance(signed, bytes):
            raise InvalidDocument("not bytes")
        value: Any = parse_strict(signed)
        try:
            placement = value.get("placement")
            return cls(
                retries=value["execution"]["retries"],
                pool=placement and placement["pool"],
                region_pin=placement and placement["pins"]["region"],
                waited_ms=placement and placement["waited_ms"],
                resumed_after_tokens=placement and placement["resumed_after_tokens"],
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise InvalidDocument("not a receipt") from error
