"""Balances are held before work, and no hold outlives its request, whatever dies."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
import requests
from ledger_probe import LedgerProbe, ledger_probe
from running_echo import EchoMesh, built_in_settings, running_echo_mesh

from placement.energy_rates import prior_rates

_CREDIT_USD_PICOS = 5 * 10**12
_SETTLED_S = 15
_LEASE_S = 12
_LAPSED_S = _LEASE_S + _SETTLED_S
_AT_ONCE_S = 6
"""Before the lease, renewed as long as its request is under way, can have run out."""

# A word keeps one thread busy for at least 4 ms, which at 100 W is 0.4 J for its two tokens, one in and one out.
_WATTS = 100.0
_JOULES_PER_TOKEN = 0.2
_CONTEXT_TOKENS = 16
_TEN_TIMES = 10
_BETWEEN_TOKENS_S = 3
_ATTEMPTS = 2  # one that is repeated is enough, and what kills a replica waits for its follower each time
_MOST_UNSIGNED = 30
_JOULES_PER_OUTPUT_TOKEN = prior_rates(_JOULES_PER_TOKEN * 1e6).larger_microjoules_per_token / 1e6
_USD_PER_KWH = 0.5 / (_CONTEXT_TOKENS * _JOULES_PER_OUTPUT_TOKEN * _TEN_TIMES) * 3.6e6
"""Of a request that fills its context half a dollar is held: a new account's five are enough for ten."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory) -> Iterator[EchoMesh]:
    settings = built_in_settings()
    settings["ledger"]["most_unsigned"] = _MOST_UNSIGNED
    settings["ledger"]["hold_lease_s"] = _LEASE_S
    settings["deadlines"]["between_tokens_s"] = _BETWEEN_TOKENS_S
    settings["placement"]["attempts"] = _ATTEMPTS
    settings["price"]["usd_per_kwh"] = _USD_PER_KWH
    settings["meter"]["watts_per_thread"] = _WATTS
    settings["models"][0].update(context_tokens=_CONTEXT_TOKENS, prior_joules_per_token=_JOULES_PER_TOKEN)
    with running_echo_mesh(
        tmp_path_factory.mktemp("holds"), accounts=("crowd", "many", "spent"), settings=settings
    ) as running:
        yield running


@pytest.fixture(scope="module")
def probe(mesh) -> Iterator[LedgerProbe]:
    with ledger_probe(mesh.data_dir) as looking:
        yield looking


def _customer(mesh: EchoMesh, account: str) -> EchoMesh:
    return dataclasses.replace(mesh, key=mesh.account_keys[account])


def _actors(mesh: EchoMesh, title: str) -> set[int]:
    """The processes of these actors."""
    family = psutil.Process(mesh.process.pid).children(recursive=True)
    found = set()
    for each in family:
        with contextlib.suppress(psutil.Error):
            if f"ray::{title}" in " ".join(each.cmdline()):
                found.add(each.pid)
    return found


def _kill(mesh: EchoMesh, title: str) -> set[int]:
    victims = _actors(mesh, title)
    assert victims
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    return victims


def _answers(mesh: EchoMesh) -> bool:
    try:
        return mesh.chat("are you there").ok
    except requests.RequestException:
        return False


def _has(probe: LedgerProbe, count: int) -> bool:
    view = probe.look()
    return view is not None and (view.count, view.held_usd_picos > 0) == (count, count > 0)


def _stream(mesh: EchoMesh, words: int, command: str = "!slow") -> tuple[requests.Response, Iterator[str]]:
    """A stream that has begun, of a word a second."""
    response = mesh.chat(f"{command} " + "word " * words, stream=True)
    assert response.ok, response.text
    lines = response.iter_lines(decode_unicode=True)
    next(lines)
    return response, lines


@pytest.fixture(autouse=True)
def whole(mesh, probe) -> None:
    """Every test finds a mesh that answers and holds nothing."""
    assert mesh.wait_until(lambda: _answers(mesh), 60)
    assert mesh.wait_until(lambda: _has(probe, 0), _LAPSED_S)


def test_a_balance_is_held_while_a_request_runs_and_not_longer(mesh, probe):
    _, lines = _stream(mesh, 2)
    assert _has(probe, 1)
    assert [line for line in lines if line][-1] == "data: [DONE]"
    assert _has(probe, 0), "the receipt was there before the last byte"


def test_a_client_that_leaves_in_mid_stream_leaves_no_hold(mesh, probe):
    response, _ = _stream(mesh, 40)
    assert _has(probe, 1)
    response.close()
    assert mesh.wait_until(lambda: _has(probe, 0), _SETTLED_S)


def test_a_client_that_leaves_before_the_answer_leaves_no_hold(mesh, probe):
    with pytest.raises(requests.ReadTimeout):
        requests.post(
            f"{mesh.url}/v1/chat/completions",
            json={"model": "auto", "messages": [{"role": "user", "content": "!hang here"}]},
            headers=mesh.headers,
            timeout=1,
        )
    assert mesh.wait_until(lambda: _has(probe, 0), _SETTLED_S)


@pytest.mark.parametrize(("text", "status"), [("!refuse this", 400), ("!crash now please", 502)])
def test_a_request_that_gets_no_answer_leaves_no_hold(mesh, probe, text, status):
    assert mesh.chat(text).status_code == status
    assert mesh.wait_until(lambda: _has(probe, 0), _AT_ONCE_S)


