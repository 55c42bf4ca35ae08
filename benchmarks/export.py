"""How long a large account's export takes, and its verification: a hundred thousand receipts.

    .venv/bin/python -m benchmarks export

The receipts are settled by `Ledger.settle` with true statements, and signed by one known Ed25519 key that stands for
the signer group: FROST signatures verify alike, but a hundred thousand would take some minutes to make. They are
served by the mesh's own routes from SQLite. `jc export` and `jc verify` run as an auditor runs them, each a process of
its own, whose memory at its highest is in the table.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import requests

from benchmarks.machine import mebibytes
from benchmarks.receipt_server import KEY, PUBLIC_KEY, open_ledger
from benchmarks.settlements import settlements
from receipts.ledger import Ledger

RECEIPTS = 100_000
ACCOUNT = "acme"
_BATCH = 1000
_PORT = 18_491
_START_DEADLINE_S = 60
_JC = [sys.executable, "-m", "mesh.command"]


def fill(ledger: Ledger, count: int) -> None:
    """Settle and sign so many receipts of one account."""
    source = settlements([ACCOUNT])
    while batch := list(islice(source, min(count, _BATCH))):
        count -= len(batch)
        stored = [each for each in ledger.settle(batch) if each is not None]
        ledger.attach_signatures({each.receipt_id: KEY.sign(each.signed_bytes).signature for each in stored})


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float, str]:
    """Seconds, peak memory in MiB and output of a process that ends well."""
    began = time.perf_counter()
    watched = [sys.executable, "-m", "benchmarks.peak", *command]
    ended = subprocess.run(watched, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    took_s = time.perf_counter() - began
    if ended.returncode:
        sys.exit(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    return took_s, mebibytes(int(ended.stderr.splitlines()[-1])), ended.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url, key_file = f"sqlite:///{folder / 'ledger.sqlite3'}", folder / "signer_pubkey.hex"
        key_file.write_text(PUBLIC_KEY.hex() + "\n")
        ledger = open_ledger(url)
        api_key = ledger.create_key(ACCOUNT, "benchmark").secret
        began = time.perf_counter()
        fill(ledger, RECEIPTS)
        ledger.close()
        print(f"{RECEIPTS:,} receipts, made in {time.perf_counter() - began:.0f} s (settled, stored, signed)\n")
        server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.receipt_server", url, str(_PORT)], stdout=subprocess.PIPE, text=True
        )
        rows = []
        try:
            wait_for(f"http://127.0.0.1:{_PORT}/healthz")
            for archive in (folder / "export.tar", folder / "export.tar.gz"):
                where = {"JC_URL": f"http://127.0.0.1:{_PORT}", "JC_API_KEY": api_key}
                took_s, peak, _ = timed([*_JC, "export", "-o", str(archive)], where)
                rows.append((f"jc export, {archive.name}, {archive.stat().st_size / 2**20:.0f} MiB", took_s, peak))
                took_s, peak, output = timed([*_JC, "verify", "--key", str(key_file), str(archive)], {})
                assert f"Verified: {RECEIPTS} passed, 0 failed" in output, output
                rows.append((f"jc verify, {archive.name}", took_s, peak))
        finally:
            server.send_signal(signal.SIGTERM)
            served = server.communicate(timeout=_START_DEADLINE_S)[0]
        print("| what | s | receipts/s | peak memory, MiB |\n|---|---:|---:|---:|")
        for what, took_s, peak in rows:
            print(f"| {what} | {took_s:.1f} | {RECEIPTS / took_s:,.0f} | {peak:.0f} |")
        print(f"| the server, both exports | | | {float(served.splitlines()[-1]):.0f} |")


def wait_for(url: str) -> None:
    give_up = time.monotonic() + _START_DEADLINE_S
    while True:
        try:
            requests.get(url, timeout=1).raise_for_status()
        except requests.RequestException:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    main()
