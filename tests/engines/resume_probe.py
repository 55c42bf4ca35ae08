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
from serve.messages import DONE, EngineTask, Payload, Settled, Started
from serve.seam import Seam
from serve.shapes import Shape

_MODEL = "smollm2-135m-instruct"
_POOL = f"{_MODEL}@self-hosted/local"
_DEPLOYMENT = f"{_MODEL}--self-hosted--local"
_SCHEMA = {"type": "object", "properties": {"colours": {"type": "array", "items": {"type": "string"}}}}
_REQUESTS = (
    ("Write a list of three colours, one per line, with a blank line between.", {}),
    ("Say hello with three emoji.", {"logprobs": True}),
    (
        "Give three colours as JSON.",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "colours", "schema": _SCHEMA}}},
    ),
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
    for prompt, options in _REQUESTS:
        body = _body(prompt, options)
        whole = await _answer(handle, body, [])
        cuts = (1, 2, 6, 12, 21, len(whole.payloads) - 2)
        found += [await _resumed(handle, body, whole, cut) for cut in cuts]
    return found


async def _resumed(handle: Any, body: dict[str, Any], whole: Answer, cut: int) -> dict[str, object]:
    sent, delivered = whole.events[:cut], [token for each in whole.payloads[:cut] for token in each.token_ids]
    resumed = await _answer(handle, body, delivered)
    seam = Seam(sent)
    beyond = [event for each in resumed.events for event in seam.beyond(each)]
    return {
        "delivered": len(delivered),
        "new": len(resumed.ids),
        "produced": resumed.output_tokens,
        "resumed_after_tokens": resumed.placement["resumed_after_tokens"],
        "whole_ids": whole.ids,
        "ids": delivered + resumed.ids,
        "sent": _client_has(sent),
        "whole": _client_has(whole.events),
        "replayed": _client_has(resumed.events),
        "joined": _client_has([*sent, *beyond]),
    }


async def _answer(handle: Any, body: dict[str, Any], delivered: Sequence[int]) -> Answer:
    request_id = secrets.token_hex(16)
    payloads: list[Payload] = []
    task = EngineTask(
        request_id=request_id,
        shape=Shape.CHAT,
        context=_context(request_id, len(delivered)),
        body=body,
        delivered=tuple(delivered),
    )
    async for item in handle.answer.remote(task):
        if isinstance(item, Payload):
            payloads.append(item)
        elif isinstance(item, Settled):
            receipt = json.loads(item.receipt)
        else:
            assert isinstance(item, Started), item
    return Answer(tuple(payloads), receipt["workload"]["tokens"]["output"], receipt["placement"])


def _body(prompt: str, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": _MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": _MAX_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **options,
    }


def _client_has(events: Iterable[bytes]) -> dict[str, Any]:
    """The text that a client assembles, the tokens it is told of, and how often it gets what comes once."""
    has = {"text": "", "logprobs": 0, "tokens": None, "roles": 0, "finishes": [], "ends": 0}
    for event in events:
        has["ends"] += event == DONE
        chunk = {"choices": [], "usage": None} if event == DONE else json.loads(event.removeprefix(b"data: "))
        for choice in chunk["choices"]:
            has["text"] += choice["delta"].get("content") or ""
            has["logprobs"] += len((choice.get("logprobs") or {}).get("content") or ())
            has["roles"] += "role" in choice["delta"]
            has["finishes"] += [choice["finish_reason"]] if choice.get("finish_reason") else []
        if chunk.get("usage"):
            has["tokens"] = chunk["usage"]["completion_tokens"]
    return has


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