def test_a_replica_that_dies_in_mid_stream_leaves_no_hold(mesh, probe):
    assert "error" in mesh.chat("!crash now please", stream=True).text
    assert mesh.wait_until(lambda: _has(probe, 0), _AT_ONCE_S)


def test_a_replica_that_hangs_past_the_deadline_leaves_no_hold_and_no_charge(mesh, probe):
    """The door gives the attempt up, so the mesh pays for it, also when the replica comes to itself."""
    response, lines = _stream(mesh, 4, "!freeze")
    assert _has(probe, 1)
    assert any("the answer broke off: timeout" in line for line in lines)
    assert mesh.wait_until(lambda: _has(probe, 0), _AT_ONCE_S)
    assert mesh.wait_until(lambda: _answers(mesh), 30), "it has come to itself"
    receipt = f"{mesh.url}/v1/receipts/{response.headers['X-Receipt-Id']}"
    assert not mesh.wait_until(lambda: requests.get(receipt, headers=mesh.headers, timeout=60).ok, 2)


@pytest.mark.parametrize("is_busy", [True, False])
def test_a_ledger_killed_in_mid_request_gets_the_hold_back_and_ends_it(mesh, probe, is_busy):
    response, _ = _stream(mesh, 40)
    assert _has(probe, 1)
    killed = _kill(mesh, "LedgerActor")
    # Its memory is gone. When a renewal waits for the new one, nobody can see it without the hold.
    assert mesh.wait_until(lambda: bool(_actors(mesh, "LedgerActor") - killed), 20)
    if is_busy:
        assert mesh.wait_until(lambda: _answers(mesh), 20)
        assert _has(probe, 1), "the next request's hold brings back those under way"
    assert mesh.wait_until(lambda: _has(probe, 1), 20), "the ingress renews what it has under way"
    response.close()
    assert mesh.wait_until(lambda: _has(probe, 0), _SETTLED_S)


def test_an_ingress_that_is_killed_leaves_no_hold(mesh, probe):
    _, lines = _stream(mesh, 40)
    assert _has(probe, 1)
    _kill(mesh, "ServeReplica:joule-mesh:ingress")
    with contextlib.suppress(requests.RequestException):
        assert "data: [DONE]" not in list(lines)
    assert mesh.wait_until(lambda: _has(probe, 0), _LAPSED_S)


def test_without_the_ledger_a_request_is_503_and_says_when_to_come_back(mesh, probe):
    _kill(mesh, "LedgerActor")
    refused = next(each for each in (mesh.chat("hello") for _ in range(100)) if not each.ok)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "service_unavailable")
    assert int(refused.headers["Retry-After"]) > 0


def test_fifty_at_once_on_a_balance_for_ten_never_take_more_than_there_is(mesh, probe):
    crowd = _customer(mesh, "crowd")
    is_over = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(51) as threads:
        asking = [threads.submit(crowd.chat, "word " * 40) for _ in range(50)]
        watching = threads.submit(_most_held, probe, is_over)
        statuses = [each.result().status_code for each in asking]
        is_over.set()
        most_usd_picos = watching.result()
    assert crowd.wait_until(lambda: _has(probe, 0), _SETTLED_S)
    view = probe.look("crowd")
    assert set(statuses) == {200, 402}
    assert 10**12 < most_usd_picos <= _CREDIT_USD_PICOS
    assert view is not None
    assert view.balance_usd_picos is not None
    assert 0 <= view.balance_usd_picos < _CREDIT_USD_PICOS


def _most_held(probe: LedgerProbe, is_over: threading.Event) -> int:
    most_usd_picos = 0
    while not is_over.is_set():
        view = probe.look()
        assert view is not None
        most_usd_picos = max(most_usd_picos, view.held_usd_picos)
        time.sleep(0.01)
    return most_usd_picos


def test_with_too_many_receipts_unsigned_nothing_new_is_taken_until_they_are_signed(mesh):
    _kill(mesh, "SignerActor")
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        responses = list(threads.map(_customer(mesh, "many").chat, ["hello"] * 2 * _MOST_UNSIGNED))
    assert {each.status_code for each in responses} == {200, 503}
    refused = next(each for each in responses if each.status_code == 503)
    error = refused.json()["error"]
    assert error["code"] == "service_unavailable"
    assert "receipts wait for their signatures" in error["message"]
    assert int(refused.headers["Retry-After"]) > 0
    assert mesh.wait_until(lambda: _answers(mesh), 60)


def test_an_account_that_is_spent_gets_402_before_the_engine_is_asked(mesh, probe):
    customer = _customer(mesh, "spent")
    statuses = (customer.chat("x " * 120).status_code for _ in range(100))
    paid = list(itertools.takewhile(lambda status: status == 200, statuses))
    assert 1 <= len(paid) < 100
    # The engine would refuse this one with a 400.
    refused = customer.chat("!refuse this")
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["type"]) == (402, "insufficient_balance", "insufficient_quota")
    assert "of which $0.00 is held" in error["message"]
    assert "X-Receipt-Id" not in refused.headers
    view = probe.look("spent")
    assert view is not None
    assert view.balance_usd_picos is not None
    assert view.balance_usd_picos < _CREDIT_USD_PICOS
    assert view.count == 0
