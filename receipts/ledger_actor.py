"""The ledger as a Ray actor: the one writer of the mesh, and the place from which receipts go to be signed."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from metering.settlement import Settlement
from receipts.account_heads import AccountHeads
from receipts.api_keys import SCOPES, ApiKey, NewKey
from receipts.budgets import Budget, BudgetKind, BudgetUse, BudgetWindow
from receipts.errors import LedgerInUse, LedgerUnavailable
from receipts.group_record import GroupRecord
from receipts.holds import MOST_UNSIGNED, AccountBalance, HoldAnswer, HoldBook, HoldsReport, HoldWanted, Renewal
from receipts.ledger import Ledger
from receipts.ledger_csv import csv_lines
from receipts.ledger_holds import LedgerHolds
from receipts.ledger_reader import LedgerPosition, LedgerReader
from receipts.ledger_readers import LedgerReaders
from receipts.ledger_writer import LedgerWriter
from receipts.payments import CreditKind, DueRecharge, Payment, Recharge
from receipts.receipt_query import ReceiptQuery, ReceiptsPage
from receipts.refunds import Refunds
from receipts.signer_actors import signers_of
from receipts.signer_group import HeadSource, SignerGroup
from receipts.signer_messages import SignedMessage
from receipts.signers_report import SignersReport, SigningRate
from receipts.signing_loop import LedgerHeads, SigningLoop
from receipts.signing_metrics import SigningMetrics
from receipts.stored_receipt import StoredReceipt
from receipts.usage import Usage, UsageBy

ACTOR_NAME = "ledger"
# Ray's CPUs are a count that it subtracts from: the mesh's own actors must fit beside an engine on two cores.
_ACTOR_CPUS = 0.05
_MAX_CONCURRENT_CALLS = 1000
_TAKE_OVER_RETRY_S = 0.2
_SHOW_EVERY_S = 2.0

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")

ConnectSigners = Callable[[HeadSource], Awaitable[SignerGroup]]
"""Makes the coordinator of the signer group, given where it finds receipts that are signed already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSettings:
    """What the ledger actor is started with. ``url`` is SQLAlchemy's, of a database on the actor's node.

    ``take_over_s``: so long the process before a restart may take to die and let go of the database, from which a
    server drops a session that went silent after 30 s. With ``most_unsigned`` receipts unsigned no hold is placed, so
    that no new request begins. A database that is away is tried again every ``open_again_s``.
    """

    url: str = field(repr=False)  # it may hold a password
    connect_signers: ConnectSigners
    take_over_s: float = 45.0
    open_again_s: float = 5.0
    most_unsigned: int = MOST_UNSIGNED


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
    readers: LedgerReaders
    holds: LedgerHolds
    refunds: Refunds
    group: SignerGroup
    account_heads: AccountHeads
    rate: SigningRate
    tasks: "Sequence[asyncio.Task[None]]"


