"""What most would write first on Ray Serve: a FastAPI ingress and a deployment that streams the stub's answers to it.

`python -m benchmarks.peer_ray_serve PORT`, until SIGTERM; prints a line when it answers.
"""

import signal
import sys
import threading
from collections.abc import AsyncGenerator
from typing import Any

import ray
import ray.serve as ray_serve
from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse

from benchmarks.stub import events, unary_body

_ONGOING = 200
_api = FastAPI()


@ray_serve.deployment(max_ongoing_requests=_ONGOING, ray_actor_options={"num_cpus": 0.1})
class Model:
    """Gives the stub's answers."""

    async def whole(self, asked: dict[str, Any]) -> bytes:
        """A unary answer."""
        return unary_body("0", asked["model"])

    async def stream(self, asked: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """The events of a stream."""
        for event in events("0", asked["model"]):
            yield event


@ray_serve.deployment(max_ongoing_requests=_ONGOING, ray_actor_options={"num_cpus": 0.1})
@ray_serve.ingress(_api)
class Door:
    """Passes requests on."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - Ray's handle has no types
        self._model = model

    @_api.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        """A chat completion."""
        asked = await request.json()
        if not asked.get("stream"):
            return Response(await self._model.whole.remote(asked), media_type="application/json")
        return StreamingResponse(self._model.options(stream=True).stream.remote(asked), media_type="text/event-stream")


def main() -> None:
    stop = threading.Event()
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    signal.signal(signal.SIGTERM, lambda *_: stop.set())  # in place of Ray's own
    ray_serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    ray_serve.run(Door.bind(Model.bind()), name="peer")
    print("ready", flush=True)
    stop.wait()
    ray.shutdown()


if __name__ == "__main__":
    main()
