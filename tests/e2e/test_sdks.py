"""What the SDKs' users do, as far as a model of 135 million parameters can meet it; `test_shapes` has the rest."""

import asyncio
from typing import Literal

import anthropic
import openai
import pytest
from pydantic import BaseModel

pytestmark = pytest.mark.engine

_MODEL = "smollm2-135m-instruct"
_ASKED = [{"role": "user", "content": "Name three rivers."}]


class River(BaseModel):
    continent: Literal["Africa", "Asia", "Europe"]
    is_long: bool


@pytest.fixture(scope="module")
def client(mesh):
    with openai.OpenAI(base_url=f"{mesh.url}/v1", api_key=mesh.key, max_retries=0) as made:
        yield made


@pytest.fixture
async def async_client(mesh):
    async with openai.AsyncOpenAI(base_url=f"{mesh.url}/v1", api_key=mesh.key, max_retries=0) as made:
        yield made


def test_a_pydantic_class_is_parsed_from_what_the_model_may_only_say(client):
    answer = client.chat.completions.parse(
        model="auto", messages=_ASKED, response_format=River, max_tokens=48, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, River)
    assert answer.model_extra["energy"]["joules"] > 0


def test_a_pydantic_class_is_parsed_from_a_stream(client):
    with client.chat.completions.stream(
        model="auto", messages=_ASKED, response_format=River, max_tokens=48, temperature=0
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, River)


def test_n_choices_are_all_metered(client):
    answer = client.chat.completions.create(model="auto", messages=_ASKED, n=3, max_tokens=6, temperature=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens <= 18
    assert answer.model_extra["energy"]["joules"] > 0


def test_a_seed_repeats_an_answer(client):
    def ask(seed: int) -> str:
        answer = client.chat.completions.create(
            model="auto", messages=_ASKED, seed=seed, temperature=1.5, max_tokens=12
        )
        return answer.choices[0].message.content

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_stop_ends_an_answer_before_it(client):
    def ask(**options: object):
        made = client.chat.completions.create(model="auto", messages=_ASKED, temperature=0, max_tokens=24, **options)
        return made.choices[0]

    whole = ask().message.content
    word = whole.split()[2]
    stopped = ask(stop=[word])
    assert stopped.message.content == whole[: whole.index(word)]
    assert stopped.finish_reason == "stop"


def test_logprobs_have_one_entry_per_token(client):
    answer = client.chat.completions.create(model="auto", messages=_ASKED, logprobs=True, top_logprobs=2, max_tokens=5)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) >= 2 for entry in entries)


async def test_async_answers_and_streams_run_beside_each_other(async_client):
    async def streamed() -> str:
        stream = await async_client.chat.completions.create(
            model="auto", messages=_ASKED, stream=True, max_tokens=12, temperature=0
        )
        return "".join([each.delta.content or "" async for chunk in stream for each in chunk.choices])

    async def whole() -> str:
        made = await async_client.chat.completions.create(model="auto", messages=_ASKED, max_tokens=12, temperature=0)
        return made.choices[0].message.content

    pieces, text = await asyncio.gather(streamed(), whole())
    assert pieces
    assert text


async def test_an_async_anthropic_stream(mesh):
    async with (
        anthropic.AsyncAnthropic(base_url=mesh.url, api_key=mesh.key, max_retries=0) as claude,
        claude.messages.stream(model="auto", max_tokens=8, messages=_ASKED) as stream,
    ):
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert final.content[0].text == text
    assert final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == 8


def test_a_model_says_what_it_is_and_what_it_typically_takes(client):
    found = client.models.retrieve(_MODEL).model_extra
    assert (found["tier"], found["task"], found["context_tokens"]) == ("L3", "generate", 2048)
    assert found["typical_joules"]["per_1000_output_tokens"] > 0
