"""On an auditor's laptop there is the base install and nothing else: verification must not miss it.

The packages of the extras are made unimportable in a process of its own. This shows that none of them is asked for;
that what the base install names is enough takes a fresh environment.
"""

import subprocess
import sys
from pathlib import Path

import pytest

import receipts

SUMMARY = "account acme: receipts 1 to 3; ends not checked: no account head was given\nVerified: 3 passed, 0 failed\n"
ROOT = Path(receipts.__file__).parents[1]
BLOCKED = (
    "ray",
    "vllm",
    "torch",
    "alembic",
    "sqlalchemy",
    "fastapi",
    "starlette",
    "openai",
    "pandas",
    "numpy",
    "transformers",
    "pynvml",
    "prometheus_client",
    "cryptography",
)
PREAMBLE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"{{name}} is not in the base install", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # -I: neither the current folder nor the user's own packages nor PYTHONPATH help.
    return subprocess.run(
        [sys.executable, "-I", "-c", PREAMBLE + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def evidence(group, tmp_path: Path) -> tuple[Path, Path]:
    key, chain = tmp_path / "signer_pubkey.hex", tmp_path / "receipts.ndjson"
    key.write_text(group.public_key.hex() + "\n")
    chain.write_bytes(b"".join(each + b"\n" for each in group.chain(3)))
    return key, chain


@pytest.mark.parametrize("name", BLOCKED)
def test_the_blocker_blocks(name: str) -> None:
    assert f"{name} is not in the base install" in run(f"import {name}").stderr


def test_receipts_verify_on_the_base_install(evidence: tuple[Path, Path]) -> None:
    script = """
from pathlib import Path
from receipts.verify import public_key_from_hex, verify_paths
report = verify_paths([Path(sys.argv[2])], public_key_from_hex(Path(sys.argv[1]).read_text()))
for finding in report:
    print(finding)
print(*report.notes, report.summary, sep="\\n")
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("metering", "serve", "placement", "asyncio")))
"""
    done = run(script, *evidence)
    assert (done.stdout, done.stderr) == (f"{SUMMARY}['placement', 'placement.pins']\n", "")


def test_a_meters_statements_are_checked_on_the_base_install() -> None:
    done = run("from receipts.meter_audit import check_statements; print(check_statements([], bytes(32)))")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_jc_command_verifies_on_the_base_install(evidence: tuple[Path, Path]) -> None:
    script = "from mesh.command import main; main()"
    done = run(script, "verify", "--key", *evidence)
    assert (done.stdout, done.stderr, done.returncode) == (SUMMARY, "", 0)
    key, chain = evidence
    chain.write_bytes(chain.read_bytes().replace(b'"region":"local"', b'"region":"lokal"', 1))
    done = run(script, "verify", "--key", key, chain)
    assert done.returncode == 1
    assert done.stdout.endswith("\nVerified: 2 passed, 1 failed\n")
    assert done.stdout.startswith(f"{chain}:1: rcpt_")
    assert run(script, "verify", "--key", key, chain.with_name("none.json")).returncode == 2
