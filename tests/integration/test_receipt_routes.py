"""Reading an account's receipts from a running mesh: by pages, as CSV, in a frame, and as an export that verifies."""

import concurrent.futures
import csv
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import pytest
import requests
from running_echo import EchoMesh

from mesh.client import MeshClient
from mesh.errors import MeshError
from receipts.canonical import parse_strict
from receipts.document import Receipt, document_from
from receipts.moments import rfc3339
from receipts.verify import verify_paths

COUNT = 250
# A tag for each remainder by four; one is what a spreadsheet would take for a formula.
TAGS = (None, "team blue", 'team, "red"', "=1+1")
BLUE = COUNT // 4 + 1


@dataclass(frozen=True)
class Filled:
    """A mesh with so many receipts of one account, all signed, and its other account without any."""

    mesh: EchoMesh
    client: MeshClient
    other: MeshClient
    half_unix_ns: int

    def get(self, path: str, *, as_other: bool = False, **headers: str) -> requests.Response:
        key = self.mesh.account_keys["other"] if as_other else self.mesh.key
        return requests.get(self.mesh.url + path, headers={"Authorization": f"Bearer {key}", **headers}, timeout=30)

    def jc(self, *arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        """The command, as a user of the account runs it."""
        done = subprocess.run(
            [sys.executable, "-m", "mesh.command", *arguments],
            env={**os.environ, "JC_URL": self.mesh.url, "JC_API_KEY": self.mesh.key},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def filled(echo_mesh) -> Filled:
    mesh = replace(echo_mesh, key=echo_mesh.account_keys["filled"])
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: _ask(mesh, number), range(COUNT // 2)))
        time.sleep(0.01)
        half_unix_ns = time.time_ns()
        list(pool.map(lambda number: _ask(mesh, number), range(COUNT // 2, COUNT)))
    client = MeshClient(mesh.url, mesh.key)
    assert mesh.wait_until(lambda: all(each["verification"]["signature"] for each in client.receipts()))
    other = MeshClient(mesh.url, mesh.account_keys["other"])
    return Filled(mesh, client, other, half_unix_ns)


def _ask(mesh: EchoMesh, number: int) -> None:
    tag = TAGS[number % 4]
    headers = mesh.headers if tag is None else {**mesh.headers, "X-Customer-Tag": tag}
    body = {"model": "auto", "messages": [{"role": "user", "content": f"say {number}"}]}
    answer = requests.post(f"{mesh.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    answer.raise_for_status()


def test_every_receipt_comes_once_by_pages_of_a_hundred(filled: Filled) -> None:
    seqs, sizes, cursor = [], [], ""
    while cursor is not None:
        page = filled.get(f"/v1/receipts?limit=100{cursor and '&after=' + cursor}").json()
        seqs += [each["chain"]["seq"] for each in page["data"]]
        sizes.append(len(page["data"]))
        cursor = page["next"]
    assert seqs == list(range(1, COUNT + 1))
    assert sizes == [100, 100, 50]


def test_a_receipt_in_a_page_has_the_bytes_that_it_has_alone(filled: Filled) -> None:
    newest = filled.get("/v1/receipts?order=desc&limit=3", Accept="application/x-ndjson").content.splitlines()
    for line in newest:
        document = document_from(parse_strict(line))
        assert isinstance(document, Receipt)
        assert filled.client.receipt(document.receipt_id) == line
    assert [json.loads(line)["chain"]["seq"] for line in newest] == [COUNT, COUNT - 1, COUNT - 2]


def test_the_filters_select_and_leave_nothing_out(filled: Filled) -> None:
    everything = list(filled.client.receipts())
    half = rfc3339(filled.half_unix_ns)
    before, since = list(filled.client.receipts(until=half)), list(filled.client.receipts(since=half))
    assert (len(before), len(since)) == (COUNT // 2, COUNT - COUNT // 2)
    assert before + since == everything
    blue = list(filled.client.receipts(customer_tag="team blue"))
    assert blue == [each for each in everything if each["workload"]["customer_tag"] == "team blue"]
    assert len(blue) == BLUE
    assert list(filled.client.receipts(model="no-such-model")) == []
    assert list(filled.client.receipts(region="local", model=everything[0]["workload"]["model"])) == everything
    assert list(filled.client.receipts(until="1d")) == []


def test_another_account_sees_nothing_of_it(filled: Filled, tmp_path: Path) -> None:
    assert filled.get("/v1/receipts", as_other=True).json()["data"] == []
    assert list(filled.other.receipts(customer_tag="team blue")) == []
    assert filled.get("/v1/receipts/head", as_other=True).status_code == 404
    assert [row["kind"] for row in _rows(filled.get("/v1/ledger.csv", as_other=True).text)] == ["opening-credit"]
    cursor = filled.get("/v1/receipts?limit=1").json()["next"]
    assert filled.get(f"/v1/receipts?after={cursor}", as_other=True).json()["data"] == []
    with pytest.raises(MeshError, match="the account has no receipts yet"):
        filled.other.export(tmp_path / "nothing.tar")


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/receipts?limit=0", "limit"),
        ("/v1/receipts?since=soon", "since"),
        ("/v1/receipts?custmer_tag=x", "custmer_tag"),
        ("/v1/receipts/head?since=soon", "since"),
        ("/v1/ledger.csv?since=soon", "since"),
        ("/v1/ledger.csv?until=1d", "until"),
    ],
)
def test_a_bad_value_gets_the_envelope_that_names_it(filled: Filled, path: str, param: str) -> None:
    answer = filled.get(path)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, "bad_request")
    assert param in error["message"]
    assert len(error["request_id"]) == 32


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_the_csv_sums_up_to_the_balance(filled: Filled) -> None:
    rows = _rows(filled.get("/v1/ledger.csv").text)
    ledger = sqlite3.connect(f"file:{filled.mesh.data_dir}/ledger.sqlite3?mode=ro", uri=True)
    booked = dict(
        ledger.execute("SELECT unit, sum(amount) FROM entries WHERE book_account = 'customer:filled' GROUP BY unit")
    )
    ledger.close()
    assert len(rows) == COUNT + 1
    assert sum(Decimal(row["usd"]) for row in rows) == Decimal(booked["usd_picos"]) / 10**12
    assert sum(Decimal(row["joules"]) for row in rows) == Decimal(booked["microjoules"]) / 10**6
    balance = Decimal(0)
    for row in rows:
        balance += Decimal(row["usd"])
        assert Decimal(row["balance_usd"]) == balance
    assert rows[0]["kind"] == "opening-credit"
    by_receipt = {each["receipt_id"]: each for each in filled.client.receipts()}
    for row in rows[1:]:
        receipt = by_receipt.pop(row["receipt_id"])
        assert Decimal(row["joules"]) == Decimal(repr(receipt["energy"]["total_joules"]))
        assert -Decimal(row["usd"]) * 10**12 == receipt["price"]["usd_picos"]
        tag = receipt["workload"]["customer_tag"]
        assert row["customer_tag"] == ("'=1+1" if tag == "=1+1" else tag or "")
    assert by_receipt == {}
    then = rows[100]["time"]
    assert _rows(filled.get(f"/v1/ledger.csv?since={then}").text) == [row for row in rows if row["time"] >= then]


def test_the_frame_sums_up_to_the_receipts(filled: Filled) -> None:
    frame = filled.client.receipts_frame(since="1d")
    receipts = list(filled.client.receipts())
    assert len(frame) == COUNT
    assert int(frame["price.usd_picos"].sum()) == sum(each["price"]["usd_picos"] for each in receipts)
    assert frame["chain.seq"].tolist() == list(range(1, COUNT + 1))
    joules = frame.groupby("workload.customer_tag", dropna=False)["energy.total_joules"].sum()
    total = sum(Decimal(repr(each["energy"]["total_joules"])) for each in receipts)
    assert round(Decimal(joules.sum()), 6) == total
    assert (frame["execution.end"].diff().dt.total_seconds().abs().dropna() < 60).all()


def test_the_head_says_how_far_the_chain_reaches(filled: Filled) -> None:
    head = filled.get("/v1/receipts/head").json()
    assert (head["account"], head["first_seq"], head["last_seq"]) == ("filled", 1, COUNT)
    later = filled.get(f"/v1/receipts/head?since={rfc3339(filled.half_unix_ns)}").json()
    assert later["first_seq"] > 1
    assert filled.get("/v1/receipts/head?since=0s").status_code == 404


def _checked(filled: Filled, archive: Path, tmp_path: Path) -> list[str]:
    key = tmp_path / "signer_pubkey.hex"
    filled.jc("key", "-o", str(key))
    return filled.jc("verify", "--key", str(key), str(archive)).stdout.splitlines()


@pytest.mark.parametrize("name", ["receipts.tar", "receipts.tgz"])
def test_an_export_verifies(filled: Filled, tmp_path: Path, name: str) -> None:
    archive = tmp_path / name
    said = filled.jc("export", "--since", "30d", "-o", str(archive)).stdout
    assert f"{COUNT} receipts of filled from 1 to {COUNT} of its chain" in said
    assert said.splitlines()[-2:] == [
        "  jc key -o signer_pubkey.hex",
        f"  jc verify --key signer_pubkey.hex {archive}",
    ]
    assert _checked(filled, archive, tmp_path)[-1] == f"Verified: {COUNT} passed, 0 failed"
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "out", filter="data")
    sums = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "out", capture_output=True, check=False
    )
    assert sums.returncode == 0, sums.stdout
    refused = filled.jc("export", "-o", str(archive), code=2)
    assert "is there already" in refused.stderr
    filled.jc("export", "--force", "-o", str(archive))


def test_an_export_of_a_part_or_of_a_tag_verifies(filled: Filled, tmp_path: Path) -> None:
    later = tmp_path / "later.tar"
    filled.jc("export", "--since", rfc3339(filled.half_unix_ns), "-o", str(later))
    passed = int(_checked(filled, later, tmp_path)[-1].split()[1])
    assert COUNT - COUNT // 2 <= passed < COUNT
    blue = tmp_path / "blue.tar"
    said = filled.jc("export", "--customer-tag", "team blue", "-o", str(blue)).stdout
    assert f"{BLUE} receipts of filled with the tag 'team blue'" in said
    assert _checked(filled, blue, tmp_path)[-1] == f"Verified: {BLUE} passed, 0 failed"


def test_an_export_without_a_receipt_that_it_should_have_fails(filled: Filled, tmp_path: Path) -> None:
    archive, robbed = tmp_path / "receipts.tar", tmp_path / "robbed.tar"
    filled.client.export(archive)
    with tarfile.open(archive) as whole, tarfile.open(robbed, "w") as less:
        for member in whole:
            content = whole.extractfile(member).read()
            if member.name.startswith("receipts/"):
                content = b"".join(content.splitlines(keepends=True)[:-1])
                member.size = len(content)
            less.addfile(member, io.BytesIO(content))
    public_key = bytes.fromhex(filled.client.group_key()["public_key"])
    assert any("missing" in str(finding) for finding in verify_paths([robbed], public_key))


def test_what_a_person_sees(filled: Filled) -> None:
    table = filled.jc("receipts", "--limit", "2", "--tag", "team blue").stdout
    assert table.count("rcpt_") == 2
    assert "2 shown" in table
    lines = filled.jc("receipts", "--json", "--since", "1d").stdout.splitlines()
    assert [json.loads(line)["chain"]["seq"] for line in lines] == list(range(1, COUNT + 1))
    assert "not a time" in filled.jc("receipts", "--since", "soon", code=2).stderr


def test_an_export_that_is_ended_leaves_nothing(filled: Filled, tmp_path: Path) -> None:
    archive = tmp_path / "receipts.tar"
    process = subprocess.Popen(
        [sys.executable, "-m", "mesh.command", "export", "-o", str(archive)],
        env={**os.environ, "JC_URL": filled.mesh.url, "JC_API_KEY": filled.mesh.key},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert filled.mesh.wait_until(lambda: any(tmp_path.iterdir()) or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    # It may have been faster than the signal: then the whole file is there.
    assert [path.name for path in tmp_path.iterdir()] == (["receipts.tar"] if process.returncode == 0 else [])
