"""Requests that draw a thousand times what was held for them: their holds grow with them, and end with them."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import signal
from collections.abc import Iterator

import pytest
import requests
from ledger_probe import LedgerProbe, ledger_probe
from running_echo import EchoMesh, built_in_settings, running_echo_mesh
from victims import Victims

from receipts.arithmetic import price_usd_picos
from serve.running_charge import LOOK_EVERY_S

_CREDIT_USD_PICOS = 5 * 10**12
_LEASE_S = 12
_SETTLED_S = 15
_LAPSED_S = _LEASE_S + _SETTLED_S
_AT_ONCE_S = 6
"""Before the lease, renewed as long as its request is under way, can have run out."""

_BETWEEN_TOKENS_S = 4
# A word keeps one thread busy for at least 4 ms, which at 100 W is 0.4 J. A new account's credit is worth 1,500 words.
_WATTS = 100.0
_CREDIT_JOULES = 600
_USD_PER_KWH = 5 / _CREDIT_JOULES * 3.6e6
_PRIOR_JOULES_PER_TOKEN = 1e-9
"""What is learned stays within ten thousand times of it, so a hold is never worth more than a few words."""

_CROWD = 200
_WORDS = 150
"""Of each answer of the crowd: a tenth of the credit."""

_MOST_PER_LOOK_USD_PICOS = price_usd_picos(round(_WATTS * (os.cpu_count() or 1) * 2 * LOOK_EVERY_S * 1e6), _USD_PER_KWH)
"""What all requests together can draw from one look to the next, on every thread of this machine, with as long again
for the way of the look itself while two hundred clients keep the machine busy."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory) -> Iterator[EchoMesh]:
    settings = built_in_settings()
    settings["deadlines"]["between_tokens_s"] = _BETWEEN_TOKENS_S
    settings["placement"]["attempts"] = 1
    settings["ledger"]["hold_lease_s"] = _LEASE_S
    settings["price"]["usd_per_kwh"] = _USD_PER_KWH
    settings["meter"]["watts_per_thread"] = _WATTS
    settings["models"][0]["prior_joules_per_token"] = _PRIOR_JOULES_PER_TOKEN
    settings["pools"][0]["max_ongoing_requests"] = _CROWD
    with running_echo_mesh(
        tmp_path_factory.mktemp("charges"), accounts=("crowd", "left", "killed"), settings=settings
    ) as running:
        yield running


@pytest.fixture(scope="module")
def probe(mesh) -> Iterator[LedgerProbe]:
    with ledger_probe(mesh.data_dir) as looking:
        yield looking


@pytest.fixture
def victims(mesh) -> Victims:
    return Victims(mesh.process.pid)


@pytest.fixture(autouse=True)
def whole(mesh, probe) -> None:
    """Every test finds a mesh that answers and holds nothing."""
    assert mesh.wait_until(lambda: _answers(mesh), 60)
    assert mesh.wait_until(lambda: _held(probe) == (0, 0), _LAPSED_S)


def _customer(mesh: EchoMesh, account: str) -> EchoMesh:
    return dataclasses.replace(mesh, key=mesh.account_keys[account])


def _answers(mesh: EchoMesh) -> bool:
    try:
        return mesh.chat("are you there").ok
    except requests.RequestException:
        return False


def _held(probe: LedgerProbe) -> tuple[int, int] | None:
    """How many holds there are, and of how much together; None while the ledger is away."""
    view = probe.look()
    return None if view is None else (view.count, view.held_usd_picos)


def _is_held(probe: LedgerProbe, usd_picos: int) -> bool:
    held = _held(probe)
    return held is not None and held[0] == 1 and held[1] >= usd_picos


def _extended(
    mesh: EchoMesh, probe: LedgerProbe, *, pace: float = 0.05, to_usd_picos: int = _CREDIT_USD_PICOS // 40
) -> tuple[requests.Response, Iterator[str], int]:
    """A stream whose hold has just been extended so far, and what is held for it now."""
    response = mesh.chat(f"!pace {pace} " + "word " * 1000, stream=True)
    assert response.ok, response.text
    lines = response.iter_lines(decode_unicode=True)
    next(lines)
    held = _held(probe)
    assert held is not None
    assert held[0] == 1
    assert held[1] < to_usd_picos
    assert mesh.wait_until(lambda: _is_held(probe, to_usd_picos), 30)
    now = _held(probe)
    assert now is not None
    return response, lines, now[1]


