"""Stripe's HTTP API as far as the mesh asks it, on this machine; its answers are those of `conformance/stripe/`."""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import stripe

ANSWERS = Path(__file__).parents[1] / "conformance" / "stripe"
SECRET_KEY = "sk_test_nobody-may-see-it"
WEBHOOK_SECRET = "whsec_nobody-may-see-it"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request to Stripe; ``form`` is its body, a value for each name."""

    call: str
    form: dict[str, str]
    idempotency_key: str | None
    key: str | None


@dataclass
class FakeStripe:
    """What the server answers, and what it was asked. The same idempotency key gets the same answer again."""

    url: str = ""
    status: int = 200
    fails_with: str | None = None
    asked: list[Asked] = field(default_factory=list)
    told: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    refunds: list[dict[str, Any]] = field(default_factory=list)
    charges: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, asked: Asked) -> tuple[int, bytes]:
        self.asked.append(asked)
        if asked.idempotency_key in self.told:
            return self.told[asked.idempotency_key]
        answer = self._answer(asked)
        if asked.idempotency_key is not None:
            self.told[asked.idempotency_key] = answer
        return answer

    def _answer(self, asked: Asked) -> tuple[int, bytes]:
        if self.fails_with is not None:
            return self.status, (ANSWERS / self.fails_with).read_bytes()
        if self.status >= 500:
            return self.status, b'{"error": {"type": "api_error"}}'
        return 200, json.dumps(self._object(asked)).encode()

    def _object(self, asked: Asked) -> dict[str, Any]:
        metadata = {
            name.removeprefix("metadata[").removesuffix("]"): value
            for name, value in asked.form.items()
            if name.startswith("metadata[")
        }
        match asked.call:
            case "POST /v1/checkout/sessions":
                return recorded("checkout_session.json")
            case "POST /v1/refunds":
                refund = recorded("refund.json") | {"amount": int(asked.form["amount"]), "metadata": metadata}
                refund["id"] = f"re_{len(self.refunds) + 1}"
                self.refunds.append(refund)
                return refund
            case "GET /v1/refunds":
                return {"object": "list", "data": self.refunds, "has_more": False, "url": "/v1/refunds"}
            case "GET /v1/payment_intents":
                return {"object": "list", "data": self.charges, "has_more": False, "url": "/v1/payment_intents"}
            case "POST /v1/payment_intents":
                charge = recorded("payment_intent.json") | {
                    "id": f"pi_charge_{len(self.charges) + 1}",
                    "amount": int(asked.form["amount"]),
                    "amount_received": int(asked.form["amount"]),
                    "metadata": metadata,
                }
                self.charges.append(charge)
                return charge
            case _:
                return recorded("payment_intent.json")


def recorded(name: str) -> dict[str, Any]:
    """An answer or event, as JSON has it."""
    return json.loads((ANSWERS / name).read_bytes())


def signed(body: bytes, *, secret: str = WEBHOOK_SECRET, at_s: int | None = None) -> str:
    """The header `Stripe-Signature`, now or at a time."""
    return stripe.WebhookSignature.generate_signature_header(body.decode(), secret, at_s)


@contextlib.contextmanager
def running_fake_stripe() -> Iterator[FakeStripe]:
    """The server, on a port of its own."""
    state = FakeStripe()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._play()

        def do_POST(self) -> None:
            self._play()

        def _play(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0"))).decode()
            asked = Asked(
                call=f"{self.command} {self.path.partition('?')[0]}",
                form={name: values[0] for name, values in parse_qs(body, keep_blank_values=True).items()},
                idempotency_key=self.headers.get("idempotency-key"),
                key=self.headers.get("authorization"),
            )
            status, answer = state.answer(asked)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
