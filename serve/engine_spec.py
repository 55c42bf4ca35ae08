"""What an engine is, to everything but the module that holds vLLM, and how one is started inside a replica."""

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from serve.messages import Payload, Working
from serve.shapes import Shape
from serve.weights import HubWeights, WeightsSource, prepare

ModelTask = Literal["generate", "embed"]
"""What a model does; of the feature with this name, pools and requests tell each other."""


class Engine(Protocol):
    """Answers requests in their APIs' shapes and reports its steps to the host meter."""

    def answer(
        self, request_id: str, shape: Shape, body: Mapping[str, Any], delivered: Sequence[int] = ()
    ) -> AsyncGenerator[Payload | Working, None]:
        """Server-sent events when ``body["stream"]`` is true, else one JSON body; closing it aborts the request.

        Each payload of a stream is one event with its blank line, and the last one is `serve.messages.DONE` whatever
        the shape; every stream counts its usage.

        With ``delivered``, the token ids of an earlier attempt at this request, the answer begins with them: its
        events are those of the whole answer, to be cut by a `serve.seam.Seam`, and its usage counts all of it. An
        event's ``token_ids`` are only those beyond the delivered ones. Until the next event or the JSON body is
        there, `Working` comes at most once a second, and only when there are more tokens than before.

        Raises:
            RequestRefused: the request is wrong, or can't be resumed; raised before the first item.
        """

    def stop_at_length(self, request_id: str) -> None:
        """End the generation of this request's answer now, all choices, as if ``max_tokens`` were reached.

        The answer then ends in its own time: with ``finish_reason`` "length" (Anthropic's ``stop_reason``
        "max_tokens") and with its usage. A stream gets its first token before. An embedding isn't generated and goes
        on, and nothing happens to a request that isn't here any more.
        """

    async def check(self) -> None:
        """Raise when the engine can no longer answer."""

    def stop(self) -> None:
        """Stop every process the engine started."""


class EngineSpec(Protocol):
    """Starts an `Engine`; a value that travels to the replica's process."""

    async def start(self, meter_socket: str, replica: str) -> Engine:
        """Start the engine and wait until it is ready; errors are the engine's own."""

    @property
    def model_revision(self) -> str | None:
        """The revision that goes on receipts; None when unknown before the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSpec:
    """vLLM with these weights, for one ``task``.

    ``arguments`` are vLLM's own engine arguments by command-line name, no dashes.
    ``threads`` is how many OpenMP threads the engine computes with on a CPU; None is every core.
    """

    model_name: str
    task: ModelTask
    weights: WeightsSource
    cache_dir: Path
    context_tokens: int
    arguments: Mapping[str, str | int | float | bool | None]
    threads: int | None

    async def start(self, meter_socket: str, replica: str) -> Engine:
        """Prepare the weights on this node and start vLLM; imported here, since only a replica needs it."""
        weights = await asyncio.to_thread(prepare, self.weights, self.cache_dir)
        # Ray sets it to the CPUs that it reserves; OpenMP reads it when torch is imported, here and in the children.
        os.environ["OMP_NUM_THREADS"] = str(self.threads or os.cpu_count() or 1)
        from serve.engine import VllmEngine

        return await VllmEngine.start(self, weights, meter_socket, replica)

    @property
    def model_revision(self) -> str | None:
        """The revision of the weights as named in the settings."""
        return self.weights.revision

    def command_line(self, weights: str) -> list[str]:
        """vLLM's command-line arguments for this engine with prepared ``weights``."""
        line = [
            f"--model={weights}",
            f"--served-model-name={self.model_name}",
            f"--max-model-len={self.context_tokens}",
        ]
        # Which runner is automatic by the weights' architecture, and some can do both.
        line += (
            ["--runner=pooling"] if self.task == "embed" else ["--runner=generate", "--enable-prompt-tokens-details"]
        )
        if isinstance(self.weights, HubWeights) and self.weights.revision is not None:
            line.append(f"--revision={self.weights.revision}")
        return [*line, *(_argument(name, value) for name, value in self.arguments.items())]


def _argument(name: str, value: str | float | bool | None) -> str:  # noqa: FBT001 - a setting of any type
    """One engine argument; a switch is given, or given as ``no-``."""
    if value is False:
        return f"--no-{name}"
    return f"--{name}" if value is True or value is None else f"--{name}={value}"
