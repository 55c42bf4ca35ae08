"""The one module that touches vLLM: an engine with two seams, and vLLM's own chat serving on top of it.

Seam one, `MeteredScheduler`, reports per step which request had how many tokens computed, out of
the engine's child process and straight to the host meter. Seam two, `ResumableEngine`, can take up
a request in the middle, from the token ids that a client has already been given.
"""

import asyncio
import contextlib
import io
import re
import time
from argparse import Namespace
from collections.abc import AsyncGenerator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from pydantic import ValidationError
from starlette.datastructures import State
from starlette.requests import Request
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMClientError
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.outputs import ModelRunnerOutput

from metering.engine_steps import RequestWork, StepReporter
from serve.engine_spec import VllmSpec
from serve.errors import EngineBroke, EngineStartFailed, RequestRefused

_STREAM_ERROR = 'data: {"error"'
_MESH_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class MeterSeam:
    """Where the engine's child process reports its steps; travels in vLLM's ``additional_config``."""

    socket_path: str
    replica: str

    def compute_hash(self) -> str:
        """Keep the seam out of vLLM's compilation cache key: it changes nothing that is compiled."""
        return ""


class MeteredScheduler(AsyncScheduler):
    """vLLM's scheduler, reporting what each engine step computes for which request.

    It must subclass `AsyncScheduler`: vLLM switches asynchronous scheduling off for any other base.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        seam = cast("MeterSeam", self.vllm_config.additional_config)
        self._reporter = StepReporter(seam.socket_path, seam.replica)
        self._step = 0
        self._step_of_output: dict[int, int] = {}

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:  # noqa: FBT001, FBT002 - vLLM's signature
        """Schedule one step and report its work as begun."""
        output = super().schedule(throttle_prefills)
        if output.num_scheduled_tokens:
            self._step += 1
            self._step_of_output[id(output)] = self._step
            self._reporter.began(self._step, time.monotonic_ns(), self._work_of(output))
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Report the step as ended before its tokens leave the engine, so that a settlement sees it."""
        ended_ns = time.monotonic_ns()
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        step = self._step_of_output.pop(id(scheduler_output), None)
        if step is not None:
            self._reporter.ended(step, ended_ns, _produced(outputs))
        return outputs

    def _work_of(self, output: SchedulerOutput) -> tuple[RequestWork, ...]:
        """Read each request after scheduling: ``num_computed_tokens`` already counts this step."""
        cached = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        return tuple(
            self._request_work(request_id, tokens, cached.get(request_id, 0))
            for request_id, tokens in output.num_scheduled_tokens.items()
        )

    def _request_work(self, engine_id: str, tokens: int, cached_tokens: int) -> RequestWork:
        request = self.requests[engine_id]
        computed_before = request.num_computed_tokens - tokens
        prefill = max(0, min(tokens, request.num_prompt_tokens - computed_before))
        return RequestWork(
            request_id=mesh_id(engine_id),
            prompt_tokens=request.num_prompt_tokens,
            prefill_tokens=prefill,
            cached_tokens=cached_tokens,
            decode_tokens=tokens - prefill,
            context_tokens=request.num_computed_tokens,
        )


def _produced(outputs: Mapping[int, EngineCoreOutputs]) -> dict[str, int]:
    """Tokens that the step sampled, by request: a step scheduled ahead of a stop samples none for it."""
    produced: dict[str, int] = {}
    for group in outputs.values():
        for output in group.outputs:
            request_id = mesh_id(output.request_id)
            produced[request_id] = produced.get(request_id, 0) + len(output.new_token_ids)
    return produced


def mesh_id(engine_id: str) -> str:
    """The mesh's 32 hex digits inside an engine request id (``chatcmpl-<id>-<suffix>``, ``0_chatcmpl-<id>``).

    A request that the mesh didn't send (vLLM's own warm-up) keeps its engine id.
    """
    found = _MESH_ID.search(engine_id)
    return found.group() if found else engine_id


