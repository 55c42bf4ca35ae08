"""The ledger as a Ray actor: the one writer of the mesh, and the place from which receipts go to be signed."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from metering.settlement import Settlement
from receipts.errors import LedgerInUse
from receipts.group_record import GroupRecord
from receipts.ledger import Ledger
from receipts.ledger_writer import LedgerWriter
from receipts.signer_actors import signers_of
from receipts.signer_group import HeadSource, SignerGroup
from receipts.signer_messages import SignedMessage
from receipts.signing_loop import LedgerHeads, SigningLoop
from receipts.stored_receipt import StoredReceipt

ACTOR_NAME = "ledger"
# Ray's CPUs are a count that it subtracts from: the mesh's own actors must fit beside an engine on two cores.
_ACTOR_CPUS = 0.05
_MAX_CONCURRENT_CALLS = 1000
_TAKE_OVER_RETRY_S = 0.2

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")

ConnectSigners = Callable[[HeadSource], Awaitable[SignerGroup]]
"""Makes the coordinator of the signer group, given where it finds receipts that are signed already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSettings:
    """What the ledger actor is started with. ``url`` is SQLAlchemy's, of a database on the actor's node.

    ``take_over_s``: so long the process before a restart may take to die and let go of the database.
    """

    url: str
    connect_signers: ConnectSigners
    take_over_s: float = 10.0


def signer_group(identifiers: Sequence[int], namespace: str, record_path: Path) -> ConnectSigners:
    """Connect to the running signer actors; the group's public record is kept at ``record_path``, made with the key
    if there is none yet.

    By name: an actor whose constructor was given handles may find them gone when Ray restarts it.
    """
    return partial(_start_group, identifiers, namespace, record_path)


async def _start_group(identifiers: Sequence[int], namespace: str, record_path: Path, heads: HeadSource) -> SignerGroup:
    signers = signers_of(identifiers, namespace=namespace)
    return await SignerGroup.start(signers, record_path=record_path, heads=heads, random_bytes=secrets.token_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    writer: LedgerWriter
    group: SignerGroup
    signing: "asyncio.Task[None]"


class LedgerActor:
    """A `LedgerWriter` and a `SigningLoop` in an actor's process.

    Both open when the actor starts. When that fails every call tries once more and raises the reason, which Ray
    would bury in a dead actor's traceback had the constructor raised it.
    """

    async def __init__(self, settings: LedgerSettings) -> None:  # type: ignore[misc]
        self._settings = settings
        # Not waited for: unsigned receipts of an earlier life get signed even if nobody calls.
        self._opening = asyncio.create_task(self._open())

    async def settle(self, settlement: Settlement) -> StoredReceipt | None:
        """As `LedgerWriter.settle`: durable when it returns; None for an attempt that failed."""
        return await (await self._ready()).writer.settle(settlement)

    async def receipt(self, receipt_id: str, account: str, wait_for_signature_s: float = 0.0) -> StoredReceipt | None:
        """As `LedgerWriter.receipt`."""
        writer = (await self._ready()).writer
        return await writer.receipt(receipt_id, account, wait_for_signature_s=wait_for_signature_s)

    async def create_key(self, account: str, name: str) -> str:
        """As `Ledger.create_key`."""
        return await self._call(lambda ledger: ledger.create_key(account, name))

    async def account_of(self, api_key: str) -> str | None:
        """As `Ledger.account_of`."""
        return await self._call(lambda ledger: ledger.account_of(api_key))

    async def has_keys(self) -> bool:
        """As `Ledger.has_keys`."""
        return await self._call(Ledger.has_keys)

    async def balance_usd_picos(self, account: str) -> int:
        """As `Ledger.balance_usd_picos`."""
        return await self._call(lambda ledger: ledger.balance_usd_picos(account))

    async def unsigned_count(self) -> int:
        """How many receipts wait for their signature."""
        return await self._call(Ledger.unsigned_count)

    async def group_record(self) -> GroupRecord:
        """The signer group's public record: its key, its members, its threshold."""
        return (await self._ready()).group.record

    async def excluded_signers(self) -> Mapping[int, str]:
        """As `SignerGroup.excluded`."""
        return dict((await self._ready()).group.excluded)

    async def close(self) -> None:
        """Commit what is queued and close the database; the actor is of no use afterwards."""
        opened = await self._ready()
        opened.signing.cancel()
        await opened.writer.close()

    async def _call(self, work: Callable[[Ledger], _Result]) -> _Result:
        return await (await self._ready()).writer.call(work)

    async def _ready(self) -> _Opened:
        if self._opening.done() and self._opening.exception() is not None:
            self._opening = asyncio.create_task(self._open())
        # Shielded: a caller that gives up must not end what the others wait for.
        return await asyncio.shield(self._opening)

    async def _open(self) -> _Opened:
        """The group first: each receipt names the key that it will be signed with."""
        heads = _LaterHeads()
        try:
            group = await self._settings.connect_signers(heads)
            writer = await self._take_over(group.key_id)
        except Exception:
            _LOG.exception("the ledger did not open; the next call tries again")
            raise
        heads.source = LedgerHeads(writer)
        loop = SigningLoop(writer, sign=group.sign, public_key=group.public_key)
        return _Opened(writer=writer, group=group, signing=asyncio.create_task(loop.run()))

    async def _take_over(self, key_id: str) -> LedgerWriter:
        """Open the ledger, once the process before this one has let go of it."""
        give_up = time.monotonic() + self._settings.take_over_s
        while True:
            try:
                return await LedgerWriter.open(partial(_open_ledger, self._settings.url, key_id))
            except LedgerInUse:
                if time.monotonic() > give_up:
                    raise
            await asyncio.sleep(_TAKE_OVER_RETRY_S)


def _open_ledger(url: str, key_id: str) -> Ledger:
    return Ledger.open(url, wall_clock_ns=time.time_ns, random_bytes=secrets.token_bytes, key_id=key_id)


class _LaterHeads:
    """The group needs to know where signed receipts are, the ledger needs to know the group: one comes second."""

    def __init__(self) -> None:
        self.source: LedgerHeads | None = None

    async def signed_receipt(self, account: str, seq: int) -> SignedMessage | None:
        """As `LedgerHeads.signed_receipt`; nothing is asked for before the ledger is open and its receipts signed."""
        return None if self.source is None else await self.source.signed_receipt(account, seq)


def start_ledger(settings: LedgerSettings, *, namespace: str, node_id: str) -> ActorHandle[LedgerActor]:
    """Start the ledger on the node that has its disk; it is restarted there when it dies.

    It ends with the job, and before that when the returned handle is dropped: a name alone does not hold an actor.
    Ray repeats no call: settlements come again from the meters, and a key must not be made twice.

    Raises:
        ValueError: the namespace has a ledger already.
    """
    actor = ray.remote(LedgerActor).options(
        name=ACTOR_NAME,
        namespace=namespace,
        num_cpus=_ACTOR_CPUS,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=_MAX_CONCURRENT_CALLS,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    )
    return cast("ActorHandle[LedgerActor]", actor.remote(settings))


def ledger_of(namespace: str) -> ActorHandle[LedgerActor]:
    """The running ledger of a mesh; ValueError when there is none."""
    return cast("ActorHandle[LedgerActor]", ray.get_actor(ACTOR_NAME, namespace=namespace))
