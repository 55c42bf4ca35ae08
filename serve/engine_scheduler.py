"""vLLM's scheduler, telling the host meter per step which request had how many tokens computed.

It runs in the engine's child process and reports straight out of it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request as ScheduledRequest
from vllm.v1.request import RequestStatus

from metering.engine_steps import RequestWork, StepReporter
from serve.engine_ids import PromptTotals, mesh_id

DELIVERED_COUNT: Final = "joule_mesh_delivered_tokens"
"""Among a request's extra arguments: how many tokens at its prompt's end are the beginning of its answer."""


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
        self._prompts = PromptTotals()

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
            prompt_tokens=self._prompts.with_prompt(engine_id, request.num_prompt_tokens)
            if prefill
            else request.num_prompt_tokens,
            prefill_tokens=prefill,
            cached_tokens=cached_tokens,
            decode_tokens=tokens - prefill,
            context_tokens=request.num_computed_tokens,
        )


def _delivered_tokens(request: ScheduledRequest) -> list[int]:
    """Those tokens of a scheduled request's prompt that are the beginning of its answer."""
    params = request.sampling_params
    count = 0 if params is None else (params.extra_args or {}).get(DELIVERED_COUNT, 0)
    return list((request.prompt_token_ids or ())[-count:]) if count else []


def _produced(outputs: Mapping[int, EngineCoreOutputs]) -> dict[str, int]:
    """Tokens that the step sampled, by request: a step scheduled ahead of a stop samples none for it."""
    produced: dict[str, int] = {}
    for group in outputs.values():
        for output in group.outputs:
            request_id = mesh_id(output.request_id)
            produced[request_id] = produced.get(request_id, 0) + len(output.new_token_ids)
    return produced
