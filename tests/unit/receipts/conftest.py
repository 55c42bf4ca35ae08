"""Settlements, contexts and signed chains, made with a plain Ed25519 key in the group's place."""

import dataclasses
import hashlib
import io
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import postgres
import pytest
from kept_ledger import KeptLedger
from nacl.signing import SigningKey

from metering.settlement import EnergyErrors, EnergyFigures, MeteredSilicon, Settlement, TokenCounts, no_figures
from metering.statements import ChainHead, MeterKey, SignedStatement, StatementChain
from receipts.canonical import canonical_bytes
from receipts.document import signed_bytes, with_signature
from receipts.draft import RequestContext, draft_receipt
from receipts.ed25519 import key_id_of
from receipts.export_manifest import ExportManifest, ExportSelection
from receipts.placement_section import CandidatePool, Pins, PlacementContext, Rates, RejectedPool

ERRORS = EnergyErrors(
    conservation_percent=0.0, counter_percent=30.0, allocation_percent=None, allocation_reason="not calibrated"
)
ENERGY = EnergyFigures(
    total_microjoules=310_000,
    active_microjoules=295_001,
    floor_microjoules=14_999,
    estimated_microjoules=0,
    unavailable_reason=None,
    method="util-tdp",
    method_confidence="derived",
    scope=("cpu",),
    counter_period_ns=10_000_000,
    mean_batch_thousandths=1500,
    peak_power_milliwatts=5470,
    errors=ERRORS,
)
METER = MeterKey(bytes(range(32)))


def settlement(number: int, account: str = "acme", **changes: Any) -> Settlement:
    """Request ``number``'s settlement; a change may be to the settlement or to its context."""
    request_id = f"{number:032x}"
    of_settlement = {name: changes.pop(name) for name in list(changes) if name in Settlement.__dataclass_fields__}
    whole = Settlement(
        request_id=request_id,
        replica="replica-1",
        outcome="finished",
        start_unix_ns=1_782_219_834_000_123_456 + number % 1000,
        duration_ns=312_400_000,
        energy=ENERGY,
        tokens=TokenCounts(input=34, cached=16, output=128),
        silicon=MeteredSilicon(vendor="amd", model="AMD EPYC", device_ids=("cpu-package-0",), node="host-1"),
        context=context(number, account, **changes).to_json(),
        statement=statement(number),
    )
    return dataclasses.replace(whole, **of_settlement)


def statement(number: int) -> SignedStatement:
    """What the meter states of request ``number``, as its statement of that number."""
    head = ChainHead(sequence=number - 1, sha256="ab" * 32, charged_microjoules=0) if number > 1 else None
    return StatementChain(METER, head).state(
        request_id=f"{number:032x}", outcome="finished", microjoules=310_000, counted_microjoules=10**9, open_ns=0
    )


def context(number: int, account: str = "acme", **changes: Any) -> RequestContext:
    known: dict[str, Any] = {
        "receipt_id": f"rcpt_{number:032x}",
        "workload_id": f"chatcmpl-{number:032x}",
        "kind": "ml-inference",
        "model": "SmolLM2-135M-Instruct",
        "model_revision": None,
        "customer_tag": None,
        "account": account,
        "tier": "L0",
        "operator_name": "this-machine",
        "region": "local",
        "simulated": False,
        "legal_entity": None,
        "country": "DE",
        "dc_pue": 1.15,
        "dc_ref_renewable_share": None,
        "grid_zone": "DE",
        "grid_intensity_gco2_per_kwh": 313.4,
        "grid_source": "Wiesner et al., Middleware 2021",
        "grid_as_of": "2020",
        "grid_is_estimated": True,
        "usd_per_kwh": 0.5,
        "price_version": "2026-01",
        "attempts": (),
    }
    known |= changes
    site = f"{known['operator_name']}/{known['region']}"
    known.setdefault("placement", placement(f"{known['model']}@{site}"))
    if known["placement"] is None:
        del known["placement"]
    return RequestContext(**known)


