"""Cuts greedy answers of a running mesh after several events and resumes them: `python resume_probe.py DATA_DIR`.

Prints a JSON list of cuts. It speaks to the pool's deployment, as the door does when an attempt has failed, and joins
what was sent and what came then with the door's own seam.
"""

import asyncio
import json
import secrets
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.ray_session import join_ray
from mesh.run_state import DataFolder
from receipts.draft import Attempt, RequestContext
from receipts.placement_section import CandidatePool, Pins, PlacementContext, Rates
from serve.messages import DONE, EngineTask, Opening, Payload, Settled
from serve.messages_seam import MessagesSeam
from serve.seam import Seam
from serve.shapes import Shape

_MODEL = "smollm2-135m-instruct"
_POOL = f"{_MODEL}@self-hosted/local"
_DEPLOYMENT = f"{_MODEL}--self-hosted--local"


def _asks(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


_SCHEMA = {"type": "object", "properties": {"colours": {"type": "array", "items": {"type": "string"}}}}
_REQUESTS: tuple[tuple[Shape, dict[str, Any]], ...] = (
    (Shape.CHAT, {"messages": _asks("Write a list of three colours, one per line, with a blank line between.")}),
    (Shape.CHAT, {"messages": _asks("Say hello with three emoji."), "logprobs": True}),
    (
        Shape.CHAT,
        {
            "messages": _asks("Give three colours as JSON."),
            "response_format": {"type": "json_schema", "json_schema": {"name": "colours", "schema": _SCHEMA}},
        },
    ),
    (Shape.COMPLETION, {"prompt": "The three longest rivers are", "logprobs": 1}),
    (Shape.MESSAGES, {"system": "Be brief.", "messages": _asks("Name three rivers.")}),
)
_MAX_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Answer:
    payloads: tuple[Payload, ...]
    output_tokens: int
    placement: dict[str, Any]

    @property
    def events(self) -> list[bytes]:
        return [each.data for each in self.payloads]

    @property
    def ids(self) -> list[int]:
        return [token for each in self.payloads for token in each.token_ids]


def main() -> None:
    data_dir = Path(sys.argv[1])
    state = DataFolder(data_dir).running()
    join_ray(state, data_dir)
    print(json.dumps(asyncio.run(_probe(state.namespace))))


async def _probe(application: str) -> list[dict[str, object]]:
    import ray.serve as ray_serve

    # Made inside the event loop that uses it: the mesh has Ray Serve route in the caller's loop.
    handle = ray_serve.get_deployment_handle(_DEPLOYMENT, app_name=application).options(stream=True)
    found = []
    for shape, asked in _REQUESTS:
        body = _body(shape, asked)
        whole = await _answer(handle, shape, body, [])
        cuts = (1, 2, 6, 12, 21, len(whole.payloads) - 2)
        found += await asyncio.gather(*(_resumed(handle, shape, body, whole, cut) for cut in cuts))
    return found


async def _resumed(handle: Any, shape: Shape, body: dict[str, Any], whole: Answer, cut: int) -> dict[str, object]:
    sent, delivered = whole.events[:cut], [token for each in whole.payloads[:cut] for token in each.token_ids]
    resumed = await _answer(handle, shape, body, delivered)
    seam = MessagesSeam(sent) if shape is Shape.MESSAGES else Seam(sent)
    beyond = [event for each in resumed.events for event in seam.beyond(each)]
    return {
        "shape": shape,
        "delivered": len(delivered),
        "new": len(resumed.ids),
        "produced": resumed.output_tokens,
        "resumed_after_tokens": resumed.placement["resumed_after_tokens"],
        "whole_ids": whole.ids,
        "ids": delivered + resumed.ids,
        "sent": _client_has(shape, sent),
        "whole": _client_has(shape, whole.events),
        "replayed": _client_has(shape, resumed.events),
        "joined": _client_has(shape, [*sent, *beyond]),
    }


async def _answer(handle: Any, shape: Shape, body: dict[str, Any], delivered: Sequence[int]) -> Answer:
    request_id = secrets.token_hex(16)
    payloads: list[Payload] = []
    task = EngineTask(
        request_id=request_id,
        shape=shape,
        context=_context(request_id, len(delivered)),
        body=body,
        delivered=tuple(delivered),
    )
    async for message in handle.answer.remote(task):
        item = message.first if isinstance(message, Opening) else message
        if isinstance(item, Payload):
            payloads.append(item)
        else:
            assert isinstance(item, Settled), item
            receipt = json.loads(item.receipt)
    return Answer(tuple(payloads), receipt["workload"]["tokens"]["output"], receipt["placement"])


def _body(shape: Shape, asked: dict[str, Any]) -> dict[str, Any]:
    counts = {} if shape is Shape.MESSAGES else {"stream_options": {"include_usage": True}}
    return {"model": _MODEL, "max_tokens": _MAX_TOKENS, "temperature": 0, "stream": True, **counts, **asked}


def _client_has(shape: Shape, events: Iterable[bytes]) -> dict[str, Any]:
    """The text that a client assembles, the tokens it is told of, and how often it gets what comes once."""
    has = {"text": "", "logprobs": 0, "tokens": None, "openings": 0, "finishes": [], "ends": 0}
    for event in events:
        if event == DONE:
            has["ends"] += 1
        elif shape is Shape.MESSAGES:
            _add_message_event(has, json.loads(event.partition(b"data: ")[2]))
        else:
            _add_chunk(has, json.loads(event.removeprefix(b"data: ")))
    return has


def _add_chunk(has: dict[str, Any], chunk: dict[str, Any]) -> None:
    for choice in chunk["choices"]:
        delta, logprobs = choice.get("delta") or {}, choice.get("logprobs") or {}
        has["text"] += choice.get("text") or delta.get("content") or ""
        has["logprobs"] += len(logprobs.get("content") or logprobs.get("tokens") or ())
        has["openings"] += "role" in delta
        has["finishes"] += [choice["finish_reason"]] if choice.get("finish_reason") else []
    if chunk.get("usage"):
        has["tokens"] = chunk["usage"]["completion_tokens"]


def _add_message_event(has: dict[str, Any], event: dict[str, Any]) -> None:
    delta = event.get("delta") or {}
    has["text"] += delta.get("text") or ""
    has["openings"] += event["type"] == "message_start"
    if event["type"] == "message_delta":
        has["finishes"].append(delta["stop_reason"])
        has["tokens"] = event["usage"]["output_tokens"]


def _context(request_id: str, delivered: int) -> bytes:
    candidate = CandidatePool.expecting(
        pool=_POOL,
        expected_microjoules=1,
        energy_usd=0,
        facility_usd=0,
        carbon_usd=0,
        wait_usd=0,
        network_usd=0,
    )
    return RequestContext(
        receipt_id=f"rcpt_{request_id}",
        workload_id=f"chatcmpl-{request_id}",
        kind="ml-inference",
        model=_MODEL,
        model_revision=None,
        customer_tag=None,
        account="default",
        tier="L3",
        operator_name="self-hosted",
        region="local",
        simulated=False,
        legal_entity=None,
        country=None,
        dc_pue=1.0,
        dc_ref_renewable_share=None,
        grid_zone="WORLD",
        grid_intensity_gco2_per_kwh=480.0,
        grid_source="test",
        grid_as_of="2023",
        grid_is_estimated=True,
        usd_per_kwh=0.5,
        price_version="test",
        attempts=(Attempt(pool=_POOL, outcome="replica died", energy_microjoules=None),) if delivered else (),
        placement=PlacementContext(
            pool=_POOL,
            accepted_unix_ns=time.time_ns(),
            resumed_after_tokens=delivered,
            pins=Pins(model=_MODEL, region=None, residency=(), operators=None),
            rates=Rates(usd_per_kgco2=0, usd_per_hour_waited=0),
            candidates=(candidate,),
            rejected=(),
            rejected_total=0,
        ),
    ).to_json()


if __name__ == "__main__":
    main()
