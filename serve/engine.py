"""The one module that touches vLLM: an engine with two seams, and vLLM's own chat serving on top of it.

Seam one, `MeteredScheduler`, reports per step which request had how many tokens computed, out of
the engine's child process and straight to the host meter. Seam two, `ResumableEngine`, can take up
a request in the middle, from the token ids that a client has already been given. What goes on where a
request is taken up:

- ``min_tokens``, ``max_tokens``, stop strings, stop tokens, repetition penalty, grammars: as in the uncut answer.
- Presence and frequency penalties, multi-token bad words and other limits that count the answer's own tokens
  would see only those made here: `serve.seam.why_not_resumable` refuses them.
- Sampling: the same distribution, other draws; a ``seed`` is varied by the number of tokens delivered, since
  the same draws again would favour the same tokens again. Greedy answers are equal up to the engine's rounding.
- Log probabilities of delivered tokens are placeholders, which `serve.seam.Seam` drops: they were sent already.
"""

import asyncio
import contextlib
import io
import re
import time
from argparse import Namespace
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from copy import copy
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import numpy as np
from pydantic import ValidationError
from starlette.datastructures import State
from starlette.requests import Request
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMClientError
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.utils import check_stop
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request as ScheduledRequest
from vllm.v1.request import RequestStatus

from metering.engine_steps import RequestWork, StepReporter
from serve.engine_spec import VllmSpec
from serve.errors import EngineBroke, EngineStartFailed, RequestRefused
from serve.messages import Payload, Working
from serve.seam import why_not_resumable
from serve.shapes import Shape
from serve.signs_of_work import ended, signs, with_signs
from serve.token_trail import TokenTrail

_STREAM_ERROR = 'data: {"error"'
_MESH_ID = re.compile(r"[0-9a-f]{32}")
_DELIVERED_COUNT = "joule_mesh_delivered_tokens"
_SEED_STRIDE = 0x9E3779B97F4A7C15


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

    def _handle_blocked_waiting_request(self, request: ScheduledRequest) -> bool:
        """Lead a resumed request's grammar over the tokens already delivered, as soon as it is compiled."""
        awaits_grammar = request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        proceeds = bool(super()._handle_blocked_waiting_request(request))
        delivered = _delivered_tokens(request) if proceeds and awaits_grammar else []
        if not self.structured_output_manager.accept_tokens(request, delivered):
            # vLLM ends such a request as it ends one whose grammar doesn't compile: with an error.
            self.grammar_compile_error_reqs.add(request.request_id)
            return False
        return proceeds

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


def _delivered_tokens(request: ScheduledRequest) -> list[int]:
    """Those tokens of a scheduled request's prompt that are the beginning of its answer."""
    params = request.sampling_params
    count = 0 if params is None else (params.extra_args or {}).get(_DELIVERED_COUNT, 0)
    return list((request.prompt_token_ids or ())[-count:]) if count else []


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
    """`AsyncLLM` that keeps the token ids of answers, and can take one up where another replica left it.

    The delivered tokens are replayed through vLLM's output processor, so text, stop strings and parsers see one
    unbroken answer, while the engine itself computes them as prompt and samples only what comes after. Text is
    never re-tokenised.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._trails: dict[str, TokenTrail] = {}

    @contextmanager
    def following(self, request_id: str, delivered: Sequence[int]) -> Iterator[TokenTrail]:
        """Keep the trail of the request with this mesh id, which goes on after the ``delivered`` token ids.

        An earlier attempt at it may still be on its way out here: the later one has the trail.
        """
        trail = self._trails[request_id] = TokenTrail(delivered)
        try:
            yield trail
        finally:
            if self._trails.get(request_id) is trail:
                del self._trails[request_id]

    def count_unfinished(self, request_id: str) -> int:
        """How many tokens the unfinished generations of a mesh id have come to."""
        return sum(
            state.detokenizer.num_output_tokens()
            for state in self.output_processor.request_states.values()
            if state.detokenizer is not None and mesh_id(state.external_req_id) == request_id
        )

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As `AsyncLLM.generate`; delivered tokens come one at a time, each after the one before was taken in."""
        if sampling_params.extra_args:
            sampling_params.extra_args.pop(_DELIVERED_COUNT, None)  # a client's own would mislead the scheduler
        trail = self._trails.get(mesh_id(request_id))
        async with aclosing(super().generate(prompt, sampling_params, request_id, **options)) as outputs:
            while (output := await anext(outputs, None)) is not None:
                if trail is not None:
                    trail.add(output.outputs[0].token_ids)
                yield output
                if trail is not None and trail.replay is not None:
                    await asyncio.sleep(0)  # a long replay is not to hold up the answers beside it
                    await trail.replay()

    async def _add_request(
        self,
        request: EngineCoreRequest,
        prompt: str | None,
        parent_req: ParentRequest | None,
        index: int,
        queue: RequestOutputCollector,
    ) -> None:
        trail = self._trails.get(mesh_id(request.request_id))
        if trail is None or not trail.delivered:
            await super()._add_request(request, prompt, parent_req, index, queue)
            return
        self.check_admission(request_id=request.request_id)
        self.output_processor.add_request(request, prompt, parent_req, index, queue)
        trail.replay = Replay(self, request, trail.delivered, queue).advance
        await trail.replay()


