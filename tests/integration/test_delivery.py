"""What a meter takes for a ledger that is away, as Ray hands its errors over."""

import pytest
from ray.exceptions import RayTaskError

from receipts.errors import LedgerInUse, LedgerUnavailable, LedgerUnusable, SettlementRefused
from serve.meter_actor import _is_away


@pytest.mark.parametrize(
    ("cause", "is_away"),
    [
        (LedgerUnavailable("disk full"), True),
        (LedgerInUse("held by the session that was lost"), True),
        (LedgerUnusable("damaged"), False),
        (SettlementRefused("0" * 32, "there is no account"), False),
    ],
)
def test_a_ledger_that_may_take_it_in_a_moment_is_away(cause: Exception, is_away: bool):
    assert _is_away(RayTaskError("settle", "", cause)) == is_away