def placement(pool: str, **changes: Any) -> PlacementContext:
    """Half a second before `settlement` began, on the first of three candidates."""
    known: dict[str, Any] = {
        "pool": pool,
        "accepted_unix_ns": 1_782_219_833_500_000_000,
        "resumed_after_tokens": 0,
        "pins": Pins(model=None, region=None, residency=(), operators=None),
        "rates": Rates(usd_per_kgco2=0.2, usd_per_hour_waited=0.01),
        "candidates": tuple(map(candidate, (pool, "larger@this-machine/local", "larger@elsewhere/eu-fi"))),
        "rejected": (RejectedPool(pool="tiny@elsewhere/eu-fi", reason="can answer up to L0"),),
        "rejected_total": 1,
    }
    return PlacementContext(**{**known, **changes})


def candidate(pool: str) -> CandidatePool:
    return CandidatePool.expecting(
        pool=pool,
        expected_microjoules=300_000.4,
        energy_usd=4.2e-8,
        facility_usd=6.3e-9,
        carbon_usd=6e-9,
        wait_usd=1e-6,
        network_usd=0,
    )


def unavailable(number: int, account: str = "acme") -> Settlement:
    """A settlement whose energy is not known."""
    return settlement(number, account, energy=no_figures("the meter was restarted", ERRORS))


@dataclass
class Group:
    """A signer group of one."""

    key: SigningKey = field(default_factory=lambda: SigningKey(bytes(range(32))))

    @property
    def public_key(self) -> bytes:
        return bytes(self.key.verify_key)

    @property
    def key_id(self) -> str:
        return key_id_of(self.public_key)

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message).signature

    def receipt(self, number: int, seq: int, prev_sha256: str | None, account: str = "acme", **changes: Any) -> bytes:
        """The canonical bytes of one signed receipt."""
        settled = settlement(number, account, **changes)
        drafted = draft_receipt(
            RequestContext.from_json(settled.context),
            settled,
            key_id=self.key_id,
            seq=seq,
            prev_sha256=prev_sha256,
        )
        signed = signed_bytes(drafted)
        return with_signature(signed, self.sign(signed))

    def chain(
        self, length: int, account: str = "acme", changes: Callable[[int], dict[str, Any]] = lambda _seq: {}
    ) -> list[bytes]:
        """An account's first receipts, signed; ``changes`` by their ``seq``, as `settlement` takes them."""
        documents: list[bytes] = []
        previous: str | None = None
        for seq in range(1, length + 1):
            number = int.from_bytes(hashlib.sha256(f"{account} {seq}".encode()).digest()[:16])
            documents.append(self.receipt(number, seq, previous, account, **changes(seq)))
            previous = signed_hash(documents[-1])
        return documents

    def head(self, chain: list[bytes], account: str = "acme", first_seq: int = 1, **changes: Any) -> bytes:
        """The account head that covers these receipts, signed."""
        head = {
            "typ": "joule-mesh.account-head/v1",
            "account": account,
            "as_of_unix_ns": 1_782_219_900_000_000_000,
            "first_seq": first_seq,
            "last_seq": first_seq + len(chain) - 1,
            "first_sha256": signed_hash(chain[0]),
            "last_sha256": signed_hash(chain[-1]),
            "key_id": self.key_id,
            **changes,
        }
        return canonical_bytes({**head, "signature": self.sign(canonical_bytes(head)).hex()})


@dataclass(frozen=True, slots=True)
class Export:
    """An export archive's members in order; its ``SHA256SUMS`` is made when the archive is."""

    members: tuple[tuple[str, bytes], ...]

    def with_member(self, name: str, data: bytes | None) -> "Export":
        """The same with this member's content, or without it."""
        if data is None:
            return Export(tuple(each for each in self.members if each[0] != name))
        return Export(tuple((each, data if each == name else old) for each, old in self.members))

    def member(self, name: str) -> bytes:
        return dict(self.members)[name]

    def checksums(self) -> bytes:
        lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in self.members]
        return "".join(lines).encode()

    def to_tar(self, checksums: bytes | None = None) -> bytes:
        return tar_of(*self.members, ("SHA256SUMS", checksums or self.checksums()))