def test_two_hundred_at_once_on_a_balance_for_ten_overshoot_by_no_more_than_a_look(mesh, probe):
    """Their holds are next to nothing, so all are let in; each could draw a tenth of the balance."""
    crowd = _customer(mesh, "crowd")
    with concurrent.futures.ThreadPoolExecutor(_CROWD) as threads:
        answers = list(threads.map(lambda number: _finish(crowd, is_stream=number % 2 == 0), range(_CROWD)))
    ends = [end for end, _ in answers]
    assert crowd.wait_until(lambda: _held(probe) == (0, 0), _SETTLED_S)
    view = probe.look("crowd")
    assert view is not None
    assert view.balance_usd_picos is not None
    assert set(ends) <= {"length", "402"}
    assert ends.count("length") > _CROWD // 2
    assert view.balance_usd_picos >= -_MOST_PER_LOOK_USD_PICOS
    assert view.balance_usd_picos <= _CREDIT_USD_PICOS // 5, "they ended when there was nothing left, and not before"
    spent = 1 - view.balance_usd_picos / _CREDIT_USD_PICOS
    assert sum(joules for _, joules in answers) == pytest.approx(spent * _CREDIT_JOULES)


def _finish(mesh: EchoMesh, *, is_stream: bool) -> tuple[str, float]:
    """How the answer ends, of which everything is as with any other, or the status that refuses it; and its joules."""
    response = requests.post(
        f"{mesh.url}/v1/chat/completions",
        json={
            "model": "auto",
            "messages": [{"role": "user", "content": "!pace 2 " + "word " * (_WORDS - 2)}],
            "stream": is_stream,
            "stream_options": {"include_usage": True} if is_stream else None,
        },
        headers=mesh.headers,
        timeout=120,
    )
    if not response.ok:
        return str(response.status_code), 0
    if not is_stream:
        answer = response.json()
        (choice,) = answer["choices"]
        text, finish, last = choice["message"]["content"], choice["finish_reason"], answer
    else:
        *events, done = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
        assert done == "[DONE]"
        chunks = [json.loads(event) for event in events]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        (finish,) = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
        last = chunks[-1]
    tokens = last["usage"]["completion_tokens"]
    assert 0 < tokens == len(text.split()) < _WORDS
    assert last["energy"]["receipt_id"] == response.headers["X-Receipt-Id"]
    return finish, last["energy"]["joules"]


def test_a_client_that_leaves_leaves_nothing_of_an_extended_hold(mesh, probe):
    left = _customer(mesh, "left")
    response, _, _ = _extended(left, probe)
    response.close()
    assert mesh.wait_until(lambda: _held(probe) == (0, 0), _SETTLED_S)
    view = probe.look("left")
    assert view is not None
    assert view.balance_usd_picos is not None
    assert 0 < view.balance_usd_picos < _CREDIT_USD_PICOS


def test_a_replica_that_is_killed_leaves_nothing_of_an_extended_hold(mesh, probe, victims):
    _, lines, _ = _extended(_customer(mesh, "killed"), probe)
    for victim in victims.living("replica"):
        victim.kill()
    assert any("the answer broke off" in line for line in lines)
    assert mesh.wait_until(lambda: _held(probe) == (0, 0), _AT_ONCE_S), "the door knows that it costs nothing"
    view = probe.look("killed")
    assert view is not None
    assert view.balance_usd_picos == _CREDIT_USD_PICOS


def test_a_replica_that_stands_still_does_not_bring_its_hold_back_when_it_goes_on(mesh, probe, victims):
    _, lines, _ = _extended(_customer(mesh, "killed"), probe)
    (replica,) = victims.living("replica")
    os.kill(replica.pid, signal.SIGSTOP)
    try:
        assert any("the answer broke off: timeout" in line for line in lines)
        assert mesh.wait_until(lambda: _held(probe) == (0, 0), _AT_ONCE_S)
    finally:
        os.kill(replica.pid, signal.SIGCONT)
    assert mesh.wait_until(lambda: _answers(mesh), 30)
    assert not mesh.wait_until(lambda: _held(probe) != (0, 0), 2)


def test_a_restarted_ledger_gets_the_extension_back_and_ends_it(mesh, probe, victims):
    # Just doubled, it is enough for three times as long again, in which the ledger is back.
    response, _, held = _extended(_customer(mesh, "killed"), probe, pace=0.2, to_usd_picos=_CREDIT_USD_PICOS // 10)
    (ledger,) = victims.living("ledger")
    ledger.kill()
    ledger.wait(10)
    assert mesh.wait_until(lambda: _is_held(probe, held), _LEASE_S + 10)
    response.close()
    assert mesh.wait_until(lambda: _held(probe) == (0, 0), _SETTLED_S)


def test_an_ingress_that_is_killed_leaves_nothing_of_an_extended_hold(mesh, probe, victims):
    _, lines, _ = _extended(_customer(mesh, "left"), probe)
    for victim in victims.living("ingress"):
        victim.kill()
    with contextlib.suppress(requests.RequestException):
        assert "data: [DONE]" not in list(lines)
    assert mesh.wait_until(lambda: _held(probe) == (0, 0), _LAPSED_S)
