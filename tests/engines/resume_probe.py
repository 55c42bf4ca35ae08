"""Cuts greedy answers of a running mesh at several tokens and resumes them: `python resume_probe.py DATA_DIR`.

Prints a JSON list of cuts. It speaks to the pool's deployment, since the door resumes nothing yet.
"""

import asyncio
import json
import secrets
import sys
from pathlib import Path
from typing import Any

from mesh.ray_session import join_ray
from mesh.run_state import DataFolder
from receipts.draft import RequestContext
from serve.messages import Payload, Settled

_PROMPTS = ("Write a list of three colours, one per line, with a blank line between.", "Say hello with three emoji.")
_CUTS = (1, 5, 11, 20)
_MAX_TOKENS = 32


def main() -> None:
    data_dir = Path(sys.argv[1])
    state = DataFolder(data_dir).running()
    join_ray(state, data_dir)
    print(json.dumps(asyncio.run(_probe(state.namespace))))


async def _probe(application: str) -> list[dict[str, object]]:
    import ray.serve as ray_serve

    # Made inside the event loop that uses it: the mesh has Ray Serve route in the caller's loop.
    pool = "smollm2-135m-instruct--self-hosted--local"
    handle = ray_serve.get_deployment_handle(pool, app_name=application).options(stream=True)
    found = []
    for prompt in _PROMPTS:
        whole_ids, whole_text = await _answer(handle, prompt, [])
        for cut in _CUTS:
            if cut >= len(whole_ids):
                continue
            ids, text = await _answer(handle, prompt, whole_ids[:cut])
            found.append(
                {
                    "cut": cut,
                    "whole_ids": whole_ids,
                    "ids": ids,
                    "whole_text": whole_text,
                    "text": text,
                }
            )
    return found


async def _answer(handle: Any, prompt: str, delivered: list[int]) -> tuple[list[int], str]:
    """Token ids and text of one streamed answer, replayed ones included."""
    request_id = secrets.token_hex(16)
    body = {
        "model": "smollm2-135m-instruct",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": _MAX_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    ids: list[int] = []
    text = ""
    async for item in handle.chat.remote(request_id, _context(request_id), body, delivered):
        if isinstance(item, Payload) and item.data.startswith(b"data: {"):
            for choice in json.loads(item.data[6:])["choices"]:
                ids += choice.get("token_ids") or []
                text += choice["delta"].get("content") or ""
        if isinstance(item, Settled):
            tokens = json.loads(item.receipt)["workload"]["tokens"]
            assert tokens["output"] == len(ids) - len(delivered), "the meter counts what this engine produced"
    return ids, text


def _context(request_id: str) -> bytes:
    return RequestContext(
        receipt_id=f"rcpt_{request_id}",
        workload_id=f"chatcmpl-{request_id}",
        kind="ml-inference",
        model="smollm2-135m-instruct",
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
        attempts=(),
    ).to_json()


if __name__ == "__main__":
    main()