def tar_of(*members: tuple[str, bytes]) -> bytes:
    """A tar archive of these files."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return target.getvalue()


def export(
    group: Group,
    lines: list[bytes],
    head: bytes,
    account: str = "acme",
    *,
    per_member: int = 10_000,
    **selection: Any,
) -> Export:
    """An export of signed receipts, as the mesh writes it."""
    manifest = ExportManifest(
        typ="joule-mesh.export/v1",
        account=account,
        created_unix_ns=1_782_219_901_000_000_000,
        key_id=group.key_id,
        selection=ExportSelection(**{"customer_tag": None, "since_unix_ns": None, **selection}),
    )
    parts = [lines[start : start + per_member] for start in range(0, len(lines), per_member)]
    return Export(
        (
            ("manifest.json", manifest.to_json()),
            ("README.txt", b"for the auditor\n"),
            ("signer_pubkey.hex", group.public_key.hex().encode() + b"\n"),
            (f"heads/{account}.json", head),
            *(
                (f"receipts/{number:06}.ndjson", b"".join(line + b"\n" for line in part))
                for number, part in enumerate(parts, start=1)
            ),
        )
    )


def signed_hash(document: bytes) -> str:
    """SHA-256 of a receipt's signed bytes, found the slow way."""
    import json

    value = json.loads(document)
    del value["verification"]["signature"]
    return hashlib.sha256(canonical_bytes(value)).hexdigest()


@pytest.fixture(scope="session")
def group() -> Group:
    return Group()


@pytest.fixture(scope="session")
def stranger() -> Group:
    """Another group, whose key is not the one that is verified with."""
    return Group(SigningKey(bytes(32)))


@pytest.fixture(scope="session")
def make_settlement() -> Callable[..., Settlement]:
    return settlement


@pytest.fixture(scope="session")
def make_unavailable() -> Callable[..., Settlement]:
    return unavailable


@pytest.fixture(scope="session")
def make_context() -> Callable[..., RequestContext]:
    return context


@pytest.fixture(scope="session")
def make_placement() -> Callable[..., PlacementContext]:
    return placement


@pytest.fixture(scope="session")
def make_candidate() -> Callable[[str], CandidatePool]:
    return candidate


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.PostgresServer]:
    """One server for all tests, which may crash it, as long as it runs again afterwards."""
    if sys.platform != "linux":
        pytest.skip(postgres.WHY_NOT)
    with postgres.running_postgres(fsync=True) as server:
        yield server


@pytest.fixture(scope="session")
def shared_database(postgres_server: postgres.PostgresServer) -> str:
    return postgres_server.new_database()


@pytest.fixture
def postgres_database(postgres_server: postgres.PostgresServer, shared_database: str) -> str:
    """The name of a database that is empty; emptied before each test, which takes a fifth of making one."""
    postgres_server.empty_database(shared_database)
    return shared_database


@pytest.fixture(scope="session")
def kept_ledger(postgres_server: postgres.PostgresServer) -> KeptLedger:
    return KeptLedger(postgres_server)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path) -> str:
    """Where a ledger without a row is or can be made, on either database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.sqlite3"
    kept: KeptLedger = request.getfixturevalue("kept_ledger")
    return kept.emptied()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path) -> str:
    """Where nothing is, on either database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.sqlite3"
    server = request.getfixturevalue("postgres_server")
    return server.url(request.getfixturevalue("postgres_database"))


@pytest.fixture(scope="session")
def make_export() -> Callable[..., Export]:
    return export


@pytest.fixture(scope="session")
def make_tar() -> Callable[..., bytes]:
    return tar_of
