"""The mesh's own routes over a ledger on SQLite, without the rest: `python -m benchmarks.receipt_server LEDGER PORT`.

Reading is the mesh's: its ingress, its readers, its ledger. One known Ed25519 key stands for the signer group, whose
part in an export is one signature, under the account's head. Ends at SIGTERM and prints its peak memory in MiB.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import uvicorn
from nacl.signing import SigningKey

from benchmarks.machine import peak_mebibytes
from receipts.account_heads import AccountHeads
from receipts.api_keys import ApiKey
from receipts.document import AccountHead, signed_bytes
from receipts.ed25519 import key_id_of
from receipts.ledger import Ledger
from receipts.ledger_reader import LedgerReader
from receipts.ledger_readers import LedgerReaders
from receipts.ledger_writer import LedgerWriter
from receipts.receipt_query import ReceiptQuery, ReceiptsPage
from receipts.signer_messages import SignedMessage
from receipts.stored_receipt import StoredReceipt
from serve.door_limits import DoorLimits
from serve.http_application import build_app
from serve.payments.manual import ManualPayments
from serve.request_pins import RequestPins

KEY = SigningKey(bytes(range(32)))
PUBLIC_KEY = bytes(KEY.verify_key)
KEY_ID = key_id_of(PUBLIC_KEY)


class OneKey:
    """A group of one."""

    key_id = KEY_ID

    async def sign_head(self, head: AccountHead, *_ends: SignedMessage) -> bytes:
        """Sign it, whatever it says."""
        return KEY.sign(signed_bytes(head)).signature


class Remote:
    """A method, called as an actor's is."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.remote = method


def ledger_in_place(writer: LedgerWriter, readers: LedgerReaders) -> SimpleNamespace:
    """What the routes ask of the ledger's actor, in this process."""

    async def key_of(key: str) -> ApiKey | None:
        return await writer.key_of(key)

    async def receipts_page(query: ReceiptQuery, after_seq: int, limit: int, *, newest_first: bool) -> ReceiptsPage:
        return await readers.call(
            query.account,
            lambda reader: reader.page_lines(query, after_seq=after_seq, limit=limit, newest_first=newest_first),
        )

    async def receipt(receipt_id: str, account: str, wait_s: float) -> StoredReceipt | None:
        return await writer.receipt(receipt_id, account, wait_for_signature_s=wait_s)

    heads = AccountHeads(readers, OneKey(), at_rest=nullcontext, wall_clock_ns=time.time_ns)
    methods = {
        "key_of": key_of,
        "receipts_page": receipts_page,
        "receipt": receipt,
        "account_head": heads.signed,
    }
    return SimpleNamespace(**{name: Remote(method) for name, method in methods.items()})


def open_ledger(url: str) -> Ledger:
    return Ledger.open(url, wall_clock_ns=time.time_ns, random_bytes=os.urandom, key_id=KEY_ID)


async def serve(url: str, port: int) -> None:
    writer = await LedgerWriter.open(partial(open_ledger, url))
    readers = await LedgerReaders.open(partial(LedgerReader.open, url))
    door = SimpleNamespace(planner=None, new_request_id=lambda: os.urandom(16).hex())
    group_key = {"public_key": PUBLIC_KEY.hex(), "key_id": KEY_ID, "threshold": 1, "signers": 1}
    app = build_app(
        door,
        ledger_in_place(writer, readers),
        group_key,
        meters=list,
        operator_account="operator",
        pins=RequestPins({}),
        limits=DoorLimits(most_requests=1000, slow_reader_s=60),
        payments=ManualPayments(""),
    )
    await uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning")).serve()
    await readers.close()
    await writer.close()


if __name__ == "__main__":
    # The server ends at the signal, and then raises it again for whoever was there before.
    signal.signal(signal.SIGTERM, lambda *_: None)
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
    print(f"{peak_mebibytes():.1f}")
