"""Twice what a mesh can do: it refuses in time and says when to come again, and its memory stays as it was."""

from collections.abc import Iterator

import pytest
from running_echo import EchoMesh, built_in_settings, running_echo_mesh

from benchmarks.overload import Overloaded, overload

_SECONDS = 20
_AT_ONCE = 4
_MOST_REQUESTS = 24
# The test engine waits so long before each word but the first; there are three.
_PACE_S = 0.25
_PER_S = _AT_ONCE / (2 * _PACE_S)
"""What the mesh can do."""

_BODY = {"model": "auto", "messages": [{"role": "user", "content": f"!pace {_PACE_S} word"}]}


@pytest.fixture
def mesh(tmp_path) -> Iterator[EchoMesh]:
    settings = built_in_settings()
    settings["ingress"]["most_requests"] = _MOST_REQUESTS
    settings["pools"][0]["max_ongoing_requests"] = _AT_ONCE
    with running_echo_mesh(tmp_path, settings=settings) as running:
        yield running


async def test_what_is_too_much_is_refused_and_the_rest_is_answered_in_time(mesh):
    target = Overloaded(url=mesh.url, pid=mesh.process.pid, key=mesh.key)
    seen = await overload(target, _BODY, per_s=2 * _PER_S, seconds=_SECONDS)
    assert seen.outcomes.keys() == {"200", "503"}, seen.outcomes
    assert seen.without_retry_after == 0
    assert seen.outcomes["200"] > _PER_S * _SECONDS / 2, "overloaded, it does less than half of what it can"
    assert max(seen.waited_s) < 3 * _MOST_REQUESTS / _PER_S, "more are waiting than the door takes"
    assert seen.resident_mib_at(1) < 1.05 * seen.resident_mib_at(0.5), seen.resident_mib
    assert mesh.chat("one").status_code == 200
