"""The `anthropic` SDK, unmodified but for its ``base_url``: it sends `x-api-key` and expects Anthropic's shapes."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from running_echo import METERED

_MODEL = "smollm2-135m-instruct"
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
_WEATHER = {
    "name": "get_weather",
    "description": "The weather of a place.",
    "input_schema": {
        "type": "object",
        "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["place", "days"],
    },
}
_CLOCK = {"name": "get_time", "description": "What time it is.", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture
def client(echo_mesh) -> Iterator[Anthropic]:
    with Anthropic(base_url=echo_mesh.url, api_key=echo_mesh.key, max_retries=0) as made:
        yield made


@pytest.fixture
async def async_client(echo_mesh) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=echo_mesh.url, api_key=echo_mesh.key, max_retries=0) as made:
        yield made


def _asking(content: object, **more: object) -> dict:
    return {"model": "auto", "max_tokens": 64, "messages": [{"role": "user", "content": content}], **more}


def test_a_message_is_anthropics_with_its_energy_beside_it(client):
    answer = client.messages.create(**_asking("one two three", system="Be brief."))
    assert (answer.type, answer.role, answer.model, answer.stop_reason) == ("message", "assistant", _MODEL, "end_turn")
    (block,) = answer.content
    assert block.text.split() == ["one", "two", "three"]
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 3)
    assert {"joules", "method", "confidence", "carbon_mg", "receipt_id"} <= answer.model_extra["energy"].keys()


def test_headers_body_and_receipt_agree(client, echo_mesh):
    raw = client.messages.with_raw_response.create(**_asking(METERED))
    receipt = echo_mesh.receipt(raw.headers["X-Receipt-Id"])
    answer = raw.parse()
    energy = answer.model_extra["energy"]
    assert answer.id == receipt["workload"]["id"] == f"msg_{receipt['receipt_id'].removeprefix('rcpt_')}"
    assert float(raw.headers["X-Energy-Joules"]) == energy["joules"] == receipt["energy"]["total_joules"] > 0
    assert receipt["workload"]["tokens"]["output"] == len(METERED.split())
    assert raw.headers["X-Region"] == "local"
    assert raw.headers["request-id"]


def test_a_bearer_token_opens_the_door_too(echo_mesh):
    with Anthropic(base_url=echo_mesh.url, auth_token=echo_mesh.key, max_retries=0) as client:
        assert client.messages.create(**_asking("one")).content[0].text.split() == ["one"]


async def test_an_async_program_gets_its_answer(async_client):
    answer = await async_client.messages.create(**_asking([{"type": "text", "text": "one two"}]))
    assert answer.content[0].text.split() == ["one", "two"]


def test_the_stream_helper_gathers_the_message_and_the_energy_is_on_its_delta(client):
    words = METERED.split()
    with client.messages.stream(**_asking(METERED)) as stream:
        seen = list(stream)
        final = stream.get_final_message()
    assert "".join(event.text for event in seen if event.type == "text").split() == words
    assert final.content[0].text.split() == words
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == len(words)
    (delta,) = [event for event in seen if event.type == "message_delta"]
    assert delta.model_extra["energy"]["joules"] > 0
    assert [event.type for event in seen].count("message_stop") == 1


def test_raw_events_come_in_anthropics_order(client):
    with client.messages.create(**_asking("one two"), stream=True) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "message_start"
    assert kinds[1] == "content_block_start"
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


async def test_an_async_stream_of_text(async_client):
    async with async_client.messages.stream(**_asking("one two three")) as stream:
        pieces = [text async for text in stream.text_stream]
    assert "".join(pieces).split() == ["one", "two", "three"]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_tool_that_must_be_used_is_used(client, choice):
    answer = client.messages.create(**_asking("weather of Paris in 3 days", tools=[_WEATHER], tool_choice=choice))
    (block,) = [block for block in answer.content if block.type == "tool_use"]
    assert (block.name, block.input) == ("get_weather", {"place": "weather of Paris in 3 days", "days": 3})


def test_a_tool_use_and_its_result_make_a_whole_round(client):
    asked = _asking("weather of Paris in 3 days", tools=[_WEATHER])
    first = client.messages.create(**asked)
    assert first.stop_reason == "tool_use"
    (use,) = [block for block in first.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny and warm"}
    told = [
        *asked["messages"],
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    second = client.messages.create(**{**asked, "messages": told})
    assert second.stop_reason == "end_turn"
    assert second.content[0].text.split() == ["sunny", "and", "warm"]


def test_parallel_tool_uses_stream(client):
    with client.messages.stream(**_asking("weather and time for 3 days", tools=[_WEATHER, _CLOCK])) as stream:
        final = stream.get_final_message()
    uses = [block for block in final.content if block.type == "tool_use"]
    assert [use.name for use in uses] == ["get_weather", "get_time"]
    assert uses[0].input["days"] == 3
    assert len({use.id for use in uses}) == 2
    assert final.stop_reason == "tool_use"


def test_one_tool_at_a_time_where_that_is_asked_for(client):
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    answer = client.messages.create(**_asking("weather and time", tools=[_WEATHER, _CLOCK], tool_choice=choice))
    assert len([block for block in answer.content if block.type == "tool_use"]) == 1


def test_a_stop_sequence_ends_the_answer_and_is_named(client):
    answer = client.messages.create(**_asking("one two three four", stop_sequences=["three"]))
    assert answer.content[0].text.split() == ["one", "two"]
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "three")


def test_max_tokens_ends_the_answer(client):
    answer = client.messages.create(**{**_asking("one two three"), "max_tokens": 2})
    assert answer.content[0].text.split() == ["one", "two"]
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 2)


def test_system_blocks_sampling_options_and_images_are_taken(client):
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": _PIXEL}}
    answer = client.messages.create(
        **_asking(
            [{"type": "text", "text": "what is this", "cache_control": {"type": "ephemeral"}}, image],
            system=[{"type": "text", "text": "Be brief."}],
            metadata={"user_id": "somebody"},
            extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 5},  # gone from the SDK, still in use
        )
    )
    assert answer.content[0].text.split() == ["what", "is", "this"]


def test_a_conversation_goes_on(client):
    asked = _asking("four five")
    asked["messages"] = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": [{"type": "text", "text": "two three"}]},
        *asked["messages"],
    ]
    assert client.messages.create(**asked).content[0].text.split() == ["four", "five"]


@contextmanager
def _raises(expected: type[anthropic.APIStatusError], status: int, kind: str, code: str) -> Iterator[None]:
    """Anthropic's envelope with the mesh's own code in it, and the id where the SDK looks for it."""
    with pytest.raises(expected) as raised:
        yield
    error = raised.value
    assert type(error) is expected
    assert (error.status_code, error.body["type"]) == (status, "error")
    assert (error.body["error"]["type"], error.body["error"]["code"]) == (kind, code)
    assert error.body["error"]["message"]
    assert error.request_id == error.body["request_id"] == error.body["error"]["request_id"]


def test_each_status_is_the_sdks_own_exception(client):
    messages = client.messages
    with _raises(anthropic.BadRequestError, 400, "invalid_request_error", "bad_request"):
        messages.create(**_asking("!refuse this"))
    with _raises(anthropic.AuthenticationError, 401, "authentication_error", "invalid_api_key"):
        client.with_options(api_key="jc_LIVE_wrong").messages.create(**_asking("one"))
    with _raises(anthropic.NotFoundError, 404, "not_found_error", "not_found"):
        messages.create(**_asking("one", model="claude-9"))
    with _raises(anthropic.ContentTooLargeError, 413, "request_too_large", "payload_too_large"):
        messages.create(**_asking("x" * (10 * 1024 * 1024)))
    with _raises(anthropic.UnprocessableEntityError, 422, "invalid_request_error", "unprocessable_entity"):
        messages.create(**{**_asking("one"), "max_tokens": 0})
    with _raises(anthropic.InternalServerError, 502, "api_error", "upstream_error"):
        messages.create(**_asking("!break please now"))


def test_a_stream_that_breaks_raises_the_sdks_error(client):
    with (
        pytest.raises(anthropic.APIStatusError) as raised,
        client.messages.stream(**_asking("!break a word")) as stream,
    ):
        list(stream)
    assert raised.value.body["error"]["type"] == "api_error"
    assert raised.value.body["error"]["code"] == "upstream_error"
