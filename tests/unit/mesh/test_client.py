from datetime import UTC, datetime

import pytest

from mesh.client import MeshClient
from mesh.errors import MeshError, NotRunning


def test_without_a_key_the_sdk_is_not_made_so_that_it_sends_no_other_key():
    with pytest.raises(MeshError, match="JC_API_KEY"):
        MeshClient("http://127.0.0.1:1", None).openai()


def test_nobody_there_is_said_with_the_address():
    with pytest.raises(NotRunning, match=r"http://127\.0\.0\.1:1"):
        MeshClient("http://127.0.0.1:1", None).group_key()


def test_a_time_without_a_zone_is_nobodys() -> None:
    with pytest.raises(MeshError, match="has no time zone"):
        list(MeshClient("http://127.0.0.1:1", "jc_LIVE_x").receipts(since=datetime(2026, 1, 1)))  # noqa: DTZ001


def test_receipts_of_no_mesh_are_not_waited_for() -> None:
    waited_s: list[float] = []
    mesh = MeshClient("http://127.0.0.1:1", "jc_LIVE_x", sleep=waited_s.append)
    with pytest.raises(NotRunning, match="no mesh answers"):
        next(mesh.receipts(since=datetime(2026, 1, 1, tzinfo=UTC), model="small"))
    assert waited_s == []


def test_nothing_is_asked_before_a_receipt_is_taken() -> None:
    MeshClient("http://127.0.0.1:1", "jc_LIVE_x").receipts(since="30d")