class LedgerActor:
    """A `LedgerWriter` and a `SigningLoop` in an actor's process.

    Both open when the actor starts. When that fails every call tries once more and raises the reason, which Ray
    would bury in a dead actor's traceback had the constructor raised it. While the database is away or held it is
    tried every few seconds: unsigned receipts of an earlier life get signed even if nobody calls.
    """

    async def __init__(self, settings: LedgerSettings) -> None:  # type: ignore[misc]
        self._settings = settings
        self._said: str | None = None
        self._opening = asyncio.create_task(self._open())
        self._staying = asyncio.create_task(self._open_at_last())

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[StoredReceipt | BaseException | None]:
        """As `LedgerWriter.settle` for each, durable when it returns, or what that raises; None for one that failed."""
        writer = (await self._ready()).writer
        return await asyncio.gather(*map(writer.settle, settlements), return_exceptions=True)

    async def receipt(self, receipt_id: str, account: str, wait_for_signature_s: float = 0.0) -> StoredReceipt | None:
        """As `LedgerWriter.receipt`."""
        writer = (await self._ready()).writer
        return await writer.receipt(receipt_id, account, wait_for_signature_s=wait_for_signature_s)

    async def receipts_page(
        self, query: ReceiptQuery, after_seq: int, limit: int, *, newest_first: bool = False
    ) -> ReceiptsPage:
        """As `LedgerReader.page_lines`: bytes, of which Ray makes less than of values."""
        readers = (await self._ready()).readers
        return await readers.call(
            query.account,
            lambda reader: reader.page_lines(query, after_seq=after_seq, limit=limit, newest_first=newest_first),
        )

    async def ledger_lines(
        self, account: str, after: LedgerPosition, limit: int
    ) -> tuple[bytes, LedgerPosition | None]:
        """As `LedgerReader.entries_page`, as lines of CSV."""
        readers = (await self._ready()).readers
        page = await readers.call(account, lambda reader: reader.entries_page(account, after, limit))
        return csv_lines(page.lines), page.next

    async def create_key(
        self, account: str, name: str, scopes: Sequence[str] = SCOPES, expires_unix_ns: int | None = None
    ) -> NewKey:
        """As `Ledger.create_key`."""
        return await self._call(lambda ledger: ledger.create_key(account, name, scopes, expires_unix_ns))

    async def list_keys(self, account: str) -> Sequence[ApiKey]:
        """As `Ledger.list_keys`."""
        return await self._call(lambda ledger: ledger.list_keys(account))

    async def revoke_key(self, account: str, key_id: str) -> bool:
        """As `Ledger.revoke_key`."""
        return await self._call(lambda ledger: ledger.revoke_key(account, key_id))

    async def rotate_key(self, account: str, key_id: str, overlap_s: float) -> NewKey:
        """As `Ledger.rotate_key`."""
        return await self._call(lambda ledger: ledger.rotate_key(account, key_id, overlap_s))

    async def key_of(self, secret: str) -> ApiKey | None:
        """As `LedgerWriter.key_of`."""
        return await (await self._ready()).writer.key_of(secret)

    async def set_budget(self, budget: Budget) -> None:
        """As `Ledger.set_budget`."""
        await self._call(lambda ledger: ledger.set_budget(budget))

    async def remove_budget(
        self, account: str, kind: BudgetKind, subject: str, window: BudgetWindow | None = None
    ) -> bool:
        """As `Ledger.remove_budget`."""
        return await self._call(lambda ledger: ledger.remove_budget(account, kind, subject, window))

    async def budgets(self, account: str) -> Sequence[BudgetUse]:
        """As `Ledger.budgets`."""
        return await self._call(lambda ledger: ledger.budgets(account))

    async def top_up(self, account: str, usd_picos: int, provider: str, reference: str) -> Payment:
        """As `Ledger.top_up`."""
        return await self._call(lambda ledger: ledger.top_up(account, usd_picos, provider, reference))

    async def credit(self, account: str, usd_picos: int, kind: CreditKind, reason: str, reference: str) -> Payment:
        """As `Ledger.credit`."""
        return await self._call(lambda ledger: ledger.credit(account, usd_picos, kind, reason, reference))

    async def payments(self, account: str) -> Sequence[Payment]:
        """As `Ledger.payments`."""
        return await self._call(lambda ledger: ledger.payments(account))

    async def refundable_usd_picos(self, account: str, payment_id: str) -> int:
        """As `Refunds.refundable_usd_picos`."""
        return await (await self._ready()).refunds.refundable_usd_picos(account, payment_id)

    async def begin_refund(
        self, account: str, payment_id: str, usd_picos: int, reference: str | None = None
    ) -> Payment:
        """As `Refunds.begin`."""
        return await (await self._ready()).refunds.begin(account, payment_id, usd_picos, reference)

    async def finish_refund(self, refund_id: str, reference: str) -> Payment:
        """As `Ledger.finish_refund`."""
        return await self._call(lambda ledger: ledger.finish_refund(refund_id, reference))

    async def cancel_refund(self, refund_id: str, reason: str) -> Payment:
        """As `Ledger.cancel_refund`."""
        return await self._call(lambda ledger: ledger.cancel_refund(refund_id, reason))

    async def unfinished_refunds(self) -> Sequence[Payment]:
        """As `Ledger.unfinished_refunds`."""
        return await self._call(Ledger.unfinished_refunds)

    async def set_recharge(self, account: str, recharge: Recharge | None) -> None:
        """As `Ledger.set_recharge`."""
        await self._call(lambda ledger: ledger.set_recharge(account, recharge))

    async def recharge(self, account: str) -> Recharge | None:
        """As `Ledger.recharge`."""
        return await self._call(lambda ledger: ledger.recharge(account))

    async def accounts_to_recharge(self) -> Sequence[DueRecharge]:
        """As `Ledger.accounts_to_recharge`."""
        return await self._call(Ledger.accounts_to_recharge)

    async def usage(
        self, account: str, since_unix_ns: int, until_unix_ns: int, by: UsageBy, workload: str | None = None
    ) -> Usage:
        """As `LedgerReader.usage`."""
        readers = (await self._ready()).readers
        return await readers.call(
            account, lambda reader: reader.usage(account, since_unix_ns, until_unix_ns, by, workload)
        )

    async def has_keys(self) -> bool:
        """As `Ledger.has_keys`."""
        return await self._call(Ledger.has_keys)

    async def balance_usd_picos(self, account: str) -> int:
        """As `Ledger.balance_usd_picos`."""
        return await self._call(lambda ledger: ledger.balance_usd_picos(account))

    async def reverse(self, transaction_id: str, reason: str) -> str:
        """As `Ledger.reverse`."""
        return await self._call(lambda ledger: ledger.reverse(transaction_id, reason))

    async def place_holds(self, wanted: Sequence[HoldWanted]) -> Sequence[HoldAnswer | BaseException]:
        """As `LedgerHolds.place` for each, or what that raises."""
        holds = (await self._ready()).holds
        return await asyncio.gather(*map(holds.place, wanted), return_exceptions=True)

    async def renew_holds(self, holds: Sequence[Renewal], lease_s: float) -> None:
        """As `LedgerHolds.renew`."""
        (await self._ready()).holds.renew(holds, lease_s)

    async def extend_holds(self, holds: Sequence[tuple[str, str, int]], lease_s: float) -> list[int]:
        """As `LedgerHolds.extend`."""
        return await (await self._ready()).holds.extend(holds, lease_s)

    async def release_hold(self, account: str, request_id: str) -> None:
        """As `LedgerHolds.release`."""
        (await self._ready()).holds.release(account, request_id)

    async def account_balance(self, account: str) -> AccountBalance:
        """As `LedgerHolds.balance`."""
        return await (await self._ready()).holds.balance(account)

    async def holds_report(self) -> HoldsReport:
        """As `LedgerHolds.report`."""
        return (await self._ready()).holds.report()

    async def group_record(self) -> GroupRecord:
        """The signer group's public record: its key, its members, its threshold."""
        return (await self._ready()).group.record

    async def signers_report(self) -> SignersReport:
        """How the signers are, asked now, and what waits for them."""
        opened = await self._ready()
        members = await opened.group.members(time.time_ns)
        return SignersReport(
            public_key=opened.group.public_key,
            key_id=opened.group.key_id,
            threshold=opened.group.record.statement.threshold,
            members=tuple(members),
            backlog=opened.writer.backlog,
            signed_per_second=opened.rate.per_second(),
            at_unix_ns=time.time_ns(),
        )

    async def readmit_signer(self, identifier: int) -> None:
        """As `SignerGroup.readmit`."""
        await (await self._ready()).group.readmit(identifier)

    async def account_head(self, account: str, since_unix_ns: int | None) -> bytes | None:
        """As `AccountHeads.signed`."""
        return await (await self._ready()).account_heads.signed(account, since_unix_ns)

    async def close(self) -> None:
        """Commit what is queued and close the database; the actor is of no use afterwards."""
        opened = await self._ready()
        for task in opened.tasks:
            task.cancel()
        await opened.readers.close()
        await opened.writer.close()

    async def _call(self, work: Callable[[Ledger], _Result]) -> _Result:
        return await (await self._ready()).writer.call(work)

    async def _ready(self) -> _Opened:
        if self._opening.done() and self._opening.exception() is not None:
            self._opening = asyncio.create_task(self._open())
        # Shielded: a caller that gives up must not end what the others wait for.
        return await asyncio.shield(self._opening)

    async def _open_at_last(self) -> None:
        while True:
            try:
                await self._ready()
            except (LedgerInUse, LedgerUnavailable):
                await asyncio.sleep(self._settings.open_again_s)
            except Exception:  # noqa: BLE001 - logged already; it needs a person, and the next call says it again
                return
            else:
                return

    async def _open(self) -> _Opened:
        """The group first: each receipt names the key that it will be signed with."""
        heads = _LaterHeads()
        try:
            group = await self._settings.connect_signers(heads)
            book = HoldBook(monotonic_ns=time.monotonic_ns)
            writer = await self._take_over(group.key_id, book)
            readers = await self._open_readers(writer)
        except Exception as error:
            if str(error) != self._said:  # else it is the same trouble as the last time
                self._said = str(error)
                _LOG.exception("the ledger did not open; it is tried again")
            raise
        heads.source = LedgerHeads(writer)
        metrics, rate = SigningMetrics(), SigningRate(time.monotonic)

        def on_signed(waited_ns: Sequence[int]) -> None:
            metrics.signed(waited_ns)
            rate.add(len(waited_ns))

        loop = SigningLoop(writer, sign=group.sign, public_key=group.public_key, on_signed=on_signed)
        return _Opened(
            writer=writer,
            readers=readers,
            holds=LedgerHolds(writer, book, most_unsigned=self._settings.most_unsigned),
            refunds=Refunds(writer, book),
            group=group,
            account_heads=AccountHeads(readers, group, at_rest=loop.at_rest, wall_clock_ns=time.time_ns),
            rate=rate,
            tasks=(asyncio.create_task(loop.run()), asyncio.create_task(_show(writer, metrics))),
        )

    async def _open_readers(self, writer: LedgerWriter) -> LedgerReaders:
        """Readers of what the writer has open; it is closed when that fails, so that it can be opened again."""
        try:
            return await LedgerReaders.open(partial(LedgerReader.open, self._settings.url))
        except BaseException:
            await writer.close()
            raise

    async def _take_over(self, key_id: str, book: HoldBook) -> LedgerWriter:
        """Open the ledger, once the process before this one has let go of it."""
        give_up = time.monotonic() + self._settings.take_over_s
        while True:
            try:
                return await LedgerWriter.open(partial(_open_ledger, self._settings.url, key_id), holds=book)
            except LedgerInUse:
                if time.monotonic() > give_up:
                    raise
            await asyncio.sleep(_TAKE_OVER_RETRY_S)


async def _show(writer: LedgerWriter, metrics: SigningMetrics) -> None:
    said: str | None = None
    while True:
        try:
            metrics.show(writer.backlog, time.time_ns())
            said = None
        except Exception as error:  # noqa: BLE001 - logged; a metric is not worth the task
            if str(error) != said:  # else it is the same trouble as the last time
                said = str(error)
                _LOG.exception("the backlog could not be shown as a metric; it is tried again")
        await asyncio.sleep(_SHOW_EVERY_S)


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
