"""The pins of a request: what its header asks for, and what its account allows."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from placement.pins import Pins
from serve.errors import RequestRefused

REGION_HEADER = "X-Region"
# What regions are called in the settings: what Ray takes as a label.
_REGION = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestPins:
    """``accounts`` are the pins of the accounts that have any (operators, residency), by name."""

    def __init__(self, accounts: Mapping[str, Pins]) -> None:
        self._accounts = accounts

    def of(self, account: str, regions: Sequence[str]) -> Pins:
        """The account's pins with the region of the header, which was sent with these values, or with none.

        Raises:
            RequestRefused: 400, the header is no region, or there are two: either could be the one that is meant.
        """
        if len(regions) > 1:
            raise RequestRefused(HTTPStatus.BAD_REQUEST, f"{REGION_HEADER} was sent {len(regions)} times; send one")
        region = regions[0] if regions else None
        if region is not None and (_REGION.fullmatch(region) is None or not region.strip("._-")):
            raise RequestRefused(
                HTTPStatus.BAD_REQUEST,
                f"{REGION_HEADER} must be a region, a prefix of one such as eu, or a country's code: "
                "1 to 64 letters, digits, dots, dashes and underscores",
            )
        own = self._accounts.get(account, Pins())
        return Pins(region=region, residency=own.residency, operators=own.operators)