class Replay:
    """Delivered tokens on their way through the output processor; then the rest of the answer, from the engine core.

    One token waits in the queue at a time: vLLM would merge a second one, or the engine core's own, into its output,
    and parsers would see other pieces than in an uncut stream. A token that ends the answer ends it here as it
    would in the engine core, and then nothing is computed.
    """

    def __init__(
        self,
        engine: ResumableEngine,
        request: EngineCoreRequest,
        delivered: Sequence[int],
        queue: RequestOutputCollector,
    ) -> None:
        self._engine = engine
        self._request = request
        self._delivered = delivered
        self._queue = queue
        self._left = iter(delivered)
        self._scheduled = ScheduledRequest.from_engine_core_request(request, None)
        self._is_over = False

    async def advance(self) -> None:
        """Have something wait in the queue, or the engine core at work on it."""
        processor = self._engine.output_processor
        while self._queue.output is None and not self._is_over:
            token = next(self._left, None)
            if token is None:
                self._is_over = True
                if (state := processor.request_states.get(self._request.request_id)) is None:
                    return  # it was aborted meanwhile
                state.is_prefilling = True
                await self._engine.engine_core.add_request_async(_continuing(self._request, self._delivered))
            else:
                processor.process_outputs([self._output(token)])
                self._is_over = not processor.has_request(self._request.request_id)

    def _output(self, token: int) -> EngineCoreOutput:
        """What the engine core would have said with this token."""
        self._scheduled.append_output_token_ids(token)
        is_last = check_stop(self._scheduled, self._engine.model_config.max_model_len)
        params = self._scheduled.sampling_params
        return EngineCoreOutput(
            request_id=self._request.request_id,
            new_token_ids=[token],
            new_logprobs=_placeholder_logprobs(token) if params and params.num_logprobs is not None else None,
            finish_reason=self._scheduled.get_finished_reason() if is_last else None,
            stop_reason=self._scheduled.stop_reason,
        )


def _placeholder_logprobs(token: int) -> LogprobsLists:
    """In place of a delivered token's log probability, which the client has and this engine never knew."""
    return LogprobsLists(np.array([[token]]), np.zeros((1, 1)), np.ones(1, dtype=int))


def _continuing(request: EngineCoreRequest, delivered: Sequence[int]) -> EngineCoreRequest:
    """The same request with the delivered tokens, fewer than ``max_tokens``, moved from the answer into the prompt."""
    assert request.sampling_params is not None  # a chat completion of text has all three
    assert request.sampling_params.max_tokens is not None
    assert request.prompt_token_ids is not None
    params = request.sampling_params.clone()
    params.max_tokens = request.sampling_params.max_tokens - len(delivered)
    params.min_tokens = max(0, params.min_tokens - len(delivered))
    params.seed = None if params.seed is None else (params.seed + len(delivered) * _SEED_STRIDE) % 2**63
    params.extra_args = {**(params.extra_args or {}), _DELIVERED_COUNT: len(delivered)}
    continued = copy(request)
    continued.prompt_token_ids = [*request.prompt_token_ids, *delivered]
    continued.sampling_params = params
    return continued


