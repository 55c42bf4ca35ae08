"""The pins of a request: what its header asks for, and what its account allows."""

import re
from collections.abc import Mapping
from http import HTTPStatus

from placement.pins import Pins
from serve.errors import RequestRefused

REGION_HEADER = "X-Region"
_REGION = re.compile(r"[A-Za-z0-9-]{1,64}")


class RequestPins:
    """``accounts`` are the pins of the accounts that have any (operators, residency), by name."""

    def __init__(self, accounts: Mapping[str, Pins]) -> None:
        self._accounts = accounts

    def of(self, account: str, region: str | None) -> Pins:
        """The account's pins with the header's ``region``, None where it was not sent.

        Raises:
            RequestRefused: 400, the header is no region.
        """
        if region is not None and (_REGION.fullmatch(region) is None or not region.strip("-")):
            raise RequestRefused(
                HTTPStatus.BAD_REQUEST,
                f"{REGION_HEADER} must be a region, a prefix of one such as eu, or a country's code: "
                "1 to 64 letters, digits and dashes",
            )
        own = self._accounts.get(account, Pins())
        return Pins(region=region, residency=own.residency, operators=own.operators)
