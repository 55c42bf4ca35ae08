"""A started vLLM engine and its own serving around it.

vLLM is imported in ``serve/engine*.py`` alone, and has two seams: `serve.engine_scheduler` reports what each step
computes, `serve.engine_resumable` takes up answers in their middle and ends them early.
"""

import asyncio
import contextlib
import io
from argparse import Namespace
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, cast

from starlette.datastructures import State
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from serve.engine_resumable import ResumableEngine
from serve.engine_scheduler import MeteredScheduler, MeterSeam
from serve.engine_shapes import ServedShape, served_shapes, stream_error, why_not_served
from serve.engine_spec import VllmSpec
from serve.errors import EngineStartFailed, RequestRefused
from serve.messages import DONE, Payload, Working
from serve.seam import why_not_resumable
from serve.shapes import Shape
from serve.signs_of_work import ended, signs, with_signs
from serve.token_trail import TokenTrail


class VllmEngine:
    """Answers requests of those shapes that its model can."""

    def __init__(self, engine: ResumableEngine, shapes: Mapping[Shape, ServedShape]) -> None:
        self._engine = engine
        self._shapes = shapes

    @classmethod
    async def start(cls, spec: VllmSpec, weights: str, meter_socket: str, replica: str) -> "VllmEngine":
        """Start the engine's child process and wait until it is ready; errors are vLLM's own."""
        parser = make_arg_parser(FlexibleArgumentParser())
        namespace = _parsed(parser, spec.command_line(weights))
        arguments = AsyncEngineArgs.from_cli_args(namespace)
        arguments.additional_config = MeterSeam(meter_socket, replica)
        arguments.scheduler_cls = f"{MeteredScheduler.__module__}.{MeteredScheduler.__qualname__}"
        engine = cast("ResumableEngine", ResumableEngine.from_engine_args(arguments))
        state = State()
        await init_app_state(engine, state, namespace, await engine.get_supported_tasks())
        return cls(engine, served_shapes(state))

    async def check(self) -> None:
        """Raise vLLM's error if the engine's child process is dead."""
        await self._engine.check_health()

    def stop(self) -> None:
        """Stop the engine's child processes."""
        self._engine.shutdown(timeout=2)

    def stop_at_length(self, request_id: str) -> None:
        """As `serve.engine_spec.Engine` promises."""
        self._engine.stop_at_length(request_id)

    async def answer(
        self, request_id: str, shape: Shape, body: Mapping[str, Any], delivered: Sequence[int] = ()
    ) -> AsyncGenerator[Payload | Working, None]:
        """As `serve.engine_spec.Engine` promises; ``request_id``, 32 hex digits, is the end of the answer's id.

        Raises:
            RequestRefused: vLLM found the request wrong, or it can't be taken up after ``delivered``.
            EngineBroke: vLLM failed.
        """
        served = self._shapes.get(shape)
        if served is None:
            raise RequestRefused(HTTPStatus.BAD_REQUEST, f"this model doesn't serve /v1/{shape}", "model")
        if (refusal := why_not_served(body)) is not None:
            raise refusal
        has_trail = bool(body.get("stream")) and why_not_resumable(body) is None
        if delivered and (reason := why_not_resumable(body)) is not None:
            raise RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, f"the answer can't be resumed: {reason}")
        with self._engine.following(request_id, delivered) as trail:
            if body.get("stream"):
                answer = self._stream(served, body, request_id, trail, has_trail=has_trail)
            else:
                answer = self._unary(served, body, request_id, trail)
            async with aclosing(answer):
                async for item in answer:
                    yield item

    async def _stream(
        self, served: ServedShape, body: Mapping[str, Any], request_id: str, trail: TokenTrail, *, has_trail: bool
    ) -> AsyncGenerator[Payload | Working, None]:
        """The events of an answer, each with the tokens that it was made from; where it can't be resumed, with none."""
        is_opening, last = served.opens_empty, b""
        answer = cast("AsyncGenerator[str, None]", await served.answer(body, request_id))
        events = with_signs(answer, lambda: trail.seen) if served.keeps_back(body) else answer
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Working):
                    yield event
                    continue
                if (error := stream_error(event)) is not None:
                    raise error
                last = event.encode()
                yield Payload(last, trail.take() if has_trail and not is_opening else ())
                is_opening = False
        if last != DONE:
            yield Payload(DONE)  # Anthropic's streams have no such event of their own

    async def _unary(
        self, served: ServedShape, body: Mapping[str, Any], request_id: str, trail: TokenTrail
    ) -> AsyncGenerator[Payload | Working, None]:
        """The answer's body, and signs until then. vLLM turns a cancellation into a body, which nobody reads here."""
        answering = asyncio.ensure_future(served.answer(body, request_id))
        async with ended(answering):
            async for sign in signs(answering, lambda: trail.seen + self._engine.count_unfinished(request_id)):
                yield sign
        yield Payload(cast("bytes", answering.result()))


def _parsed(parser: FlexibleArgumentParser, line: list[str]) -> Namespace:
    """Parse engine arguments; argparse would end the process and leave the reason on stderr."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return cast("Namespace", parser.parse_args(line))
    except SystemExit as wrong:
        reason = said.getvalue().strip().rpartition("\n")[2]
        raise EngineStartFailed(f"engine_arguments: {reason}") from wrong
