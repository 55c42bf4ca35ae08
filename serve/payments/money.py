"""US dollars as people write them, and as the ledger counts them: in pico-USD."""

import re
from typing import Final

from receipts.exact_decimal import exact_decimal

USD_PICOS: Final = 10**12
CENT_PICOS: Final = 10**10
_DECIMALS: Final = 12
_USD: Final = re.compile(r"(0|[1-9][0-9]{0,5})(?:\.([0-9]{1,12}))?", re.ASCII)
USD_PATTERN: Final = f"^{_USD.pattern}$"
"""Less than a million dollars, without a sign."""


def usd_to_picos(text: str) -> int:
    """``12.34`` in pico-USD, exactly.

    Raises:
        ValueError: it isn't such an amount.
    """
    written = _USD.fullmatch(text)
    if written is None:
        raise ValueError('an amount in USD is like "12.34": below a million, with at most 12 decimals')
    return int(written[1]) * USD_PICOS + int((written[2] or "").ljust(_DECIMALS, "0"))


def picos_to_usd(usd_picos: int) -> str:
    """All that is there, and no more decimals than it takes, but two: ``-0.05``, ``12.340001``."""
    whole, _, decimals = exact_decimal(usd_picos, _DECIMALS).partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(2, '0')}"
