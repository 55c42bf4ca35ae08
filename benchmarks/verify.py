"""How fast an auditor's laptop verifies receipts: one core, NDJSON and the same in a compressed archive.

    .venv/bin/python -m benchmarks verify

Everything that ``jc verify`` does is in the figure: reading, strict parsing, schema, canonical form, signature,
arithmetic, chain. The signature alone is there for comparison: it is the part that no code of ours can shorten.
"""

import hashlib
import json
import tarfile
import tempfile
import time
from pathlib import Path

from nacl.signing import SigningKey

from benchmarks.machine import peak_mebibytes
from receipts.canonical import canonical_bytes
from receipts.document import with_signature
from receipts.ed25519 import key_id_of, verify_signature
from receipts.verify import verify_paths

RECEIPTS = 5_000
ROUNDS = 3
TEMPLATE = Path(__file__).parents[1] / "tests" / "unit" / "receipts" / "data" / "unsigned-receipt.json"


def write_chain(path: Path, key: SigningKey) -> None:
    """One account's first receipts, a line each."""
    document = json.loads(TEMPLATE.read_text())
    document["verification"]["key_id"] = key_id_of(bytes(key.verify_key))
    previous = None
    with path.open("wb") as file:
        for seq in range(1, RECEIPTS + 1):
            document["receipt_id"] = f"rcpt_{seq:032x}"
            document["chain"] = {"seq": seq, "prev_sha256": previous}
            signed = canonical_bytes(document)
            previous = hashlib.sha256(signed).hexdigest()
            file.write(with_signature(signed, key.sign(signed).signature) + b"\n")


def receipts_per_s(path: Path, public_key: bytes) -> float:
    """The best of some rounds: what slows a round down is the machine's other work."""
    best = 0.0
    for _ in range(ROUNDS):
        report = verify_paths([path], public_key)
        began = time.perf_counter()
        findings = list(report)
        best = max(best, RECEIPTS / (time.perf_counter() - began))
        assert not findings, findings[0]
    return best


def signatures_per_s(key: SigningKey) -> float:
    message = bytes(1700)
    signature, public_key = key.sign(message).signature, bytes(key.verify_key)
    began = time.perf_counter()
    for _ in range(RECEIPTS):
        assert verify_signature(public_key, message, signature)
    return RECEIPTS / (time.perf_counter() - began)


def main() -> None:
    key = SigningKey.generate()
    with tempfile.TemporaryDirectory() as folder:
        lines, archive = Path(folder, "receipts.ndjson"), Path(folder, "export.tar.gz")
        write_chain(lines, key)
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(lines, "receipts.ndjson")
        before = peak_mebibytes()
        print(f"{RECEIPTS} receipts of one account, {lines.stat().st_size // RECEIPTS} bytes each\n")
        print("| what | per second |\n|---|---:|")
        for name, rate in (
            ("verify NDJSON", receipts_per_s(lines, bytes(key.verify_key))),
            ("verify tar.gz", receipts_per_s(archive, bytes(key.verify_key))),
            ("Ed25519 alone", signatures_per_s(key)),
        ):
            print(f"| {name} | {rate:,.0f} |")
        print(f"\npeak memory grew by {peak_mebibytes() - before:.1f} MiB")


if __name__ == "__main__":
    main()
