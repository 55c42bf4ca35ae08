"""The `openai` SDK, unmodified, in what its users do with it: two changed lines, and the joules come along."""

import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import openai
import pytest
import requests
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel
from running_echo import METERED

_MODEL = "smollm2-135m-instruct"
_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["place", "days"],
            "additionalProperties": False,
        },
    },
}
_CLOCK = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "What time it is.",
        "parameters": {"type": "object", "properties": {}},
    },
}


class Album(BaseModel):
    title: str
    year: int


@pytest.fixture
def client(echo_mesh) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{echo_mesh.url}/v1", api_key=echo_mesh.key, max_retries=0) as made:
        yield made


@pytest.fixture
async def async_client(echo_mesh) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{echo_mesh.url}/v1", api_key=echo_mesh.key, max_retries=0) as made:
        yield made


def _user(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


def _text(answer: ChatCompletion) -> list[str]:
    return (answer.choices[0].message.content or "").split()


def _pieces(chunks: list[ChatCompletionChunk], choice: int = 0) -> list[str]:
    deltas = [each for chunk in chunks for each in chunk.choices if each.index == choice]
    return "".join(delta.delta.content or "" for delta in deltas).split()


def _carriers(chunks: list) -> list:
    return [chunk for chunk in chunks if "energy" in (chunk.model_extra or {})]


def test_a_chat_answer_is_openais_with_its_energy_beside_it(client):
    answer = client.chat.completions.create(model="auto", messages=_user("one two three"))
    assert _text(answer) == ["one", "two", "three"]
    assert (answer.object, answer.model, answer.choices[0].finish_reason) == ("chat.completion", _MODEL, "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert {"joules", "method", "confidence", "carbon_mg", "receipt_id"} <= answer.model_extra["energy"].keys()


def test_every_header_of_the_mesh_comes_with_a_raw_response(client, echo_mesh):
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=_user(METERED))
    receipt = echo_mesh.receipt(raw.headers["X-Receipt-Id"])
    assert float(raw.headers["X-Energy-Joules"]) == receipt["energy"]["total_joules"] > 0
    assert raw.headers["X-Energy-Method"] == receipt["energy"]["method"]
    assert float(raw.headers["X-Carbon-mg"]) > 0
    assert raw.headers["X-Routed-To"].startswith("self-hosted/local/")
    assert raw.headers["X-Region"] == "local"
    assert raw.headers["X-Tier"] in ("L0", "L1", "L2", "L3")
    assert raw.parse().model_extra["energy"]["receipt_id"] == receipt["receipt_id"]


async def test_many_at_once_from_an_async_program(async_client):
    import asyncio

    asked = [async_client.chat.completions.create(model="auto", messages=_user(f"say {n}")) for n in range(8)]
    answers = await asyncio.gather(*asked)
    assert [_text(answer) for answer in answers] == [["say", str(n)] for n in range(8)]
    assert len({answer.model_extra["energy"]["receipt_id"] for answer in answers}) == 8


@pytest.mark.parametrize("include_usage", [True, False])
def test_a_stream_has_the_energy_on_its_last_chunk(client, include_usage):
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    with client.chat.completions.create(model="auto", messages=_user(METERED), stream=True, **options) as stream:
        chunks = list(stream)
    assert _pieces(chunks) == METERED.split()
    assert chunks[0].choices[0].delta.role == "assistant"
    assert _carriers(chunks) == [chunks[-1]]
    assert (chunks[-1].choices == []) is include_usage
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [include_usage]
    assert chunks[-1].model_extra["energy"]["joules"] > 0


async def test_an_async_stream(async_client):
    stream = await async_client.chat.completions.create(model="auto", messages=_user("one two three"), stream=True)
    chunks = [chunk async for chunk in stream]
    assert _pieces(chunks) == ["one", "two", "three"]
    assert _carriers(chunks) == [chunks[-1]]


def test_the_sdks_stream_helper_gathers_the_answer(client):
    with client.chat.completions.stream(model="auto", messages=_user("one two three")) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert kinds[-1] == "content.done"
    assert final.choices[0].message.content.split() == ["one", "two", "three"]


def test_a_stream_that_is_left_is_closed_and_the_next_request_is_answered(client):
    with client.chat.completions.create(model="auto", messages=_user("word " * 500), stream=True) as stream:
        next(iter(stream))
    assert _text(client.chat.completions.create(model="auto", messages=_user("still there"))) == ["still", "there"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_tool_that_must_be_called_is_called(client, choice):
    asked = f"weather of Paris in 3 days {METERED}"
    answer = client.chat.completions.create(model="auto", messages=_user(asked), tools=[_WEATHER], tool_choice=choice)
    (call,) = answer.choices[0].message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"place": asked, "days": 3}
    assert answer.choices[0].finish_reason in ("tool_calls", "stop")
    assert answer.model_extra["energy"]["joules"] > 0


def test_a_tool_call_and_its_result_make_a_whole_round(client):
    asked = _user("weather of Paris in 3 days")
    first = client.chat.completions.create(model="auto", messages=asked, tools=[_WEATHER])
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    (call,) = message.tool_calls
    told = [*asked, message, {"role": "tool", "tool_call_id": call.id, "content": "sunny and warm"}]
    second = client.chat.completions.create(model="auto", messages=told, tools=[_WEATHER])
    assert second.choices[0].message.tool_calls in (None, [])
    assert _text(second) == ["sunny", "and", "warm"]


def test_no_tool_is_called_where_none_may_be(client):
    answer = client.chat.completions.create(
        model="auto", messages=_user("weather of Paris in 3 days"), tools=[_WEATHER], tool_choice="none"
    )
    assert not answer.choices[0].message.tool_calls
    assert _text(answer)[:3] == ["weather", "of", "Paris"]


def test_two_tools_are_called_at_once_unless_that_is_forbidden(client):
    def called(**options: object) -> list[str]:
        answer = client.chat.completions.create(
            model="auto", messages=_user("weather and time"), tools=[_WEATHER, _CLOCK], **options
        )
        return [call.function.name for call in answer.choices[0].message.tool_calls]

    assert called() == ["get_weather", "get_time"]
    assert len(called(parallel_tool_calls=False)) == 1


def test_parallel_tool_calls_stream_and_the_energy_comes_last(client):
    with client.chat.completions.stream(
        model="auto", messages=_user("weather and time for 3 days"), tools=[_WEATHER, _CLOCK]
    ) as stream:
        chunks = [event.chunk for event in stream if event.type == "chunk"]
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["get_weather", "get_time"]
    assert json.loads(calls[0].function.arguments)["days"] == 3
    assert json.loads(calls[1].function.arguments) == {}
    assert len({call.id for call in calls}) == 2
    assert _carriers(chunks) == [chunks[-1]]


def test_a_pydantic_class_is_parsed_from_the_answer(client):
    answer = client.chat.completions.parse(model="auto", messages=_user("an album of 1977"), response_format=Album)
    assert answer.choices[0].message.parsed == Album(title="an album of 1977", year=1977)


def test_a_pydantic_class_is_parsed_from_a_stream(client):
    with client.chat.completions.stream(
        model="auto", messages=_user("an album of 1977"), response_format=Album
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == Album(title="an album of 1977", year=1977)


async def test_a_pydantic_tool_is_parsed_in_an_async_program(async_client):
    answer = await async_client.chat.completions.parse(
        model="auto",
        messages=_user("an album of 1977"),
        tools=[openai.pydantic_function_tool(Album)],
        tool_choice="required",
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.parsed_arguments == Album(title="an album of 1977", year=1977)


def test_json_mode_gives_a_json_object(client):
    answer = client.chat.completions.create(
        model="auto", messages=_user("JSON with 'setup' and 'punchline' keys"), response_format={"type": "json_object"}
    )
    assert set(json.loads(answer.choices[0].message.content)) == {"setup", "punchline"}


def test_n_choices_are_all_there_and_paid_once(client, echo_mesh):
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=_user("one two"), n=3)
    answer = raw.parse()
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(choice.message.content.split() == ["one", "two"] for choice in answer.choices)
    tokens = echo_mesh.receipt(raw.headers["X-Receipt-Id"])["workload"]["tokens"]
    assert tokens["output"] == answer.usage.completion_tokens == 6


def test_n_choices_stream_and_the_energy_comes_once(client):
    stream = client.chat.completions.create(model="auto", messages=_user("one two"), n=2, stream=True)
    chunks = list(stream)
    assert [_pieces(chunks, index) for index in (0, 1)] == [["one", "two"]] * 2
    assert _carriers(chunks) == [chunks[-1]]


def test_stop_ends_the_answer_before_it(client):
    answer = client.chat.completions.create(model="auto", messages=_user("one two three four"), stop=["three"])
    assert _text(answer) == ["one", "two"]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_limit_ends_the_answer_with_length(client, limit):
    answer = client.chat.completions.create(model="auto", messages=_user("one two three"), **{limit: 2})
    assert _text(answer) == ["one", "two"]
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2


def test_sampling_options_are_accepted(client):
    answer = client.chat.completions.create(
        model="auto",
        messages=_user("one"),
        seed=7,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logit_bias={"5": 1},
        user="somebody",
        metadata={"team": "blue"},
        store=False,
        service_tier="auto",
    )
    assert _text(answer) == ["one"]


def test_logprobs_have_one_entry_per_token(client):
    answer = client.chat.completions.create(model="auto", messages=_user("one two"), logprobs=True, top_logprobs=2)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == 2
    assert all(1 <= len(entry.top_logprobs) <= 2 and entry.logprob <= 0 for entry in entries)


def test_images_are_taken(client):
    parts = [{"type": "text", "text": "what is this"}, {"type": "image_url", "image_url": {"url": _PIXEL}}]
    assert _text(client.chat.completions.create(model="auto", messages=_user(parts))) == ["what", "is", "this"]


@pytest.mark.parametrize("prompt", [METERED, [METERED]])
def test_a_completion_is_openais_with_its_energy_beside_it(client, prompt):
    raw = client.completions.with_raw_response.create(model=_MODEL, prompt=prompt, max_tokens=64)
    answer = raw.parse()
    assert answer.object == "text_completion"
    assert answer.choices[0].text.split() == METERED.split()
    assert answer.model_extra["energy"]["joules"] == float(raw.headers["X-Energy-Joules"]) > 0


def test_several_prompts_are_answered_in_their_order(client):
    answer = client.completions.create(model=_MODEL, prompt=["one two", "three four"], max_tokens=16)
    assert [choice.text.split() for choice in answer.choices] == [["one", "two"], ["three", "four"]]
    assert [choice.index for choice in answer.choices] == [0, 1]


@pytest.mark.parametrize("include_usage", [True, False])
def test_a_completion_streams_with_the_energy_on_its_last_chunk(client, include_usage):
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    chunks = list(client.completions.create(model=_MODEL, prompt="one two", max_tokens=16, stream=True, **options))
    assert "".join(each.text for chunk in chunks for each in chunk.choices).split() == ["one", "two"]
    assert _carriers(chunks) == [chunks[-1]]
    assert (chunks[-1].usage is not None) is include_usage


def test_an_embedding_is_a_vector_with_its_energy_beside_it(client, echo_mesh):
    raw = client.embeddings.with_raw_response.create(model="auto", input=METERED.split(), encoding_format="float")
    answer = raw.parse()
    assert [each.index for each in answer.data] == list(range(len(METERED.split())))
    assert all(isinstance(number, float) for each in answer.data for number in each.embedding)
    assert answer.data[0].embedding != answer.data[1].embedding
    assert answer.model_extra["energy"]["joules"] > 0
    tokens = echo_mesh.receipt(raw.headers["X-Receipt-Id"])["workload"]["tokens"]
    assert (tokens["input"], tokens["output"]) == (answer.usage.prompt_tokens, 0)


def test_the_sdks_own_base64_embeddings_are_the_same_numbers(client):
    """Unless told otherwise, the SDK asks for base64 and decodes it by itself."""
    floats = client.embeddings.create(model="auto", input="one", encoding_format="float").data[0].embedding
    decoded = client.embeddings.create(model="auto", input="one").data[0].embedding
    encoded = client.embeddings.create(model="auto", input="one", encoding_format="base64").data[0].embedding
    assert decoded == pytest.approx(floats, rel=1e-6)
    assert len(base64.b64decode(encoded)) == 4 * len(floats)


def test_models_are_listed_and_found(client):
    models = {model.id: model for model in client.models.list()}
    assert {"auto", _MODEL} <= models.keys()
    found = client.models.retrieve(_MODEL)
    assert (found.id, found.object, found.owned_by) == (_MODEL, "model", models[_MODEL].owned_by)
    assert found.model_extra["tier"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_extra_headers_reach_the_receipt(client, echo_mesh):
    raw = client.chat.completions.with_raw_response.create(
        model="auto",
        messages=_user("one"),
        extra_headers={"X-Customer-Tag": "team blue", "X-Workload": "nightly/etl", "X-Region": "local"},
    )
    workload = echo_mesh.receipt(raw.headers["X-Receipt-Id"])["workload"]
    assert (workload["customer_tag"], workload["name"]) == ("team blue", "nightly/etl")


@contextmanager
def _raises(expected: type[openai.APIStatusError], status: int, code: str) -> Iterator[None]:
    """What the SDK raises says the envelope's words, and names the request both ways it knows."""
    with pytest.raises(expected) as raised:
        yield
    error = raised.value
    assert type(error) is expected
    assert (error.status_code, error.code) == (status, code)
    assert error.type
    assert error.body["message"]
    assert error.request_id == error.body["request_id"]


def test_each_status_is_the_sdks_own_exception(client, echo_mesh):
    chat = client.chat.completions
    with _raises(openai.BadRequestError, 400, "bad_request"):
        chat.create(model="auto", messages=_user("!refuse this"))
    with _raises(openai.AuthenticationError, 401, "invalid_api_key"):
        client.with_options(api_key="jc_LIVE_wrong").models.list()
    with _raises(openai.NotFoundError, 404, "not_found"):
        chat.create(model="gpt-9", messages=_user("x"))
    with _raises(openai.APIStatusError, 413, "payload_too_large"):
        chat.create(model="auto", messages=_user("x" * (10 * 1024 * 1024)))
    with _raises(openai.UnprocessableEntityError, 422, "unprocessable_entity"):
        chat.create(model="auto", messages=[])
    with _raises(openai.InternalServerError, 502, "upstream_error"):
        chat.create(model="auto", messages=_user("!break please now"))


def _new_key(mesh, *scopes: str) -> dict:
    made = requests.post(
        f"{mesh.url}/v1/keys", json={"name": "sdk", "scopes": scopes}, headers=mesh.headers, timeout=30
    )
    made.raise_for_status()
    return made.json()


def test_a_key_without_the_scope_is_denied_and_one_that_is_revoked_is_unknown(client, echo_mesh):
    key = _new_key(echo_mesh, "read")
    other = client.with_options(api_key=key["key"])
    assert other.models.list().data
    with _raises(openai.PermissionDeniedError, 403, "insufficient_scope"):
        other.chat.completions.create(model="auto", messages=_user("x"))
    requests.delete(f"{echo_mesh.url}/v1/keys/{key['id']}", headers=echo_mesh.headers, timeout=30).raise_for_status()
    with _raises(openai.AuthenticationError, 401, "invalid_api_key"):
        other.models.list()


def test_a_key_whose_energy_is_used_up_is_rate_limited_and_told_until_when(client, echo_mesh):
    key = _new_key(echo_mesh, "inference")
    budget = {"joules": 0, "window": "hour"}
    url = f"{echo_mesh.url}/v1/budgets/key/{key['id']}"
    requests.put(url, json=budget, headers=echo_mesh.headers, timeout=30).raise_for_status()
    with pytest.raises(openai.RateLimitError) as raised:
        client.with_options(api_key=key["key"]).chat.completions.create(model="auto", messages=_user("x"))
    assert raised.value.code == "energy_budget_exceeded"
    assert 0 < int(raised.value.response.headers["Retry-After"]) <= 3600


def test_a_repeated_idempotency_key_is_a_conflict_with_the_first_receipt(client):
    headers = {"Idempotency-Key": "openai-sdk-once"}
    first = client.chat.completions.create(model="auto", messages=_user("once"), extra_headers=headers)
    with pytest.raises(openai.ConflictError) as raised:
        client.chat.completions.create(model="auto", messages=_user("once"), extra_headers=headers)
    assert raised.value.code == "conflict"
    assert first.model_extra["energy"]["receipt_id"] in raised.value.body["message"]


def test_a_stream_that_breaks_raises_the_sdks_error(client):
    with pytest.raises(openai.APIError) as raised:
        list(client.chat.completions.create(model="auto", messages=_user("!break after a word"), stream=True))
    assert raised.value.code == "upstream_error"
