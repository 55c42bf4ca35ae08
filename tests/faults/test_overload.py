"""Twice what a mesh can do: it refuses in time and says when to come again, and its memory stays as it was."""

import asyncio
import itertools
from collections.abc import Iterator

import httpx
import pytest
from running_echo import EchoMesh, built_in_settings, running_echo_mesh

from benchmarks.overload import Overloaded, overload

_SECONDS = 14
_AT_ONCE = 4
_MOST_REQUESTS = 24
# The test engine waits so long before each word but the first; there are three.
_PACE_S = 0.25
_PER_S = _AT_ONCE / (2 * _PACE_S)
"""What the mesh can do."""

_MORE = 8
_STAYS_S = 600


def _body(pace_s: float) -> dict:
    return {"model": "auto", "messages": [{"role": "user", "content": f"!pace {pace_s} word"}]}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory) -> Iterator[EchoMesh]:
    settings = built_in_settings()
    settings["ingress"]["most_requests"] = _MOST_REQUESTS
    settings["pools"][0]["max_ongoing_requests"] = _AT_ONCE
    with running_echo_mesh(tmp_path_factory.mktemp("overload"), settings=settings) as running:
        yield running


async def test_what_is_more_than_the_door_takes_is_refused_and_its_place_is_free_when_a_client_leaves(mesh):
    """None of those that it takes can end before the others come, however busy the machine is."""
    async with httpx.AsyncClient(base_url=mesh.url, timeout=_STAYS_S, headers=mesh.headers) as client:
        asking = [
            asyncio.ensure_future(client.post("/v1/chat/completions", json=_body(_STAYS_S)))
            for _ in range(_MOST_REQUESTS + _MORE)
        ]
        refused = [await each for each in itertools.islice(asyncio.as_completed(asking), _MORE)]
        assert [(each.status_code, each.headers.get("Retry-After")) for each in refused] == [(503, "2")] * _MORE
        left = [each for each in asking if not each.done()]
        assert len(left) == _MOST_REQUESTS
        for each in left:
            each.cancel()
        await asyncio.wait(left)
    assert await asyncio.to_thread(mesh.wait_until, lambda: mesh.chat("one").status_code == 200)


async def test_twice_what_it_can_do_is_refused_or_answered_in_time(mesh):
    target = Overloaded(url=mesh.url, pid=mesh.process.pid, key=mesh.key)
    seen = await overload(target, _body(_PACE_S), per_s=2 * _PER_S, seconds=_SECONDS)
    assert seen.outcomes.keys() <= {"200", "503"}, seen.outcomes
    assert seen.without_retry_after == 0
    assert seen.outcomes["200"] > _PER_S * _SECONDS / 2, "overloaded, it does less than half of what it can"
    assert max(seen.waited_s) < 3 * _MOST_REQUESTS / _PER_S, "more are waiting than the door takes"
    assert seen.resident_mib_at(1) < 1.05 * seen.resident_mib_at(0.5), seen.resident_mib
    assert mesh.chat("one").status_code == 200
