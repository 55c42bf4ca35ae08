"""The whole mesh with its ledger on a PostgreSQL server, which is restarted and crashed under it.

It runs beside everybody's mesh, which has nothing to do with it.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import postgres
import pytest
import requests
import yaml
from running_echo import EchoMesh, running_echo_mesh

import clusters
from receipts.ledger_check import LedgerReport, check_ledger
from receipts.ledger_database import ReadingDatabase
from receipts.verify import verify_paths

WITHIN_S = 60

pytestmark = pytest.mark.usefixtures("echo_mesh")


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.PostgresServer]:
    """With its disk synced: it is crashed here."""
    if sys.platform != "linux":
        pytest.skip(postgres.WHY_NOT)
    with postgres.running_postgres(fsync=True) as server:
        yield server


@pytest.fixture(scope="module")
def url(server: postgres.PostgresServer) -> str:
    return server.url(server.new_database(), user=postgres.GUARDED)


@pytest.fixture(scope="module")
def config(url: str, tmp_path_factory) -> Path:
    settings = yaml.safe_load(Path(clusters.__file__).with_name("local.yaml").read_text())
    settings["ledger"]["url"] = url
    path = tmp_path_factory.mktemp("config") / "mesh.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def mesh(config: Path, tmp_path_factory) -> Iterator[EchoMesh]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JC_CONFIG", str(config))
        environment.setenv("PGPASSWORD", postgres.PASSWORD)
        with running_echo_mesh(tmp_path_factory.mktemp("mesh")) as mesh:
            yield mesh


def chat_until_it_answers(mesh: EchoMesh, text: str) -> str:
    """The receipt's id of the first answer."""
    ids: list[str] = []

    def answers() -> bool:
        try:
            response = mesh.chat(text)
        except requests.RequestException:
            return False
        ids.extend([response.headers["X-Receipt-Id"]] if response.ok else [])
        return response.ok

    assert mesh.wait_until(answers, WITHIN_S)
    return ids[0]


def is_signed(mesh: EchoMesh, receipt_id: str) -> bool:
    try:
        return mesh.receipt(receipt_id)["verification"]["signature"] is not None
    except requests.RequestException:
        return False


def group_key(mesh: EchoMesh) -> bytes:
    return bytes.fromhex(requests.get(f"{mesh.url}/v1/keys/group", timeout=60).json()["public_key"])


def report(server: postgres.PostgresServer, mesh: EchoMesh, url: str) -> LedgerReport:
    with closing(ReadingDatabase.open(url.replace(postgres.GUARDED, postgres.OWNER))) as database:
        return check_ledger(database, group_key(mesh))


def jc(mesh: EchoMesh, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mesh.command", *arguments, "--data-dir", str(mesh.data_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_server_that_is_restarted_and_crashed_loses_nothing(
    server: postgres.PostgresServer, mesh: EchoMesh, url: str
) -> None:
    ids = [chat_until_it_answers(mesh, "one"), chat_until_it_answers(mesh, "two")]
    server.stop()
    server.start()
    ids.append(chat_until_it_answers(mesh, "three"))
    server.kill_backend(writers_backend(server))
    ids.append(chat_until_it_answers(mesh, "four"))
    server.stop(crash=True)
    server.start()
    ids.append(chat_until_it_answers(mesh, "five"))
    assert all(mesh.wait_until(lambda each=each: is_signed(mesh, each), WITHIN_S) for each in ids)
    places = [mesh.receipt(each)["chain"]["seq"] for each in ids]
    assert places == sorted(set(places)), "each once, in the order in which they were answered"
    found = report(server, mesh, url)
    assert found.findings == ()
    assert found.receipts >= len(ids)
    assert (found.meters, found.unstated) == (1, 0)


def writers_backend(server: postgres.PostgresServer) -> int:
    with server.connect() as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'joule-mesh ledger, process %'"
        ((pid,),) = connection.execute(query).fetchall()
    return pid


def test_an_operator_checks_it_and_corrects_it(
    server: postgres.PostgresServer, mesh: EchoMesh, url: str, config: Path
) -> None:
    receipt_id = chat_until_it_answers(mesh, "charged by mistake")
    checked = jc(mesh, "ledger", "check")
    assert checked.stdout.splitlines()[-1].startswith("Ledger sound: "), checked
    assert checked.returncode == 0
    done = jc(mesh, "ledger", "reverse", receipt_id, "--why", "charged by mistake")
    assert done.stdout.startswith("reversed by reversal:"), done
    again = jc(mesh, "ledger", "reverse", receipt_id, "--why", "charged by mistake")
    assert (again.returncode, again.stdout) == (2, "")
    assert f"{receipt_id} is reversed already, by {done.stdout.split()[-1]}" in again.stderr
    found = report(server, mesh, url)
    assert (found.findings, found.reversals) == ((), 1)


def test_the_password_is_nowhere_to_be_read(mesh: EchoMesh) -> None:
    for path in mesh.data_dir.rglob("*"):
        if path.is_file():
            assert postgres.PASSWORD.encode() not in path.read_bytes(), path


def test_two_meshes_run_side_by_side_and_their_receipts_do_not_mix(
    echo_mesh: EchoMesh, mesh: EchoMesh, tmp_path: Path
) -> None:
    mine, theirs = echo_mesh.chat("mine"), mesh.chat("theirs")
    assert mine.ok
    assert theirs.ok
    for one, answer in ((mesh, mine), (echo_mesh, theirs)):
        path = f"/v1/receipts/{answer.headers['X-Receipt-Id']}"
        assert requests.get(one.url + path, headers=one.headers, timeout=60).status_code == 404
    receipt = tmp_path / "theirs.json"
    receipt.write_text(json.dumps(mesh.receipt(theirs.headers["X-Receipt-Id"])))
    assert len(list(verify_paths([receipt], group_key(mesh)))) == 0
    assert len(list(verify_paths([receipt], group_key(echo_mesh)))) == 1
