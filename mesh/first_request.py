"""The first request that a fresh mesh answers, and what is shown of it in plain words."""

import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mesh.client import MeshClient
from mesh.errors import StartFailed
from receipts.verify import verify_paths

_QUESTION = "What is a joule? Answer in one sentence."
_MAX_TOKENS = 64
_IN_WORDS = {
    "measured-direct": "measured, alone on the device",
    "measured-apportioned": "measured, and split between the requests that ran together",
    "estimated": "a fifth or more of it estimated",
    "derived": "derived from processor time, not measured",
}


def show_first_request(url: str, api_key: str, console: Console) -> None:
    """Ask one question through OpenAI's SDK, then show answer, joules, place, receipt and its verification.

    Raises:
        StartFailed: the mesh did not answer, or its receipt did not verify.
    """
    import openai

    client = MeshClient(url, api_key)
    try:
        answer = client.openai().chat.completions.create(
            model="auto", messages=[{"role": "user", "content": _QUESTION}], max_tokens=_MAX_TOKENS, temperature=0
        )
    except openai.OpenAIError as error:
        raise StartFailed(f"the mesh started but did not answer its first request: {error}") from error
    energy: dict[str, Any] = (answer.model_extra or {})["energy"]
    receipt_bytes = client.receipt(energy["receipt_id"])
    verdict = _verify(receipt_bytes, client.group_key()["public_key"])
    table = Table.grid(padding=(0, 2))
    table.add_row("You asked", _QUESTION)
    table.add_row("It said", (answer.choices[0].message.content or "").strip())
    for title, text in _facts(json.loads(receipt_bytes)):
        table.add_row(title, text)
    table.add_row("Signature", verdict)
    console.print()
    console.print(table, highlight=False)


def _facts(receipt: dict[str, Any]) -> list[tuple[str, str]]:
    energy, carbon, silicon = receipt["energy"], receipt["carbon"], receipt["silicon"]
    tokens = receipt["workload"]["tokens"]
    if energy["total_joules"] is None:
        joules = f"unavailable, so not billed: {energy['unavailable_reason']}"
    else:
        how = _IN_WORDS[energy["method_confidence"]]
        counted = f"{tokens['input']} tokens in, {tokens['output']} out"
        joules = f"{energy['total_joules']:.3f} J by {energy['method']} ({how}); {counted}"
    if carbon["gco2eq_total"] is None:
        grams = "unknown"
    else:
        kind = "yearly mean" if carbon["is_estimated"] else "live"
        grid = f"{carbon['grid_intensity_gco2_per_kwh']:g} g/kWh, {carbon['zone']}, {kind} {carbon['as_of']}"
        grams = f"{carbon['gco2eq_total'] * 1000:.6f} mg CO2-equivalent ({grid})"
    usd = receipt["price"]["usd_picos"] / 1e12
    return [
        ("Energy", joules),
        ("Carbon", grams),
        ("Price", f"${usd:.9f} at ${receipt['price']['usd_per_kwh']:g} per kWh"),
        ("It ran on", f"{silicon['model']}, {silicon['operator']}, region {silicon['region']}, node {silicon['node']}"),
        ("Model", f"{receipt['workload']['model']}, tier {receipt['verification']['tier']}"),
        ("Receipt", f"{receipt['receipt_id']}, number {receipt['chain']['seq']} of its account"),
    ]


def _verify(receipt: bytes, public_key_hex: str) -> str:
    """The verdict of the same check that `jc verify` makes.

    Raises:
        StartFailed: the receipt does not verify.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "receipt.json"
        path.write_bytes(receipt)
        report = verify_paths([path], bytes.fromhex(public_key_hex))
        failures = list(report)
    if failures:
        raise StartFailed(f"the first receipt does not verify: {failures[0]}")
    return f"verified: FROST 3 of 5, Ed25519, group key {public_key_hex[:16]}…"