class ResumableEngine(AsyncLLM):
    """`AsyncLLM` that can take up a request after tokens which another replica already delivered.

    `resume_from` names the delivered tokens before the request is generated. They are replayed through
    vLLM's output processor, so text, stop strings and tool parsing see one unbroken answer, while the engine
    itself computes them as prompt and samples only what comes after. Text is never re-tokenised.
    Penalties on output tokens see the replayed ones as prompt; ``n > 1`` cannot be resumed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._delivered: dict[str, Sequence[int]] = {}

    def resume_from(self, request_id: str, delivered: Sequence[int]) -> None:
        """Make the next generation with this mesh id continue after ``delivered`` token ids."""
        self._delivered[request_id] = delivered

    async def _add_request(
        self,
        request: EngineCoreRequest,
        prompt: str | None,
        parent_req: ParentRequest | None,
        index: int,
        queue: RequestOutputCollector,
    ) -> None:
        delivered = self._delivered.pop(mesh_id(request.request_id), ())
        if not delivered:
            await super()._add_request(request, prompt, parent_req, index, queue)
            return
        self.check_admission(request_id=request.request_id)
        self.output_processor.add_request(request, prompt, parent_req, index, queue)
        self.output_processor.process_outputs(
            [EngineCoreOutput(request_id=request.request_id, new_token_ids=list(delivered))]
        )
        if self.output_processor.has_request(request.request_id):
            await self.engine_core.add_request_async(_continuing(request, delivered))


def _continuing(request: EngineCoreRequest, delivered: Sequence[int]) -> EngineCoreRequest:
    """The same request with the delivered tokens moved from the answer into the prompt.

    Raises:
        RequestRefused: nothing is left to generate, or the request has no token prompt to continue.
    """
    params = request.sampling_params
    if params is None or request.prompt_token_ids is None or params.max_tokens is None:
        raise RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, "only a text generation can be resumed", None)
    remaining = params.max_tokens - len(delivered)
    if remaining < 1:
        raise RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, "the answer had already reached max_tokens", None)
    continued = copy(request)
    continued.prompt_token_ids = [*request.prompt_token_ids, *delivered]
    continued.sampling_params = params.clone()
    continued.sampling_params.max_tokens = remaining
    continued.sampling_params.min_tokens = max(0, params.min_tokens - len(delivered))
    return continued


class ChatEngine:
    """A started engine and vLLM's chat serving around it."""

    def __init__(self, engine: ResumableEngine, state: State) -> None:
        self._engine = engine
        self._state = state

    @classmethod
    async def start(cls, spec: VllmSpec, weights: str, meter_socket: str, replica: str) -> "ChatEngine":
        """Start the engine's child process and wait until it is ready; errors are vLLM's own."""
        parser = make_arg_parser(FlexibleArgumentParser())
        namespace = _parsed(parser, spec.command_line(weights))
        arguments = AsyncEngineArgs.from_cli_args(namespace)
        arguments.additional_config = MeterSeam(meter_socket, replica)
        arguments.scheduler_cls = f"{MeteredScheduler.__module__}.{MeteredScheduler.__qualname__}"
        engine = cast("ResumableEngine", ResumableEngine.from_engine_args(arguments))
        state = State()
        await init_app_state(engine, state, namespace, await engine.get_supported_tasks())
        return cls(engine, state)

    async def check(self) -> None:
        """Raise vLLM's error if the engine's child process is dead."""
        await self._engine.check_health()

    def stop(self) -> None:
        """Stop the engine's child processes."""
        self._engine.shutdown(timeout=2)

    async def chat(
        self, request_id: str, body: Mapping[str, Any], delivered: Sequence[int] = ()
    ) -> AsyncGenerator[bytes, None]:
        """Answer one chat completion: SSE events while streaming, else one JSON body.

        Args:
            request_id: 32 hex digits; the answer's id is ``chatcmpl-`` and this.
            body: the client's request as parsed JSON.
            delivered: token ids of an earlier attempt's answer to continue after.

        Raises:
            RequestRefused: vLLM found the request wrong.
        """
        request = _validated(body)
        if delivered:
            self._engine.resume_from(request_id, delivered)
        raw = Request({"type": "http", "headers": [(b"x-request-id", request_id.encode())], "state": {}})
        try:
            answer = await self._state.openai_serving_chat.create_chat_completion(request, raw)
        except ValidationError as wrong:
            raise _invalid(wrong) from wrong
        except (VLLMClientError, ValueError, TypeError, OverflowError) as wrong:
            message = str(wrong).partition("\n")[0]
            raise RequestRefused(HTTPStatus.BAD_REQUEST, message, getattr(wrong, "parameter", None)) from wrong
        if (task := asyncio.current_task()) is not None and task.cancelling():
            # vLLM turns a cancellation of a unary request into an answer; the request was cut off, not refused.
            raise asyncio.CancelledError
        if isinstance(answer, ErrorResponse):
            raise _as_error(answer)
        if isinstance(answer, ChatCompletionResponse):
            yield answer.model_dump_json().encode()
            return
        async for event in answer:
            if event.startswith(_STREAM_ERROR):
                raise _as_error(ErrorResponse.model_validate_json(event.removeprefix("data: ")))
            yield event.encode()


def _as_error(answer: ErrorResponse) -> RequestRefused | EngineBroke:
    """vLLM answers its own failures as it answers wrong requests, in the middle of a stream too."""
    status = HTTPStatus(answer.error.code)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return EngineBroke(answer.error.type)
    return RequestRefused(status, answer.error.message, answer.error.param)


def _validated(body: Mapping[str, Any]) -> ChatCompletionRequest:
    try:
        return ChatCompletionRequest.model_validate(body)
    except ValidationError as wrong:
        raise _invalid(wrong) from wrong


def _invalid(wrong: ValidationError) -> RequestRefused:
    """The first fault, in one line, without the value: that may be a prompt."""
    fault = wrong.errors(include_url=False, include_input=False, include_context=False)[0]
    param = ".".join(str(part) for part in fault["loc"]) or None
    return RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, f"{param or 'body'}: {fault['msg']}", param)


def _parsed(parser: FlexibleArgumentParser, line: list[str]) -> Namespace:
    """Parse engine arguments; argparse would end the process and leave the reason on stderr."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return cast("Namespace", parser.parse_args(line))
    except SystemExit as wrong:
        reason = said.getvalue().strip().rpartition("\n")[2]
        raise EngineStartFailed(f"engine_arguments: {reason}") from wrong