class VllmEngine:
    """A started engine and vLLM's chat serving around it."""

    def __init__(self, engine: ResumableEngine, state: State) -> None:
        self._engine = engine
        self._state = state

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
        return cls(engine, state)

    async def check(self) -> None:
        """Raise vLLM's error if the engine's child process is dead."""
        await self._engine.check_health()

    def stop(self) -> None:
        """Stop the engine's child processes."""
        self._engine.shutdown(timeout=2)

    async def answer(
        self, request_id: str, shape: Shape, body: Mapping[str, Any], delivered: Sequence[int] = ()
    ) -> AsyncGenerator[Payload | Working, None]:
        """As `serve.engine_spec.Engine` promises; the answer's id is ``chatcmpl-`` and ``request_id``, 32 hex digits.

        Raises:
            RequestRefused: vLLM found the request wrong, or it can't be taken up after ``delivered``.
            EngineBroke: vLLM failed.
        """
        assert shape is Shape.CHAT, shape
        request = _validated(body)
        if delivered and (reason := why_not_resumable(body)) is not None:
            raise RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, f"the answer can't be resumed: {reason}")
        with self._engine.following(request_id, delivered) as trail:
            answer = (self._stream if request.stream else self._unary)(request, request_id, trail)
            async with aclosing(answer):
                async for item in answer:
                    yield item

    async def _stream(
        self, request: ChatCompletionRequest, request_id: str, trail: TokenTrail
    ) -> AsyncGenerator[Payload | Working, None]:
        """The events of an answer, each with the tokens that it was made from; beam search and ``n`` > 1 have none.

        The first event only names the role, before vLLM has read the first token that it was handed.
        """
        has_trail = request.n in (None, 1) and not request.use_beam_search
        is_first = True
        answer = cast("AsyncGenerator[str, None]", await self._answer(request, request_id))
        # A parser may keep events back for long: of a tool call, of hidden reasoning.
        keeps_back = self._state.openai_serving_chat.parser_cls is not None
        events = with_signs(answer, lambda: trail.seen) if keeps_back else answer
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Working):
                    yield event
                    continue
                if event.startswith(_STREAM_ERROR):
                    raise _as_error(ErrorResponse.model_validate_json(event.removeprefix("data: ")))
                yield Payload(event.encode(), trail.take() if has_trail and not is_first else ())
                is_first = False

    async def _unary(
        self, request: ChatCompletionRequest, request_id: str, trail: TokenTrail
    ) -> AsyncGenerator[Payload | Working, None]:
        """The answer's body, and signs until then. vLLM turns a cancellation into a body, which nobody reads here."""
        answering = asyncio.ensure_future(self._answer(request, request_id))
        async with ended(answering):
            async for sign in signs(answering, lambda: trail.seen + self._engine.count_unfinished(request_id)):
                yield sign
        yield Payload(cast("ChatCompletionResponse", answering.result()).model_dump_json().encode())

    async def _answer(
        self, request: ChatCompletionRequest, request_id: str
    ) -> AsyncGenerator[str, None] | ChatCompletionResponse:
        raw = Request({"type": "http", "headers": [(b"x-request-id", request_id.encode())], "state": {}})
        try:
            answer = await self._state.openai_serving_chat.create_chat_completion(request, raw)
        except ValidationError as wrong:
            raise _invalid(wrong) from wrong
        except (VLLMClientError, ValueError, TypeError, OverflowError) as wrong:
            message = str(wrong).partition("\n")[0]
            raise RequestRefused(HTTPStatus.BAD_REQUEST, message, getattr(wrong, "parameter", None)) from wrong
        if isinstance(answer, ErrorResponse):
            raise _as_error(answer)
        return cast("AsyncGenerator[str, None] | ChatCompletionResponse", answer)


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
