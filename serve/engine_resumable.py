"""An engine that can take up a request in the middle, from the token ids that a client has already been given.

What goes on where a request is taken up:

- ``min_tokens``, ``max_tokens``, stop strings, stop tokens, repetition penalty, grammars: as in the uncut answer.
- Presence and frequency penalties, multi-token bad words and other limits that count the answer's own tokens
  would see only those made here: `serve.seam.why_not_resumable` refuses them.
- Sampling: the same distribution, other draws; a ``seed`` is varied by the number of tokens delivered, since
  the same draws again would favour the same tokens again. Greedy answers are equal up to the engine's rounding.
- Log probabilities of delivered tokens are placeholders, which `serve.seam.Seam` drops: they were sent already.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from copy import copy
from typing import Any

import numpy as np
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.core.sched.utils import check_stop
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector, RequestState
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import Request as ScheduledRequest

from serve.engine_ids import mesh_id
from serve.engine_scheduler import DELIVERED_COUNT
from serve.token_trail import TokenTrail

_SEED_STRIDE = 0x9E3779B97F4A7C15


class ResumableEngine(AsyncLLM):
    """`AsyncLLM` that keeps the token ids of answers, and can take one up where another replica left it.

    The delivered tokens are replayed through vLLM's output processor, so text, stop strings and parsers see one
    unbroken answer, while the engine itself computes them as prompt and samples only what comes after. Text is
    never re-tokenised.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._trails: dict[str, TokenTrail] = {}
        self._aborting: set[asyncio.Future[None]] = set()

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
            sampling_params.extra_args.pop(DELIVERED_COUNT, None)  # a client's own would mislead the scheduler
        trail = self._trails.get(mesh_id(request_id))
        async with aclosing(super().generate(prompt, sampling_params, request_id, **options)) as outputs:
            while (output := await anext(outputs, None)) is not None:
                if trail is not None:
                    trail.add(output.outputs[0].token_ids)
                yield output
                if trail is not None and trail.replay is not None:
                    await asyncio.sleep(0)  # a long replay is not to hold up the answers beside it
                    await trail.replay()
                if trail is not None and trail.is_at_length:
                    self._end_at_length(mesh_id(request_id), trail)

    def stop_at_length(self, request_id: str) -> None:
        """End the generations of a mesh id as ``max_tokens`` ends them; nothing happens where it isn't followed."""
        if (trail := self._trails.get(request_id)) is not None:
            trail.is_at_length = True
            self._end_at_length(request_id, trail)

    def _end_at_length(self, request_id: str, trail: TokenTrail) -> None:
        if ended := ended_at_length(self.output_processor, request_id, len(trail.delivered)):
            aborting = asyncio.ensure_future(self.engine_core.abort_requests_async(ended))
            self._aborting.add(aborting)
            aborting.add_done_callback(self._aborting.discard)

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


def ended_at_length(processor: OutputProcessor, request_id: str, delivered: int) -> list[str]:
    """End a mesh id's generations as the engine core does at their length; which of its requests it is to forget.

    A stream's ends with its first token after the ``delivered`` ones at the earliest: vLLM shows no end of an answer
    without a token, and what a client has must come again.
    """
    ending = [
        state.request_id
        for state in processor.request_states.values()
        if mesh_id(state.external_req_id) == request_id and _may_end(state, delivered)
    ]
    processor.process_outputs(
        [
            EngineCoreOutput(request_id=engine_id, new_token_ids=[], finish_reason=FinishReason.LENGTH)
            for engine_id in ending
        ]
    )
    return ending


def _may_end(state: RequestState, delivered: int) -> bool:
    if state.detokenizer is None:
        return False  # it embeds
    is_stream = state.output_kind is RequestOutputKind.DELTA
    return not is_stream or state.detokenizer.num_output_tokens() > delivered


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
    params.extra_args = {**(params.extra_args or {}), DELIVERED_COUNT: len(delivered)}
    continued = copy(request)
    continued.prompt_token_ids = [*request.prompt_token_ids, *delivered]
    continued.sampling_params = params
    return continued
